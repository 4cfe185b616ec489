#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# A real guest goes through save, kill and restore, again and again, by way of the example manager. The guest checks its
# own memory (examples/guest/guest.S); first it is shown that it would notice. Then what must not succeed: a save that is
# cancelled, over nothing and over an older image, and the restore of a damaged image.
# timeout: 300
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

restore() { # IMAGE: it goes on writing to guest.log
	"$hypervisor" restore --disk="$disk" --control=control --serial=guest.log "$1" >manager.log 2>&1 &
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

save() { # ARGUMENT...
	"$hypervisor" save --control=control "$@" >save.log 2>&1 || fail 'the save failed'
	grep -q '^saved: memory of' save.log || fail 'the save does not say what it moved'
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
	"$tool" verify one.img >tool.log 2>&1 || fail 'diohelper-tool verify finds fault with the image'

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
	local stream

	cp --sparse=always two.img page.img
	flip page.img "$(find_data page.img)"
	refused page.img 'checksum'

	stream=$(grep -abo -m 1 QEVM two.img | head -n 1 | cut -d : -f 1)
	[ -n "$stream" ] || fail 'the stream is not in the image'
	cp --sparse=always two.img stream.img
	flip stream.img $((stream + 100000))
	refused stream.img 'checksum'

	cp --sparse=always two.img head.img
	flip head.img 1
	refused head.img 'magic'

	cp --sparse=always two.img short.img
	truncate -s $(($(stat -c %s short.img) / 2)) short.img
	refused short.img 'truncated'

	refused /dev/null 'character device'
	refused . 'directory'
	refused absent.img 'No such file'
	rm -f page.img stream.img head.img short.img
}

# Ctrl-C in the midst of a save: it ends within a second, the guest goes on, and the image is no image.
cancel_save() { # IMAGE PROCESS-TO-INTERRUPT
	local client status started_ms took_ms target

	"$hypervisor" save --control=control "$1" >cancel.log 2>&1 &
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
	"$tool" inspect one.img >tool.log 2>&1
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

test_witness
test_round_trips
test_damage
test_cancel
echo 'ok'
