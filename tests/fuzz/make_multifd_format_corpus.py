#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes the corpus of fuzz_multifd_format: channels, whole and slightly broken, into a directory."""
import pathlib
import struct
import sys

PAGE = 4096
SYNC = 1


def init(magic=0x11223344, version=1, channel=0):
    return struct.pack(">II16sB39x", magic, version, bytes(range(16)), channel)


def packet(data=(), zero=(), flags=0, block=b"pc.ram", room=128, size=None, version=1, tail=True):
    size = len(data) * PAGE if size is None else size
    head = struct.pack(">IIIIIIQII24x256s", 0x11223344, version, flags, room, len(data), size, 1, len(zero), 0, block)
    offsets = b"".join(struct.pack(">Q", offset) for offset in (*data, *zero))
    return head + (offsets.ljust(1024, b"\0") if tail else offsets) + bytes(len(data) * PAGE if tail else 0)


CASES = {
    "empty": init(),
    "sync": init() + packet(flags=SYNC, room=0, block=b""),
    "pages": init(channel=1) + packet([0, PAGE], [2 * PAGE]) + packet(flags=SYNC, room=0, size=8192, block=b""),
    "zeros": init() + packet([], [i * PAGE for i in range(128)]),
    "with-sync": init() + packet([299 * PAGE], flags=SYNC),
    "vga": init() + packet([0], block=b"0000:00:02.0/vga.vram"),
    "older": init() + packet([0, PAGE]),
    "cut": init() + packet([0], tail=False),
    "bad-magic": init(magic=0x5145564D),
    "bad-version": init(version=2),
    "bad-packet-version": init() + packet(version=0),
    "zlib": init() + packet([0], flags=2),
    "device": init() + packet(flags=0x40),
    "behind": init() + packet([300 * PAGE]),
    "odd": init() + packet([1]),
    "wrap": init() + packet([0xFFFFFFFFFFFFF000]),
    "unknown-block": init() + packet([0], block=b"x" * 256),
    "room": init() + packet([0], room=129),
    "too-many": init() + packet([0, 0], room=1),
    "size": init() + packet([0], size=1),
}

if __name__ == "__main__":
    directory = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/fuzz/corpus/multifd_format")
    for case, content in CASES.items():
        (directory / case).write_bytes(content)
