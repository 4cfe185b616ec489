#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# A real guest goes through save, kill and restore, again and again, by way of the example manager. The guest checks its
# own memory (examples/guest/guest.S); first it is shown that it would notice. Then what must not succeed: a save that
# is cancelled, over nothing and over an older image, and the restore of a damaged image. All that in both layouts; and
# a mapped-ram image is restored by QEMU alone.
# timeout: 600
set -u

cd "$(dirname "$0")/../.." || exit 1
BUILD=$(realpath "${BUILD:-build}") || exit 1
QEMU=${QEMU:-qemu-system-x86_64}
hypervisor=$BUILD/dioh-hypervisor
disk=$BUILD/guest/boot.img
tool=${DIOHELPER_TOOL:-$BUILD/diohelper-tool}
export QEMU DIOHELPER="${DIOHELPER:-$BUILD/diohelper}"

command -v "$QEMU" >/dev/null || { echo "$QEMU is not here"; exit 77; }

work=$(mktemp -d "${TMPDIR:-/var/tmp}/dioh-qemu.XXXXXX") || exit 1
cd "$work" || exit 1
manager=

cleanup() {
	[ -z "$manager" ] || kill "$manager" 2>/dev/null && wait "$manager" 2>/dev/null
	cd / && rm -rf -- "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM HUP

fail() {
	local log

	echo "FAILED: $*"
	for log in *.log; do
		[ ! -s "$log" ] || { echo "---- the end of $log" && tail -n 20 "$log"; }
	done
	exit 1
}

# ---- the guest -----------------------------------------------------------------------------------------------------------

start() { # MEMORY
	: >guest.log
	"$hypervisor" run --disk="$disk" --control=control --memory="$1" --serial=guest.log >manager.log 2>&1 &
	manager=$!
	wait_for_pass 1
}

restore() { # [OPTION] IMAGE: it goes on writing to guest.log
	"$hypervisor" restore --disk="$disk" --control=control --serial=guest.log "$@" >manager.log 2>&1 &
	manager=$!
}

# The manager is to end by itself, and well.
manager_ends() {
	wait "$manager" || fail "the manager ended with status $?"
	manager=
	[ ! -e control ] || fail 'the manager left its socket behind'
}

quit() {
	"$hypervisor" quit --control=control >quit.log 2>&1 || fail 'the guest cannot be ended'
	manager_ends
}

last_pass() { sed -n 's/^guest: pass \([0-9]*\) memory ok$/\1/p' guest.log | tail -n 1; }

# Waits until the guest has counted beyond pass $1.
wait_for_pass() {
	local deadline=$((SECONDS + 90)) pass

	until pass=$(last_pass) && [ "${pass:-0}" -gt "$1" ]; do
		grep -q -e DAMAGED -e DISAGREE guest.log && fail 'the guest says that its memory is damaged'
		kill -0 "$manager" 2>/dev/null || fail 'the manager of the guest has ended'
		[ "$SECONDS" -lt "$deadline" ] || fail "the guest has not counted beyond pass $1 in 90 s"
		sleep 0.05
	done
}

guest_goes_on() { wait_for_pass $(($(last_pass) + 1)); }

# One start, and each pass once and in order, over all saves and restores. (A line cut short at the end is left out.)
check_guest_log() {
	{ [ -z "$(tail -c 1 guest.log)" ] && cat guest.log || sed '$d' guest.log; } | awk '
		NR == 1 && /^guest: started with [0-9]+ MiB$/ { next }
		NR > 1 && $0 == "guest: pass " NR - 1 " memory ok" { next }
		{ exit 1 }' || fail 'the guest has not always gone on where it was'
}

# ---- images --------------------------------------------------------------------------------------------------------------

layout=    # of the tests that run now
offset=    # where such an image starts in its file
default=() # the option that asks for this layout; none for the default

save() { # ARGUMENT...
	"$hypervisor" save --control=control "${default[@]}" "$@" >save.log 2>&1 || fail 'the save failed'
	grep -q '^saved: memory of' save.log || fail 'the save does not say what it moved'
	"$tool" inspect --base-offset=$offset "${*: -1}" 2>&1 | grep -q "^layout: *$layout$" ||
		fail "the image is not of the layout $layout"
}

# Restoring $1 must fail with a sentence that matches $2, and without a guest.
refused() { # IMAGE PATTERN
	local serial_bytes
	serial_bytes=$(stat -c %s guest.log)

	timeout 60 "$hypervisor" restore --disk="$disk" --control=control --serial=guest.log "$1" >refused.log 2>&1
	[ $? = 1 ] || fail "$1: the restore ended with another status than 1"
	grep -q "^dioh-hypervisor: restore: .*$2" refused.log || fail "$1: the restore does not say '$2'"
	[ "$(stat -c %s guest.log)" = "$serial_bytes" ] || fail "$1: a guest has run"
	[ ! -e control ] || fail "$1: the restore left its socket behind"
}

flip() { # FILE OFFSET
	local byte

	byte=$(od -An -tu1 -j "$2" -N 1 "$1")
	printf '%b' "\\x$(printf %02x $((byte ^ 4)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# The offset of some page with data in it, behind the first half of the file $1.
find_data() {
	local offset
	offset=$(($(stat -c %s "$1") / 2 / 65536 * 65536))

	while [ "$(dd if="$1" bs=4096 skip=$((offset / 4096)) count=1 status=none | tr -d '\0' | wc -c)" -lt 3000 ]; do
		offset=$((offset + 65536))
	done
	echo "$offset"
}

# The offset of some byte of the devices' state in the file $1: the end of QEMU's own format is nothing else.
find_state() {
	local stream

	stream=$(($(stat -c %s "$1") - 60000))
	[ "$layout" != container ] || stream=$(($(grep -abo -m 1 QEVM "$1" | head -n 1 | cut -d : -f 1) + 100000))
	echo $stream
}

# ---- the tests -----------------------------------------------------------------------------------------------------------

# A test whose witness sleeps proves nothing: a word is changed in its memory, from outside.
test_witness() {
	local memory

	start 16M
	memory=$(find "/proc/$manager/fd" -lname '*guest-memory*' | head -n 1)
	[ -n "$memory" ] || fail 'the manager does not hold the memory'
	printf 'x' | dd of="$memory" bs=1 seek=$((0x0043f123)) conv=notrunc status=none
	for _ in $(seq 100); do
		grep -q '^guest: MEMORY DAMAGED at 0x0043f120' guest.log && break
		sleep 0.05
	done
	grep -q '^guest: MEMORY DAMAGED at 0x0043f120' guest.log || fail 'the guest does not notice changed memory'
	quit
}

test_round_trips() {
	start 512M
	guest_goes_on
	save one.img # the guest ends with it
	manager_ends
	"$tool" verify --base-offset=$offset one.img >tool.log 2>&1 || fail 'diohelper-tool verify finds fault with the image'

	restore one.img
	guest_goes_on
	save --keep-running two.img
	guest_goes_on
	save two.img # over an older one
	manager_ends
	restore two.img
	guest_goes_on
	quit
	check_guest_log
}

test_damage() {
	cp --sparse=always two.img page.img
	flip page.img "$(find_data page.img)"
	refused page.img 'checksum'

	cp --sparse=always two.img stream.img
	flip stream.img "$(find_state two.img)"
	refused stream.img 'checksum'

	cp --sparse=always two.img head.img
	flip head.img $((offset + 1))
	refused head.img 'magic'

	cp --sparse=always two.img short.img
	truncate -s $(($(stat -c %s short.img) / 2)) short.img
	refused short.img 'truncated'

	[ "$layout" = container ] || refused_front

	refused /dev/null 'character device'
	refused . 'directory'
	refused absent.img 'No such file'
	rm -f page.img stream.img head.img short.img
}

# The 4096 bytes in front of a mapped-ram image.
refused_front() {
	cp --sparse=always two.img front.img
	flip front.img 1
	refused front.img 'was not made by dioh-hypervisor'
	printf ' ' | dd of=front.img conv=notrunc status=none
	refused front.img 'magic'
	rm -f front.img
}

# Ctrl-C in the midst of a save: it ends within a second, the guest goes on, and the image is no image.
cancel_save() { # IMAGE PROCESS-TO-INTERRUPT
	local client status started_ms took_ms target

	: >cancel.log # what the last one said must not be taken for this one's
	"$hypervisor" save --control=control "${default[@]}" "$1" >cancel.log 2>&1 &
	client=$!
	for _ in $(seq 500); do
		grep -q 'saving the memory' cancel.log && break
		sleep 0.01
	done
	target=$client
	[ "$2" = client ] || target=$manager
	started_ms=$(date +%s%3N)
	kill -INT "$target"
	wait "$client"
	status=$?
	took_ms=$(($(date +%s%3N) - started_ms))
	[ "$status" = 1 ] || fail "a save that was to be cancelled ended with status $status"
	grep -qi '^dioh-hypervisor: save: .*cancel' cancel.log || fail 'the cancelled save does not say so'
	[ "$took_ms" -lt 1000 ] || fail "cancelling took $took_ms ms"
	echo "cancelled by the $2 in $took_ms ms"
	guest_goes_on
}

test_cancel() {
	start 2G
	cancel_save new.img client
	[ ! -e new.img ] || fail 'a cancelled save left the image that it had made'
	cancel_save one.img manager
	"$tool" inspect --base-offset=$offset one.img >tool.log 2>&1
	grep -qi 'partial' tool.log || fail 'inspect does not call an image partial whose overwriting was cancelled'
	refused_while_running one.img
	save one.img # and it can still be saved
	manager_ends
	restore one.img
	guest_goes_on
	quit
	check_guest_log
}

# As refused, beside a guest that runs.
refused_while_running() {
	"$hypervisor" restore --disk="$disk" --control=other --serial=other.log "$1" >refused.log 2>&1 &&
		fail "$1: a partial image was restored"
	grep -q '^dioh-hypervisor: restore: .*partial' refused.log || fail "$1: the restore does not say that it is partial"
	[ ! -s other.log ] || fail "$1: a guest has run"
}

# By QEMU alone; what it then has is not ours to save. A partial image it refuses.
test_stock() {
	start 512M
	guest_goes_on
	save one.img
	manager_ends
	restore --stock one.img
	guest_goes_on
	"$hypervisor" save --control=control no.img >save.log 2>&1 && fail "QEMU's own memory was saved"
	grep -q "memory is QEMU's own" save.log || fail 'the save does not say why it is refused'
	[ ! -e no.img ] || fail 'a save that is refused makes an image'
	guest_goes_on
	quit
	check_guest_log

	head -c 4 /dev/zero | dd of=one.img bs=1 seek=4096 conv=notrunc status=none # QEMU's magic, which comes last
	refused one.img partial
	: >guest.log
	"$hypervisor" restore --stock --disk="$disk" --control=control --serial=guest.log one.img >refused.log 2>&1 &&
		fail 'QEMU loads an image that is partial'
	[ ! -s guest.log ] || fail 'a guest has run from a partial image'
}

# With a QEMU that says it is older, images are containers, and the save says why.
test_old_qemu() {
	cat >old-qemu <<-'END'
		#!/usr/bin/python3
		import ctypes, os, re, signal, socket, subprocess, sys, threading
		words = sys.argv[1:]
		at = next(i for i, word in enumerate(words) if word.startswith("socket,id=monitor,fd="))
		manager = socket.socket(fileno=int(words[at].rpartition("=")[2]))
		ours, theirs = socket.socketpair()
		theirs.set_inheritable(True)
		words[at] = f"socket,id=monitor,fd={theirs.fileno()}"
		# Who kills this program means QEMU: PR_SET_PDEATHSIG.
		dies_with_us = lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL)
		qemu = subprocess.Popen([os.environ["REAL_QEMU"]] + words, close_fds=False, preexec_fn=dies_with_us)
		theirs.close()
		def answers():
		    while data := ours.recv(1 << 16):
		        manager.sendall(re.sub(rb'"major": [0-9]+', b'"major": 8', data))
		    os._exit(0)
		threading.Thread(target=answers, daemon=True).start()
		while True:
		    data, fds, _, _ = socket.recv_fds(manager, 1 << 16, 4)
		    if not data:
		        break
		    socket.send_fds(ours, [data], fds)
		    for fd in fds:
		        os.close(fd)
		qemu.kill()
	END
	chmod +x old-qemu
	export REAL_QEMU=$QEMU
	QEMU=$PWD/old-qemu start 16M
	"$hypervisor" save --control=control old.img >save.log 2>&1 || fail 'the save failed'
	manager_ends
	grep -q '^ *layout container: QEMU 8\.[0-9.]* has no mapped-ram' save.log || fail 'the save does not say why'
	"$tool" inspect old.img | grep -q '^layout: *container$' || fail 'the image of an older QEMU is no container'
	restore old.img
	guest_goes_on
	quit
	check_guest_log
	restore --stock old.img
	wait "$manager" && fail 'QEMU alone is said to restore a container'
	manager=
	grep -q 'no mapped-ram image' manager.log || fail 'the restore does not say what it lacks'
}

knows_mapped_ram() { [ "$("$QEMU" --version | sed -n 's/^QEMU emulator version \([0-9]*\).*/\1/p')" -ge 9 ]; }

test_layout() {
	test_round_trips
	test_damage
	test_cancel
	rm -f ./*.img
	echo "ok: $layout"
}

test_witness
layout=container offset=0 default=(--layout=container)
test_layout
if knows_mapped_ram; then
	layout=mapped-ram offset=4096 default=()
	test_layout
	test_stock
	test_old_qemu
else
	echo "skipped: mapped-ram: $QEMU is older than 9"
fi
echo 'ok'
