# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
#
# libvirt.sh - a libvirtd of the test's own, and a guest that checks its own memory; to be sourced first, it sources
# functions.sh. The script that sources it is run a second time, as the first process of private mount, network and
# process namespaces: there the daemon finds its directories empty, the drop-in lies over libvirt's own helper, and
# whatever still runs when the script ends is killed by the kernel. The host's files and daemons are not touched.
#
# Environment: DIOHELPER, the drop-in; DIOH_LIBVIRT_STOCK=1: the same with libvirt's own helper.

state=/var/lib/libvirt # whatever a daemon or a guest writes is below this, in the test's directory
guest_log=$state/guest.log
daemon_log=/var/log/libvirt/daemon.log

# ---- outside ----------------------------------------------------------------------------------------------------------

find_stock_helper() {
	local path

	for path in /usr/libexec /usr/lib/libvirt /usr/lib64/libvirt; do
		[ ! -x "$path/libvirt_iohelper" ] || { echo "$path/libvirt_iohelper" && return; }
	done
	return 1
}

# The monolithic daemon or, where there is none, QEMU's own.
find_daemon() { command -v libvirtd || command -v virtqemud; }

requires_libvirt() {
	[ "$(id -u)" = 0 ] || skip 'a private mount namespace needs root'
	PATH=$PATH:/usr/sbin:/sbin
	requires virsh unshare setpriv timeout awk cmp qemu-system-x86_64
	find_daemon >/dev/null || skip 'there is no libvirtd and no virtqemud here'
	find_stock_helper >/dev/null || skip "there is no libvirt_iohelper here, at none of libvirt's usual places"
	unshare "${unshare_flags[@]}" true 2>"$tmp/err" || skip "no namespaces: $(head -n 1 "$tmp/err")"
	[ -e "$BUILD/guest/boot.img" ] || fail "$BUILD/guest/boot.img is not built"
}

# Its save images of the format sparse are that young.
requires_sparse() {
	local version

	version=$(virsh --version) || fail 'virsh does not tell its version'
	printf '11.2\n%s\n' "$version" | sort --version-sort --check=quiet ||
		skip "needs libvirt 11.2, for the format sparse: this is $version"
}

unshare_flags=(--mount --net --pid --fork --kill-child --mount-proc)

# Runs the script itself in the namespaces. It ends with the script, however that ends, and everything in
# the namespaces with it.
run_inside() { # ARGUMENT...
	local status

	DIOH_LIBVIRT_INSIDE=1 TMPDIR=$tmp setpriv --pdeathsig KILL unshare "${unshare_flags[@]}" bash "$0" "$@" &
	cleanup_fn kill_quietly $!
	wait $!
	status=$?
	exit "$status"
}

kill_quietly() { kill -KILL "$1" 2>/dev/null; }

# ---- inside: the daemon -------------------------------------------------------------------------------------------------

bind() { mount --bind "$1" "$2" || fail "$1 cannot be put over $2"; } # WHAT WHERE

# Directories of the test's own over everything that libvirt and its guests write to, and over the sockets of the host's
# daemons. A control group would be the host's: there are none.
mount_directories() {
	mkdir -p "$tmp/host/state/qemu" "$tmp/host/etc" "$tmp/host/cache" "$tmp/host/log/libvirt"
	chmod -R 755 "$tmp/host"
	umount --recursive --lazy /sys/fs/cgroup 2>/dev/null
	bind "$tmp/host/state" $state
	bind "$tmp/host/etc" /etc/libvirt
	bind "$tmp/host/cache" /var/cache
	bind "$tmp/host/log" /var/log
	mount -t tmpfs tmpfs /run || fail '/run cannot be hidden'
}

mount_drop_in() {
	install -m 755 "$DIOHELPER" "$tmp/libvirt_iohelper"
	bind "$tmp/libvirt_iohelper" "$stock"
}

