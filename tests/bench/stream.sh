#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# The drop-in against libvirt's own libvirt_iohelper, in alternating pairs on the same file system, the sync inside the
# clock; loads also against fio.
#
#   stream.sh [MIB [PAIRS [DIRECTORY]]]      default: 2048 MiB, 5 pairs, /var/tmp
#
# STOCK names libvirt's program. A ratio is the median over the pairs, with the smallest and largest. Exit status 1: a
# floor was missed.
set -euo pipefail

mib=${1:-2048}
pairs=${2:-5}
dir=$(mktemp -d "${3:-/var/tmp}/diohelper-bench.XXXXXX")
trap 'rm -rf "$dir"' EXIT
stream=${BUILD:-build}/bench/stream
ours=${DIOHELPER:-${BUILD:-build}/diohelper}
stock=${STOCK:-/usr/lib/libvirt/libvirt_iohelper}
[ -x "$stock" ] || stock=/usr/libexec/libvirt_iohelper
[ -x "$stock" ] || { echo "stream.sh: there is no libvirt_iohelper here to compare with" >&2; exit 77; }
missed=0

# fields of stream's line, and of a pair's: stock's five, then ours
rate=1 cpu=2 rss=3 cached=4 exit_ms=5

median() { # of an awk expression over the lines of file $1
	awk "{ print $2 }" "$1" | sort -g |
		awk '{ v[NR] = $1 } END { m = NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2; print m, v[1], v[NR] }'
}

show() { # FILE EXPRESSION FORMAT: the median with the smallest and largest
	local m low high

	read -r m low high < <(median "$1" "$2")
	# shellcheck disable=SC2059 # a format is what it is
	printf "$3 ($3 to $3)" "$m" "$low" "$high"
}

# want FILE EXPRESSION at-least|at-most FLOOR TARGET: what is reached, and whether that is enough
want() {
	local m sign='>='

	[ "$3" = at-least ] || sign='<='
	m=$(median "$1" "$2" | cut -d ' ' -f 1)
	if awk "BEGIN { exit !($m $sign $5) }"; then
		echo "target $5 reached"
	elif awk "BEGIN { exit !($m $sign $4) }"; then
		echo "floor $4 reached, target $5 not"
	else
		echo "FLOOR $4 MISSED"
		return 1
	fi
}

check() { # WORDS FILE EXPRESSION FORMAT at-least|at-most FLOOR TARGET
	local verdict

	verdict=$(want "$2" "$3" "$5" "$6" "$7") || missed=1
	printf '    %-26s %s: %s\n' "$1" "$(show "$2" "$3" "$4")" "$verdict"
}

# run WHAT PROGRAM...: one line of figures; a save is into a new file
run() {
	[ "${1% *}" != save ] || rm -f "$dir/image"
	# shellcheck disable=SC2086 # two words
	"$stream" $1 "$2" "$dir/image" "$mib"
}

fio_read() { # MiB/s
	fio --name=peer --filename="$dir/image" --size="${mib}M" --rw=read --iodepth=16 --bs=1M --direct=1 \
		--ioengine=io_uring --output-format=terse --terse-version=3 |
		awk -F';' 'NF > 50 { printf "%.1f\n", $7 / 1024; exit }'
}

report() { # TITLE FILE RATE-FLOOR RATE-TARGET CPU-FLOOR CPU-TARGET
	echo "$1: stock $(show "$2" "\$$rate" %.0f) MiB/s, ours $(show "$2" "\$$((rate + 5))" %.0f) MiB/s"
	check "times as fast" "$2" "\$$((rate + 5)) / \$$rate" %.2f at-least "$3" "$4"
	check "of its CPU time" "$2" "\$$((cpu + 5)) / \$$cpu" %.2f at-most "$5" "$6"
	check "RssAnon, MiB" "$2" "\$$((rss + 5)) / 1024" %.1f at-most 24 24
	echo "    CPU s/GiB stock $(show "$2" "\$$cpu" %.3f), ours $(show "$2" "\$$((cpu + 5))" %.3f)"
	echo "    ms from the end of the stream to exit:" \
		"stock $(show "$2" "\$$exit_ms" %.1f), ours $(show "$2" "\$$((exit_ms + 5))" %.1f)"
}

direct() {
	local i stock_save ours_save stock_load ours_load

	rm -f "$dir/save" "$dir/load"
	for ((i = 0; i < pairs; i++)); do
		stock_save=$(run "save direct" "$stock")
		stock_load=$(run "load direct" "$stock")
		ours_save=$(run "save direct" "$ours")
		ours_load=$(run "load direct" "$ours")
		echo "$stock_save $ours_save" >>"$dir/save"
		echo "$stock_load $ours_load $(command -v fio >/dev/null && fio_read)" >>"$dir/load"
	done
	report "O_DIRECT save" "$dir/save" 1.3 1.5 0.75 0.5
	report "O_DIRECT load" "$dir/load" 1.15 1.15 0.75 0.5
	if [ "$(awk '{ print NF; exit }' "$dir/load")" = 11 ]; then
		echo "    fio reads $(show "$dir/load" "\$11" %.0f) MiB/s; ours is" \
			"$(show "$dir/load" "\$$((rate + 5)) / \$11" %.2f) of that"
	else
		echo "    not compared with fio: it is not installed"
	fi
}

# A restore by libvirt reads the file itself, buffered: as the helper does here, of either program.
buffered() {
	local i lines

	rm -f "$dir/uncached" "$dir/kept"
	for ((i = 0; i < pairs; i++)); do
		lines=("$(run "save buffered" "$stock")" "$(run "load buffered" "$stock")")
		lines+=("$(run "save buffered" "$ours")" "$(run "load buffered" "$ours")")
		lines+=("$(DIOHELPER_KEEP_CACHE=1 run "save buffered" "$ours")")
		lines+=("$(DIOHELPER_KEEP_CACHE=1 run "load buffered" "$ours")")
		# Fields 11 and 12: the load behind it, stock's and ours.
		echo "${lines[0]} ${lines[2]} ${lines[1]%% *} ${lines[3]%% *}" >>"$dir/uncached"
		echo "${lines[0]} ${lines[4]} ${lines[1]%% *} ${lines[5]%% *}" >>"$dir/kept"
	done
	report "buffered save, uncached" "$dir/uncached" 2 4 0.75 0.5
	check "page cache left, MiB" "$dir/uncached" "\$$((cached + 5)) / 1024" %.1f at-most 64 64
	echo "    page cache left by stock $(show "$dir/uncached" "\$$cached / 1024" %.0f) MiB"
	report "buffered save, written behind and kept in the page cache" "$dir/kept" 1.5 2 0.75 0.5
	echo "save and immediate restore, seconds: stock $(show "$dir/kept" "$mib / \$1 + $mib / \$11" %.2f)," \
		"ours $(show "$dir/uncached" "$mib / \$6 + $mib / \$12" %.2f)," \
		"ours with DIOHELPER_KEEP_CACHE=1 $(show "$dir/kept" "$mib / \$6 + $mib / \$12" %.2f)"
}

load=$(cut -d ' ' -f 1 /proc/loadavg)
echo "$mib MiB, incompressible, $pairs pairs, $(stat -f -c %T "$dir"), Linux $(uname -r), load average $load"
awk "BEGIN { exit !($load < 2) }" || echo "the machine is busy: these figures say little"
direct
buffered
exit $missed
