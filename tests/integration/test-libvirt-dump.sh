#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# A real libvirtd dumps a guest's memory with the drop-in in the place of its own helper, as QEMU's stream and as an ELF
# core, buffered and with --bypass-cache. The dumps are whole, and the guest goes on.
# timeout: 150
# shellcheck source=tests/integration/libvirt.sh
. "$(dirname "$0")/libvirt.sh"
requires python3

core=$state/witness.core
mib=128

is_qemu_stream() { # FILE
	[ "$(head -c 4 "$1")" = QEVM ] || fail "$1 is no stream of QEMU's"
	[ "$(tail -c 1 "$1")" = '}' ] || fail "$1 does not end where QEMU's stream ends"
}

is_elf_core() { run 0 python3 "$root/tests/integration/guest_dump.py" "$1" $mib; } # FILE

dump() { # WHAT-IT-IS OPTION...
	local is=$1

	shift
	mark_helper
	lv dump "$@" witness $core
	helper_ran $core 1
	no_helper
	"$is" $core
}

# Of a running guest.
dumps() { # WHAT-IT-IS [OPTION...]
	local option

	for option in '' --bypass-cache; do
		dump "$@" ${option:+"$option"}
		guest_goes_on
		rm $core
		case_done 'dump' "${@:2}" "$(option_name $option)"
	done
}

# Of a paused guest, a buffered and an uncached core are the same.
cores_are_alike() {
	lv suspend witness
	dump is_elf_core --memory-only
	mv $core $core.buffered
	dump is_elf_core --memory-only --bypass-cache
	cmp $core $core.buffered || fail 'the cores with and without --bypass-cache differ'
	rm $core $core.buffered
	lv resume witness
	guest_goes_on
	case_done 'two cores of a paused guest are the same'
}

# With the head of some save image in front of it, a dump can be restored: the guest goes on from there.
dump_is_restored() { # [DUMP-OPTION]
	local image=$state/witness.save start

	lv suspend witness
	cp $guest_log "$tmp/log-of-dump"
	dump is_qemu_stream ${1:+"$1"}
	lv resume witness
	guest_goes_on
	lv save witness $image
	start=$((92 + $(od -An -tu4 -j 20 -N 4 $image)))
	truncate -s $start $image
	cat $core >>$image
	cat "$tmp/log-of-dump" >$guest_log
	lv restore --running $image
	guest_goes_on
	rm $core $image
	case_done "dump $(option_name "${1:-}") can be restored"
}

start_daemon ''
start_guest $mib
dumps is_qemu_stream
dumps is_elf_core --memory-only --format elf
cores_are_alike
dump_is_restored
dump_is_restored --bypass-cache
passed=1