configure_daemon() {
	# Users and owners are as in an installation; what needs further daemons is switched off.
	cat >"$tmp/qemu.conf" <<-END
		stdio_handler = "file"
		security_driver = "none"
		namespaces = [ ]
		cgroup_controllers = [ ]
	END
	cat >/etc/libvirt/daemon.conf <<-END
		auth_unix_rw = "none"
		log_filters = "1:util.command 3:*"
		log_outputs = "1:file:$daemon_log"
	END
}

# Of the monolithic daemon's drivers, only QEMU's.
link_driver() {
	local driver

	mkdir -p /run/drivers
	for driver in /usr/lib*/libvirt/connection-driver /usr/lib/*/libvirt/connection-driver; do
		[ ! -e "$driver/libvirt_driver_qemu.so" ] || ln -sf "$driver/libvirt_driver_qemu.so" /run/drivers/
	done
}

# Starts the daemon with further lines for qemu.conf, and waits until it answers. Guests outlive it.
start_daemon() { # LINE...
	local name

	name=$(basename "$(find_daemon)")
	stop_daemon
	printf '%s\n' "$@" | cat "$tmp/qemu.conf" - >/etc/libvirt/qemu.conf
	env -i PATH="$PATH" LC_ALL=C LIBVIRT_DRIVER_DIR=/run/drivers \
		"$(find_daemon)" --config /etc/libvirt/daemon.conf --daemon >"$tmp/out" 2>"$tmp/err" || fail "no $name"
	uri="qemu:///system?socket=/run/libvirt/${name/libvirtd/libvirt}-sock"
	daemon=$(cat "/run/$name.pid")
	lv version
}

stop_daemon() {
	[ -n "${daemon:-}" ] || return 0
	kill "$daemon"
	for _ in $(seq 100); do
		[ -e "/proc/$daemon" ] || break
		sleep 0.1
	done
	daemon=
}

virsh_bounded() { # SECONDS ARGUMENT...
	local seconds=$1

	shift
	timeout --foreground -k 5 "$seconds" virsh --quiet --connect "$uri" "$@"
}

# lv ARGUMENT...: virsh, which is to succeed within a minute.
lv() { run 0 virsh_bounded 60 "$@"; }

helper_mark=0

# From here on, helper_ran looks at what the daemon does next.
mark_helper() { helper_mark=$(wc -l <"$daemon_log"); }

# Since the mark the daemon has started the helper, where the drop-in lies, with this file and descriptor.
helper_ran() { # FILE FD
	tail -n +$((helper_mark + 1)) "$daemon_log" | grep -q " About to run .*$stock $1 $2\$" ||
		fail "$stock has not been run with '$1 $2'"
	[ -n "${DIOH_LIBVIRT_STOCK:-}" ] || cmp -s "$stock" "$DIOHELPER" || fail "$stock is not the drop-in"
	mark_helper
}

show_trouble() {
	[ -z "$passed" ] && [ -e $guest_log ] || return 0
	echo '---- the guest said' && tail -n 5 $guest_log
	echo "---- the daemon's errors" && grep -A 2 -e ' error : ' $daemon_log | tail -n 20
	echo '---- QEMU said' && tail -n 5 /var/log/libvirt/qemu/witness.log
} 2>/dev/null

# ---- inside: the guest ---------------------------------------------------------------------------------------------------

# With what memory and what video, as XML; empty: QEMU's own, and none.
guest_backing=
guest_video=

start_guest() { # MIB
	cp "$BUILD/guest/boot.img" $state/boot.img
	rm -f $guest_log
	cat >/run/witness.xml <<-END
		<domain type='qemu'>
		  <name>witness</name>
		  <uuid>b8a6a0fe-55b7-4f5e-a9b0-3c65e8a3a1d4</uuid>
		  <memory unit='MiB'>$1</memory>
		  $guest_backing
		  <os><type arch='x86_64' machine='pc'>hvm</type></os>
		  <devices>
		    <disk type='file' device='disk'>
		      <driver name='qemu' type='raw'/>
		      <source file='$state/boot.img'/>
		      <target dev='vda' bus='virtio'/>
		      <readonly/>
		    </disk>
		    <serial type='file'><source path='$guest_log' append='on'/></serial>
		    $guest_video
		    <controller type='usb' model='none'/>
		    <memballoon model='none'/>
		  </devices>
		</domain>
	END
	lv define /run/witness.xml
	lv start witness
	wait_for_pass 1
}

wait_until() { # WHAT COMMAND...: for 30 s
	local what=$1 deadline=$((SECONDS + 30))

	shift
	until "$@"; do
		[ "$SECONDS" -lt "$deadline" ] || fail "$what: not within 30 s"
		sleep 0.01
	done
}

last_pass() { sed -n 's/^guest: pass \([0-9]*\) memory ok$/\1/p' $guest_log | tail -n 1; }

# Waits until the guest has counted beyond pass $1.
wait_for_pass() {
	local deadline=$((SECONDS + 60)) pass

	until pass=$(last_pass) && [ "${pass:-0}" -gt "$1" ]; do
		! grep -q -e DAMAGED -e DISAGREE $guest_log || fail 'the guest says that its memory is damaged'
		[ "$SECONDS" -lt "$deadline" ] || fail "the guest has not counted beyond pass $1 in 60 s"
		sleep 0.05
	done
}

# It counts on: two passes, so that one of them began after now.
guest_goes_on() {
	wait_for_pass $(($(last_pass) + 1))
	guest_never_began_anew
}

# One start and each pass once and in order since then, and nothing else said: not that memory is damaged, and not pass 1
# again. (A line cut short at the end is left out.)
guest_never_began_anew() {
	sed -e '$d' $guest_log | awk '
		NR == 1 && /^guest: started with [0-9]+ MiB$/ { next }
		NR > 1 && $0 == "guest: pass " NR - 1 " memory ok" { next }
		{ exit 1 }' || fail 'the guest has not gone on where it was, with the memory that it had'
}

# An image is restored more than once: the log is put back to the moment of the save each time.
log_is_kept() { cp $guest_log "$tmp/log-of-save"; }
log_is_put_back() { cat "$tmp/log-of-save" >$guest_log; }

# A stock libvirt restores it, and the guest goes on where it was when it was saved.
restore() { # IMAGE OPTION...
	log_is_put_back
	lv restore "$@"
	run 0 virsh_bounded 60 domstate witness
	says '^running'
	guest_goes_on
	lv destroy witness
	case_done "virsh restore $*"
}

# No guest, and no helper that has been forgotten.
guest_is_off() {
	run 0 virsh_bounded 60 domstate witness
	says '^shut off'
	no_helper
}

no_helper() {
	local pids

	pids=$(helper_pids)
	[ -z "$pids" ] || fail "a helper still runs: process ${pids//$'\n'/, }"
}

helper_pids() {
	local exe

	for exe in /proc/[0-9]*/exe; do
		[ "$(readlink "$exe")" != "$stock" ] || { exe=${exe%/exe} && echo "${exe#/proc/}"; }
	done
}

case_done() { echo "ok: $*"; }

# The name of an option that may be missing, for case_done.
option_name() { echo "${1:-buffered}"; }

# ---- which of the two ---------------------------------------------------------------------------------------------------

# shellcheck source=tests/integration/functions.sh
. "$(dirname "${BASH_SOURCE[0]}")/functions.sh"

if [ -z "${DIOH_LIBVIRT_INSIDE:-}" ]; then
	requires_libvirt
	run_inside "$@"
fi
passed=
cleanup_fn show_trouble
stock=$(find_stock_helper)
mount_directories
[ -n "${DIOH_LIBVIRT_STOCK:-}" ] || mount_drop_in
configure_daemon
link_driver
