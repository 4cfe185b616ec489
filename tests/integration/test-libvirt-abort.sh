#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# A save by a real libvirtd that does not come to its end, with the drop-in in the place of its own helper: aborted
# half-way, and onto a file system that is too small. The guest goes on, and neither image nor helper is left. The abort
# comes while the helper is stopped: then it can be looked at, and no disk is too fast.
# timeout: 150
# shellcheck source=tests/integration/libvirt.sh
. "$(dirname "$0")/libvirt.sh"

image=$state/witness.save

is_beyond() { [ "$(stat -c %s "$1" 2>/dev/null || echo 0)" -gt "$2" ]; } # FILE BYTES

# The one process that is the helper, now, is the drop-in and has shed what it does not need.
look_at_helper() { # PID
	[ -z "${DIOH_LIBVIRT_STOCK:-}" ] || return 0
	cmp -s "/proc/$1/exe" "$DIOHELPER" || fail "process $1 is not the drop-in"
	grep -q '^CapPrm:[[:space:]]*0*$' "/proc/$1/status" || fail 'the drop-in has capabilities'
	grep -q '^NoNewPrivs:[[:space:]]*1$' "/proc/$1/status" || fail 'the drop-in could gain privileges'
}

aborted_save() { # [SAVE-OPTION]
	local save helper

	rm -f $image
	mark_helper
	virsh_bounded 60 save ${1:+"$1"} witness $image >"$tmp/save.out" 2>"$tmp/save.err" &
	save=$!
	wait_until 'half of the image' is_beyond $image $((300 << 20))
	helper=$(helper_pids)
	kill -STOP "$helper" || fail 'the save was over before it could be aborted'
	look_at_helper "$helper"
	lv domjobabort witness
	kill -CONT "$helper"
	wait $save && fail 'the aborted save succeeded'
	grep -q 'abort\|cancel' "$tmp/save.err" || fail "the aborted save says: $(cat "$tmp/save.err")"
	helper_ran $image 1
	no_helper
	[ ! -e $image ] || fail 'the aborted save left an image'
	guest_goes_on
	case_done "save, $(option_name "${1:-}"), aborted"
}

save_without_room() {
	mkdir -p $state/small
	mount -t tmpfs -o size=64m tmpfs $state/small || fail 'no small file system'
	mark_helper
	run 1 virsh_bounded 60 save witness $state/small/witness.save
	complains "$(basename "$stock"): .*witness.save: .*No space left on device"
	helper_ran $state/small/witness.save 1
	no_helper
	[ ! -e $state/small/witness.save ] || fail 'the save left an image without room'
	umount $state/small || fail 'the image is still held by whoever wrote it'
	guest_goes_on
	case_done 'save without room'
}

start_daemon ''
start_guest 1024
aborted_save
aborted_save --bypass-cache
save_without_room
passed=1
