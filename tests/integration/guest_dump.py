#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""guest_dump.py FILE MIB - is FILE an ELF core of the test's guest with MIB of memory?

Looks at the first and the last word of every page that the guest writes once and keeps (examples/guest/guest.S): so that
a page which is missing, twice there or at another's place is seen.
"""

import struct
import sys

FIRST = 1 << 20
LEFT_OUT = 2 << 20  # at the end: the firmware's own
MASK = 0xFFFFFFFF
MULTIPLIER, INCREMENT = 1664525, 1013904223


def first_word(page):
    word = (page + 1) * 0x85EBCA6B & MASK
    return word ^ word >> 15


def leap(steps):
    """The sequence's multiplier and increment for so many steps at once."""
    multiplier, increment = 1, 0
    for _ in range(steps):
        multiplier = multiplier * MULTIPLIER & MASK
        increment = (increment * MULTIPLIER + INCREMENT) & MASK
    return multiplier, increment


def segments(core):
    """(offset in the file, physical address, bytes) of each PT_LOAD."""
    header = core.read(64)
    if header[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", header, 16)[0] != 4:
        sys.exit("not a 64-bit little-endian ELF core")
    table, = struct.unpack_from("<Q", header, 32)
    size, count = struct.unpack_from("<HH", header, 54)
    core.seek(table)
    for _ in range(count):
        kind, _, offset, _, address, there = struct.unpack_from("<IIQQQQ", core.read(size))
        if kind == 1:
            yield offset, address, there


def check(core, mib):
    multiplier, increment = leap(1023)
    seen = 0
    for offset, address, there in list(segments(core)):
        for page in range(max(address, FIRST), min(address + there, (mib << 20) - LEFT_OUT), 4096):
            if page >> 18 & 7 > 3:
                continue
            core.seek(offset + page - address)
            content = core.read(4096)
            if len(content) != 4096:
                sys.exit(f"ends within the page at {page:#x}")
            first, last = struct.unpack_from("<I", content)[0], struct.unpack_from("<I", content, 4092)[0]
            if first != first_word(page) or last != (first * multiplier + increment) & MASK:
                sys.exit(f"another page stands at {page:#x}")
            seen += 1
    return seen


def main():
    mib = int(sys.argv[2])
    wanted = sum(page >> 18 & 7 <= 3 for page in range(FIRST, (mib << 20) - LEFT_OUT, 4096))
    with open(sys.argv[1], "rb") as core:
        seen = check(core, mib)
    if seen != wanted:
        sys.exit(f"{seen} of {wanted} pages are there")


main()
