#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# What `virsh save` has written is converted, and a stock `virsh restore` takes it: raw to sparse, sparse to raw, and one
# after the other; a compressed one after it has been unpacked with the command that `convert` prints. An image that is
# broken is refused, and leaves nothing that virsh could take for one. The guest checks its memory and counts.
# timeout: 300
# shellcheck source=tests/integration/libvirt.sh
. "$(dirname "$0")/libvirt.sh"
requires_sparse

saved=$state/witness.save
sparse=$state/witness.sparse
raw=$state/witness.raw

save() { # SAVE-OPTION...
	rm -f $saved $sparse $raw
	run 0 virsh_bounded 60 domstate witness
	grep -q '^running' "$tmp/out" || { rm -f $guest_log && lv start witness; }
	wait_for_pass 2
	lv save "$@" witness $saved
	log_is_kept
}

convert() { run 0 timeout 120 "$DIOHELPER_TOOL" convert "$@"; } # ARGUMENT...

format_is() { # FILE FORMAT
	run 0 "$DIOHELPER_TOOL" inspect "$1"
	says "of a save image in format $2\$"
	says '^domain: +"witness"'
	says '^state: +complete'
}

broken() {
	local size
	size=$(stat -c %s $saved)
	head -c $((size - 5000)) $saved >$raw
	run 1 timeout 60 "$DIOHELPER_TOOL" convert $raw $state/none
	[ ! -e $state/none ] || fail 'something was left of a conversion that failed'
	rm $raw
	case_done 'a truncated image is refused'
}

start_daemon "" # no lines of our own
start_guest 256
save
convert $saved $sparse
format_is $sparse sparse
run 0 "$DIOHELPER_TOOL" verify $sparse
broken
restore $sparse
restore $sparse --bypass-cache --parallel-channels 4
rm $saved
convert $sparse $raw
format_is $raw raw
restore $raw
restore $raw --bypass-cache

save --image-format sparse --bypass-cache --parallel-channels 2
convert $saved $raw
format_is $raw raw
restore $raw
convert $raw $sparse
restore $sparse

save --image-format gzip
run 1 timeout 60 "$DIOHELPER_TOOL" convert $saved $sparse
[ ! -e $sparse ] || fail 'something was made of a compressed image'
command=$(sed -n 's/^  \(IN=.*\)$/\1/p' "$tmp/err")
(cd "$state" && bash -c "$command") || fail "the command for unpacking failed: $command"
convert $state/UNPACKED $sparse
restore $sparse
case_done 'a compressed image, unpacked with the command that was printed'
passed=1
