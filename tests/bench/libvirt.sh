#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# How long virsh save and restore take, with libvirt's own helper and with the drop-in, alternating, on a real libvirtd
# and a guest under TCG whose memory is two thirds data. For information: QEMU's own work is in all of it, and a restore
# without --bypass-cache has no helper (what differs there is how much of the image is still in the page cache).
#
#   libvirt.sh [ROUNDS [MIB]]      default: 3 rounds, 1024 MiB
set -u
unset DIOH_LIBVIRT_STOCK
# shellcheck source=tests/integration/libvirt.sh
. "$(dirname "$0")/../integration/libvirt.sh"

rounds=${1:-3}
mib=${2:-1024}
image=$state/witness.save

# seconds NAME ARGUMENT...: adds a line to the file of that name.
seconds() {
	local name=$1 started

	shift
	sync -f $state
	started=$(date +%s%N)
	lv "$@"
	awk "BEGIN { printf \"%.3f\\n\", ($(date +%s%N) - $started) / 1e9 }" >>"$tmp/$name"
}

round() { # stock|ours
	local option

	for option in '' --bypass-cache; do
		rm -f $image
		seconds "save$option.$1" save ${option:+"$option"} witness $image
		seconds "restore$option.$1" restore ${option:+"$option"} $image
	done
}

# The median, the least and the most.
summary() { # FILE
	sort -n "$1" | awk '{ v[NR] = $1 } END { m = NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2;
		printf "%.2f (%.2f to %.2f)", m, v[1], v[NR] }'
}

start_daemon 'save_image_format = "raw"'
start_guest "$mib"
guest_goes_on
for _ in $(seq "$rounds"); do
	round ours
	umount "$stock"
	round stock
	mount_drop_in
done
guest_goes_on

echo "$mib MiB guest, image of $(($(stat -c %s $image) >> 20)) MiB, $rounds rounds, $(stat -f -c %T $state), Linux $(uname -r)"
printf '%-24s %-24s %s\n' seconds "libvirt's own" 'drop-in'
for name in save restore save--bypass-cache restore--bypass-cache; do
	printf '%-24s %-24s %s\n' "${name/--/ --}" "$(summary "$tmp/$name.stock")" "$(summary "$tmp/$name.ours")"
done
passed=1
