#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Images of libvirt's format sparse, which are mapped-ram behind libvirt's header, made and read without libvirt's help:
# one composed from a paused domain's shared memory and its QEMU's state is restored by a stock `virsh restore`, in
# every way that it has; one that `virsh save` made is loaded into shared memory, and the guest goes on in a QEMU of
# ours; and one of format raw, made of it, is restored by virsh again. The guest checks its memory and counts.
# timeout: 240
# shellcheck source=tests/integration/libvirt.sh
. "$(dirname "$0")/libvirt.sh"
requires_sparse
requires python3

image=$state/witness.save
raw=$state/witness.raw
memory_dir=/run/guest-memory # a tmpfs, as an operator would want it

work() { # VERB ARGUMENT...
	VIRSH_DEFAULT_CONNECT_URI=$uri DOMAIN=witness run 0 timeout 60 \
		python3 "$root/tests/integration/libvirt_mapped_ram.py" "$@"
}

is_complete() { # FILE FORMAT-NUMBER
	[ "$(head -c 16 "$1")" = LibvirtQemudSave ] || fail "$1 is not marked as a complete image"
	[ "$(od -An -tu4 -j 28 -N 4 "$1" | tr -d ' ')" = "$2" ] || fail "$1 is not of the format $2"
}

compose_into() { # FILE
	local memory

	memory=$(find $memory_dir -name pc.ram)
	[ -n "$memory" ] || fail 'the memory of the domain is not where it should be'
	lv suspend witness
	lv dumpxml --migratable --security-info witness
	cp "$tmp/out" /run/saved.xml
	work compose "$1" "$memory" /run/saved.xml
	is_complete "$1" 6
}

# The domain goes on, and what virsh saves of it next has its memory.
copy_on_disk() {
	compose_into $image
	lv resume witness
	guest_goes_on
	lv save witness $raw
	log_is_kept
	rm $image
	lv restore $raw
	guest_goes_on
	rm $raw
	case_done 'composed, and resumed; virsh save, and restored'
}

compose() {
	compose_into $image
	log_is_kept
	lv destroy witness
	run 0 "$DIOHELPER_TOOL" verify $image
	inspected $image
	case_done "composed: $(stat -c '%s bytes, %b blocks' $image)"
}

# The XML is edited in place; nothing that the record vouches for has changed.
edit() {
	lv save-image-dumpxml --security-info $image
	sed 's|<uuid>|<title>edited</title>&|' "$tmp/out" >/run/edited.xml
	lv save-image-define $image /run/edited.xml
	run 0 "$DIOHELPER_TOOL" verify $image
	log_is_put_back
	lv restore $image
	lv desc --title witness
	says '^edited$'
	guest_goes_on
	lv destroy witness
	case_done 'the XML is edited in the composed image'
}

inspected() { # FILE
	run 0 "$DIOHELPER_TOOL" inspect "$1"
	says '^layout: +mapped-ram$'
	says '^domain: +"witness", uuid b8a6a0fe-55b7-4f5e-a9b0-3c65e8a3a1d4'
}

libvirts_own() { # SAVE-OPTION...
	rm -f $guest_log $image
	lv start witness
	wait_for_pass 2
	lv save --image-format sparse "$@" witness $image
	log_is_kept
	is_complete $image 6
	inspected $image
	run 0 virsh_bounded 60 domxml-to-native qemu-argv --domain witness
	cp "$tmp/out" /run/argv
	work resume $image /run/argv $guest_log
	guest_has_gone_on
	case_done "virsh save ${*:+$* }--image-format sparse, and on in a QEMU of ours"
}

# As guest_goes_on, of a guest that has been ended.
guest_has_gone_on() {
	[ "$(last_pass)" -gt "$(sed -n 's/^guest: pass \([0-9]*\) .*/\1/p' "$tmp/log-of-save" | tail -n 1)" ] ||
		fail 'the guest has not counted on'
	guest_never_began_anew
}

to_raw() {
	work plain $image $raw
	is_complete $raw 0
	restore $raw
	rm $raw
}

start_daemon "memory_backing_dir = \"$memory_dir\""
mkdir -p $memory_dir
# Memory in a file that others may map; and a video memory, which is none.
guest_backing="<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>"
guest_video="<video><model type='vga' vram='16384'/></video>"
start_guest 256
copy_on_disk
compose
restore $image
restore $image --bypass-cache
restore $image --parallel-channels 4
restore $image --bypass-cache --parallel-channels 4
edit
libvirts_own
to_raw
libvirts_own --bypass-cache --parallel-channels 2
to_raw
passed=1
