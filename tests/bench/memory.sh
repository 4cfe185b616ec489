#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Memory save and load against fio on the same file system, alternating, the sync inside the clock.
#
#   memory.sh [MIB [PAIRS [DIRECTORY]]]      default: 2048 MiB, 9 pairs, /var/tmp
#
# fio gets its best of depth 4 and 16, 1 and 4 MiB, found in a warm-up. A ratio is the median over the pairs, with the
# smallest and largest.
set -euo pipefail

mib=${1:-2048}
pairs=${2:-9}
dir=$(mktemp -d "${3:-/var/tmp}/diohelper-bench.XXXXXX")
trap 'rm -rf "$dir"' EXIT
memory=${BUILD:-build}/bench/memory
export DIOHELPER=${DIOHELPER:-${BUILD:-build}/diohelper}

# fio_run write|read DEPTH BLOCK: MiB/s
fio_run() {
	local field=48 # of fio's terse format, version 3: write bandwidth in KiB/s
	[ "$1" = read ] && field=7
	[ "$1" = write ] && rm -f "$dir/fio"
	fio --name=peer --filename="$dir/fio" --size="${mib}M" --rw="$1" --iodepth="$2" --bs="$3" --direct=1 \
		--ioengine=io_uring --fallocate=truncate --end_fsync=1 --output-format=terse --terse-version=3 |
		awk -F';' -v f="$field" 'NF > 50 { printf "%.1f\n", $f / 1024; exit }'
}

fio_best() {
	local best=0 how='' depth block rate
	for round in 1 2; do
		for depth in 4 16; do
			for block in 1M 4M; do
				rate=$(fio_run "$1" $depth $block)
				if awk "BEGIN { exit !($rate > $best) }"; then
					best=$rate how="$depth $block"
				fi
			done
		done
	done
	echo "$how"
}

ours() {
	[ "$1" = save ] && rm -f "$dir/image"
	"$memory" "$1" "$dir/image" "$mib"
}

summary() { # of column $1 of $dir/pairs
	awk -v c="$1" '{ print $c }' "$dir/pairs" | sort -n |
		awk '{ v[NR] = $1 } END { m = NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2;
			printf "%.3f (%.3f to %.3f)", m, v[1], v[NR] }'
}

compare() { # save write | load read
	local how i fio rate cpu kib
	how=$(fio_best "$2")
	: >"$dir/pairs"
	for ((i = 0; i < pairs; i++)); do
		# shellcheck disable=SC2086 # two words
		fio=$(fio_run "$2" $how)
		read -r rate cpu kib < <(ours "$1")
		echo "$(awk "BEGIN { print $rate / $fio }") $rate $fio $cpu $kib" >>"$dir/pairs"
	done
	echo "$1: ratio to fio ($how) $(summary 1)"
	echo "    ours $(summary 2) MiB/s, fio $(summary 3) MiB/s"
	echo "    CPU $(summary 4) s/GiB, RssAnon + VmPTE $(summary 5) KiB"
}

echo "$mib MiB of incompressible memory, $pairs pairs, $(stat -f -c %T "$dir"), Linux $(uname -r)"
compare save write
compare load read
