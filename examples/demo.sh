#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# demo.sh - a guest under QEMU is saved, its QEMU killed, and the guest brought back in a new one: first by diohelper,
# then from the same image by QEMU alone, which knows nothing of diohelper. The guest itself checks its memory and
# counts (see guest/guest.S); the demo is a success only if it goes on counting where it was. A QEMU before 9 takes part in
# the first half only: its image is of a layout that QEMU alone cannot load, and the save must say why.
#
# Environment: BUILD (build directory, default build), MEMORY (default 256M), QEMU, DIOHELPER, DIOHELPER_TOOL, TMPDIR.
set -u

cd "$(dirname "$0")/.." || exit 1
BUILD=$(realpath "${BUILD:-build}") || exit 1
MEMORY=${MEMORY:-256M}
QEMU=${QEMU:-qemu-system-x86_64}
tool=${DIOHELPER_TOOL:-$BUILD/diohelper-tool}
hypervisor=$BUILD/dioh-hypervisor
disk=$BUILD/guest/boot.img
export QEMU DIOHELPER="${DIOHELPER:-$BUILD/diohelper}"

work=$(mktemp -d "${TMPDIR:-/var/tmp}/dioh-demo.XXXXXX") || exit 1
cd "$work" || exit 1 # so that the control socket's name is short, whatever TMPDIR is
manager=
log=guest.log # what the guest that runs says
: >$log

finish() {
	[ -z "$manager" ] || kill "$manager" 2>/dev/null && wait "$manager" 2>/dev/null
	cd / && rm -rf -- "$work"
}
trap finish EXIT
trap 'exit 1' INT TERM HUP

fail() {
	local log

	printf 'demo: FAILED: %s\n' "$*" >&2
	for log in *.log; do
		[ ! -s "$log" ] || { printf -- '---- the end of %s\n' "$log" && tail -n 20 "$log"; } >&2
	done
	exit 1
}

# Whether this QEMU loads images of the layout mapped-ram, which are therefore what the save has to make.
knows_mapped_ram() {
	local version

	version=$("$QEMU" --version | sed -n 's/^QEMU emulator version \([0-9]*\).*/\1/p')
	[ -n "$version" ] || fail "$QEMU does not tell its version"
	[ "$version" -ge 9 ]
}

step() { printf '\n== %s\n' "$*"; }

last_pass() { sed -n 's/^guest: pass \([0-9]*\) memory ok$/\1/p' $log | tail -n 1; }

# Waits until the guest has counted beyond pass $1, for at most 60 s.
wait_for_pass() {
	local deadline=$((SECONDS + 60)) pass

	until pass=$(last_pass) && [ "${pass:-0}" -gt "$1" ]; do
		grep -q -e DAMAGED -e DISAGREE $log && fail 'the guest says that its memory is damaged'
		kill -0 "$manager" 2>/dev/null || fail 'the manager of the guest has ended'
		[ "$SECONDS" -lt "$deadline" ] || fail "the guest has not counted beyond pass $1 in 60 s"
		sleep 0.1
	done
	echo "the guest says: pass $pass memory ok"
}

# One start, and each pass once and in order: the guest has gone on where it was. A line cut short at the end is left out.
check_guest_log() {
	{ [ -z "$(tail -c 1 $log)" ] && cat $log || sed '$d' $log; } | awk '
		NR == 1 && /^guest: started with [0-9]+ MiB$/ { next }
		NR > 1 && $0 == "guest: pass " NR - 1 " memory ok" { next }
		{ exit 1 }' || fail 'the guest has not gone on where it was'
}

# restore ARGUMENT...: a guest is brought back and counts on; then it is ended.
restore() {
	"$hypervisor" restore --disk="$disk" --control=control --serial=$log "$@" >restore.log 2>&1 &
	manager=$!
	wait_for_pass $((saved_at + 2))
	grep -v '^running' restore.log
	"$hypervisor" quit --control=control >/dev/null || fail 'the restored guest cannot be ended'
	wait "$manager" || fail 'the manager of the restored guest ended with an error'
	manager=
	check_guest_log
}

for program in "$hypervisor" "$DIOHELPER" "$tool"; do
	[ -x "$program" ] || fail "$program is missing: run make"
done
[ -e "$disk" ] || fail "$disk is missing: run make"
command -v "$QEMU" >/dev/null || fail "$QEMU is missing: run make deps"

step "A guest with $MEMORY boots under QEMU"
"$hypervisor" run --disk="$disk" --control=control --memory="$MEMORY" --serial=guest.log >first.log 2>&1 &
manager=$!
wait_for_pass 2

step 'It is saved, and its QEMU killed'
"$hypervisor" save --control=control guest.img >save.log || fail 'the save failed'
cat save.log
wait "$manager" || fail 'the manager ended with an error'
manager=
saved_at=$(last_pass)
cp guest.log stock.log
offset=$(sed -n 's/^ *layout mapped-ram: .*,offset=\([0-9]*\)$/\1/p' save.log) # one of the two is empty
why_not=$(sed -n 's/^ *layout container: *//p' save.log)
if knows_mapped_ram; then
	[ -n "$offset" ] || fail "this QEMU knows mapped-ram, but the image is of another layout: ${why_not:-the save says nothing}"
else
	[ -n "$why_not" ] || fail 'this QEMU does not know mapped-ram, but the save does not say that the image is a container'
fi
echo "the image: $(stat -c %s guest.img) bytes long, $(($(stat -c %b guest.img) * 512)) bytes on disk"

step 'The image is inspected and verified'
"$tool" inspect --base-offset="${offset:-0}" guest.img 2>inspect.log || fail 'diohelper-tool inspect failed'
"$tool" verify --base-offset="${offset:-0}" guest.img 2>verify.log || fail 'diohelper-tool verify failed'

step 'It is restored into a new QEMU'
restore guest.img

if [ -n "$offset" ]; then
	step 'It is restored once more, by a stock QEMU: private memory, no diohelper'
	log=stock.log
	restore --stock guest.img
else
	step "A stock QEMU cannot take this image: $why_not"
fi

printf '\ndemo: ok\n'
