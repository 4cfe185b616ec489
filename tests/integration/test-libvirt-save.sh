#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# A real libvirtd saves and restores a guest with the drop-in in the place of its own helper: buffered and with
# --bypass-cache, managed, compressed (then the compressor stands between QEMU and the helper), onto a block device, and
# as an external memory snapshot. The guest checks its memory and counts: after each case it goes on where it was.
# timeout: 240
# shellcheck source=tests/integration/libvirt.sh
. "$(dirname "$0")/libvirt.sh"
requires zstd lzop losetup

image=$state/witness.save

word() { od -An -tu4 -j "$2" -N 4 "$1" | tr -d ' '; } # FILE OFFSET

# $1 is marked complete and holds, in format $2, QEMU's stream from its first byte to the end of the JSON it ends with:
# nothing is missing, and nothing has been added.
is_image() { # FILE FORMAT
	local numbers='raw 0, lzop 4, zstd 5,' start decompress=("$2" -dc)

	[ "$2" != raw ] || decompress=(cat)
	[ "$(head -c 16 "$1")" = LibvirtQemudSave ] || fail "$1 is not marked as a complete image"
	[[ $numbers == *"$2 $(word "$1" 28),"* ]] || fail "$1 has format $(word "$1" 28), which is not $2"
	start=$((92 + $(word "$1" 20)))
	tail -c +$((start + 1)) "$1" | "${decompress[@]}" >/run/stream
	[ "${PIPESTATUS[*]}" = '0 0' ] || fail "$2 finds fault with $1"
	[ "$(head -c 4 /run/stream)" = QEVM ] || fail "$1 has no stream of QEMU's at $start"
	[ "$(tail -c 1 /run/stream)" = '}' ] || fail "$1 does not end where QEMU's stream ends"
	rm -f /run/stream
}

# Without --bypass-cache QEMU reads the image by itself.
read_by_helper() { # FILE OPTION
	[ -z "$2" ] || helper_ran "$1" 0
}

# ---- the cases ------------------------------------------------------------------------------------------------------------

save_and_restore() { # FORMAT [SAVE-OPTION [RESTORE-OPTION]]
	mark_helper
	lv save ${2:+"$2"} witness $image
	helper_ran $image 1
	guest_is_off
	is_image $image "$1"
	lv restore ${3:+"$3"} $image
	read_by_helper $image "${3:-}"
	guest_goes_on
	no_helper
	rm $image
	case_done "$1: save $(option_name "${2:-}"), restore $(option_name "${3:-}")"
}

managed_save() { # [SAVE-OPTION [START-OPTION]]
	local managed=$state/qemu/save/witness.save

	mark_helper
	lv managedsave ${1:+"$1"} witness
	helper_ran $managed 1
	guest_is_off
	is_image $managed raw
	lv start ${2:+"$2"} witness
	read_by_helper $managed "${2:-}"
	guest_goes_on
	no_helper
	[ ! -e $managed ] || fail 'the managed image outlives the start'
	case_done "managedsave $(option_name "${1:-}"), start $(option_name "${2:-}")"
}

# The snapshot of a paused guest, which goes on, is thrown away, and comes back from the snapshot's memory. Its log is
# put back to that moment too.
snapshot() {
	local memory=$state/witness.memory

	lv suspend witness
	cp $guest_log "$tmp/log-of-snapshot"
	mark_helper
	lv snapshot-create-as witness snapshot --memspec "file=$memory,snapshot=external" --diskspec vda,snapshot=no
	helper_ran $memory 1
	is_image $memory raw
	lv resume witness
	guest_goes_on
	lv destroy witness
	cat "$tmp/log-of-snapshot" >$guest_log
	lv restore --running --bypass-cache $memory
	helper_ran $memory 0
	guest_goes_on
	no_helper
	lv snapshot-delete witness snapshot --metadata
	rm $memory
	case_done 'snapshot with external memory'
}

# As soon as virsh says that the guest is saved, nobody has the image open any more.
save_is_over() {
	mkdir -p $state/other
	mount -t tmpfs -o size=320m tmpfs $state/other || fail 'no file system in memory'
	lv save witness $state/other/witness.save
	mount -o remount,ro $state/other || fail 'the image is still open for writing after the save'
	lv restore $state/other/witness.save
	guest_goes_on
	umount $state/other || fail 'the image is still open after the restore'
	case_done 'nothing holds the image after a save'
}

# A loop device that nobody has to detach: it goes with the last process that has it open.
make_device() {
	truncate -s 320M "$tmp/device"
	device=$(losetup --find --show "$tmp/device" 2>"$tmp/err") || return 1
	# shellcheck disable=SC2034 # it is held open, that is all
	exec {device_fd}<>"$device"
	losetup --detach "$device"
}

# libvirt's own helper goes on copying when QEMU has read its stream's end, and dies of SIGPIPE: virsh then reports a
# failure although the guest runs.
save_to_device() { # [SAVE-OPTION [RESTORE-OPTION]]
	[ -z "${2:-}" ] || [ -z "${DIOH_LIBVIRT_STOCK:-}" ] || return 0
	mark_helper
	lv save ${1:+"$1"} witness "$device"
	helper_ran "$device" 1
	guest_is_off
	lv restore ${2:+"$2"} "$device"
	read_by_helper "$device" "${2:-}"
	guest_goes_on
	no_helper
	case_done "block device: save $(option_name "${1:-}"), restore $(option_name "${2:-}")"
}

# A witness that sleeps proves nothing: a byte of the page at 32 MiB is changed in the image. It is found by the page's
# first two words (examples/guest/guest.S).
damage_is_noticed() {
	local page=$((32 << 20)) word first bytes='' byte found

	word=$(((page + 1) * 0x85ebca6b & 0xffffffff))
	first=$((word ^ word >> 15))
	for word in $first $((first * 1664525 + 1013904223 & 0xffffffff)); do
		for byte in 0 8 16 24; do
			bytes+=$(printf '\\x%02x' $((word >> byte & 255)))
		done
	done
	lv save witness $image
	found=$(LC_ALL=C grep -m 1 -obUaP "$bytes" $image | head -n 1 | cut -d : -f 1)
	[ -n "$found" ] || fail 'a page of the guest is not in the image'
	printf 'damage' | dd of=$image bs=1 seek=$((found + 1024)) conv=notrunc status=none
	lv restore $image
	wait_until 'the guest notices changed memory' grep -q '^guest: MEMORY DAMAGED at 0x02000400 ' $guest_log
	lv destroy witness
	case_done 'the guest notices damage'
}

# ---- all of them ----------------------------------------------------------------------------------------------------------

start_daemon 'save_image_format = "raw"'
start_guest 256
damage_is_noticed
start_guest 256
save_and_restore raw
save_and_restore raw --bypass-cache
save_and_restore raw '' --bypass-cache
save_and_restore raw --bypass-cache --bypass-cache
managed_save
managed_save --bypass-cache --bypass-cache
snapshot
save_is_over
if make_device; then
	save_to_device
	save_to_device --bypass-cache
	save_to_device --bypass-cache --bypass-cache
else
	echo "skipped: save onto a block device: $(head -n 1 "$tmp/err")"
fi
for format in zstd lzop; do
	start_daemon "save_image_format = \"$format\""
	save_and_restore $format
	save_and_restore $format --bypass-cache --bypass-cache
done
passed=1
