#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# virsh save and restore in libvirt's five ways, and with diohelper, in turn, on a real libvirtd and a guest under TCG
# whose memory is two thirds data. The guest's memory is a file on tmpfs, so that its image can be composed. For run.py.
#
#   libvirt.sh ROUNDS MIB
#
# A save ends when the file is durable: all are synced inside the clock. A restore finds nothing of it in the page cache.
# For each measurement a line `sample NAME save|restore SECONDS`, with tabs between, and one `image MIB` at the end.
set -u
unset DIOH_LIBVIRT_STOCK
# shellcheck source=tests/integration/libvirt.sh
. "$(dirname "$0")/../integration/libvirt.sh"

rounds=${1:?rounds}
mib=${2:?MiB}
image=$state/witness.save
memory_dir=/run/guest-memory

# NAME|helper|options of save|options of restore
ways=(
	"legacy|stock|--image-format raw|"
	"mapped-ram|stock|--image-format sparse|"
	"legacy, bypass-cache|stock|--image-format raw --bypass-cache|--bypass-cache"
	"mapped-ram, bypass-cache|stock|--image-format sparse --bypass-cache|--bypass-cache"
	"mapped-ram, bypass-cache, 8 channels|stock|--image-format sparse --bypass-cache --parallel-channels 8|"\
"--bypass-cache --parallel-channels 8"
	"legacy, drop-in|ours|--image-format raw|"
	"legacy, bypass-cache, drop-in|ours|--image-format raw --bypass-cache|--bypass-cache"
	"mapped-ram composed by diohelper|compose||--bypass-cache --parallel-channels 8"
)

drop_in_is_mounted() { cmp -s "$stock" "$DIOHELPER"; }

use_helper() { # stock|ours|compose
	if [ "$1" = ours ]; then
		drop_in_is_mounted || mount_drop_in
	elif drop_in_is_mounted; then
		umount "$stock" || fail "the drop-in cannot be taken away"
	fi
}

# seconds NAME save|restore COMMAND...
seconds() {
	local name=$1 direction=$2 started

	shift 2
	started=$(date +%s%N)
	"$@"
	awk -v name="$name" -v direction="$direction" -v ns="$(($(date +%s%N) - started))" \
		'BEGIN { printf "sample\t%s\t%s\t%.3f\n", name, direction, ns / 1e9 }'
}

save() { # OPTION...
	lv save "$@" witness $image
	sync $image
}

# As a manager does it who has the guest's memory: docs/qemu-libvirt.md.
compose() {
	lv suspend witness
	lv dumpxml --migratable --security-info witness
	cp "$tmp/out" /run/saved.xml
	VIRSH_DEFAULT_CONNECT_URI=$uri DOMAIN=witness run 0 timeout 120 \
		python3 "$root/tests/integration/libvirt_mapped_ram.py" compose $image "$(find $memory_dir -name pc.ram)" /run/saved.xml
	lv destroy witness
}

uncache() { dd of=$image oflag=nocache conv=notrunc,fdatasync count=0 status=none; }

turn() { # WAY
	local name helper save_options restore_options

	IFS='|' read -r name helper save_options restore_options <<<"$1"
	use_helper "$helper"
	rm -f $image
	sync -f $state
	# shellcheck disable=SC2086 # words
	if [ "$helper" = compose ]; then
		seconds "$name" save compose
	else
		seconds "$name" save save $save_options
	fi
	uncache
	# shellcheck disable=SC2086 # words
	seconds "$name" restore lv restore $image $restore_options
}

start_daemon 'save_image_format = "raw"' "memory_backing_dir = \"$memory_dir\""
mkdir -p $memory_dir
# shellcheck disable=SC2034 # start_guest takes it
guest_backing="<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>"
start_guest "$mib"
for round in $(seq "$rounds"); do
	for i in "${!ways[@]}"; do
		turn "${ways[(i + round) % ${#ways[@]}]}"
	done
	echo "." >&2
done
guest_goes_on
printf 'image\t%d\n' $(($(stat -c %b $image) >> 11))
passed=1
