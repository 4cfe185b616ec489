#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes the corpus of fuzz_qemu_stream: streams and images, whole and slightly broken, into a directory.

The files real-* are not made here: they are the first bytes of what QEMU 10.0 wrote.
"""
import pathlib
import struct
import sys

PAGE = 4096
IMAGE, MULTIFD, OFFSET = 0x01, 0x40, 0x80  # bits of the first byte; the piece size is between them
IGNORE_SHARED, MAPPED_RAM = "x-ignore-shared", "mapped-ram"
SECTION = 2
FOOTER = struct.pack(">BI", 0x7E, SECTION)
END = struct.pack(">Q", 0x10)
FLUSH = struct.pack(">Q", 0x200)
BLOCKS = (("pc.ram", 3, 0), ("0000:00:02.0/vga.vram", 1, 0xF0000000))


def name(text):
    return bytes([len(text)]) + text.encode()


def subsection(text, content, version=1):
    return b"\5" + name("configuration/" + text) + struct.pack(">I", version) + content


def capabilities(*names):
    return subsection("capabilities", struct.pack(">I", len(names)) + b"".join(map(name, names)))


def head(*subsections, machine=b"pc-q35-10.0"):
    return b"QEVM" + struct.pack(">IBI", 3, 7, len(machine)) + machine + b"".join(subsections)


def start(total, version=4, section="ram"):
    return struct.pack(">BI", 1, SECTION) + name(section) + struct.pack(">IIQ", 0, version, total | 4)


def setup(*subsections, blocks=BLOCKS, end=END + FOOTER, guest_addresses=False):
    out = head(*subsections) + start(sum(pages for _, pages, _ in blocks) * PAGE)
    for text, pages, address in blocks:
        out += name(text) + struct.pack(">Q", pages * PAGE)
        out += struct.pack(">Q", address) if guest_addresses else b""
    return out + end


def image_setup(first=0, page_bytes=PAGE, bitmap_plus=0, pages_plus=0):
    """Without what stands at the places sought."""
    out = head(capabilities(MAPPED_RAM)) + start(4 * PAGE)
    at = first
    for text, pages, _ in BLOCKS:
        block = name(text) + struct.pack(">Q", pages * PAGE)
        at += len(block) + 28 + (len(out) if at == first else 0)
        places = (at + 8 + 0xFFFFF) // 0x100000 * 0x100000
        out += block + struct.pack(">IQQQ", 1, page_bytes, at + bitmap_plus, places + pages_plus)
        at = places + pages * PAGE
    return out + END + FOOTER


def part(kind, *records, end=END + FOOTER):
    return struct.pack(">BI", kind, SECTION) + b"".join(records) + end


def page(number, block=None, fill=b"\xa5"):
    return struct.pack(">Q", number * PAGE | 0x08 | (0 if block else 0x20)) + (name(block) if block else b"") + fill * PAGE


def zero(number, block=None, fill=0, flags=0x02):
    return struct.pack(">Q", number * PAGE | flags | (0 if block else 0x20)) + (name(block) if block else b"") + bytes([fill])


COMMANDS = b"\x08\0\x0b\0\0" + b"\x08\0\2\0\4abcd"
DEVICE = b"\4\0\0\0\0\5timer\0\0\0\0\0\0\0\2" + bytes(16) + b"\x7e\0\0\0\0"
JSON = b'{"page_size": 4096, "devices": []}'
TAIL = DEVICE + b"\0\6" + struct.pack(">I", len(JSON)) + JSON
FIRST = zero(0, "pc.ram")
LAST = part(3, zero(1, "pc.ram"))
NO_FOOTERS = part(2, FIRST, end=END) + COMMANDS + part(3, end=END) + TAIL


def streams():
    plain = setup()
    yield "plain", plain + part(2, page(2, "pc.ram"), zero(0)) + COMMANDS + part(3, zero(0, BLOCKS[1][0])) + TAIL
    yield "ignore-shared", setup(capabilities(IGNORE_SHARED), guest_addresses=True) + part(2) + COMMANDS + LAST + TAIL
    yield "all-subsections", setup(
        subsection("target-page-bits", struct.pack(">I", 12)), capabilities(IGNORE_SHARED),
        subsection("uuid", bytes(range(16))), guest_addresses=True) + LAST + TAIL
    yield "sent-again", plain + part(2, FIRST, zero(0), page(0, "pc.ram")) + part(3, zero(0)) + TAIL
    yield "no-footers", setup(end=END) + NO_FOOTERS
    yield "no-description", plain + LAST + DEVICE + b"\0"
    yield "look-alike", plain + LAST + b"\0\6\0\6\0\0{\x0b{" + TAIL
    yield "cut-in-page", (plain + part(2, page(2, "pc.ram")))[:-100]
    yield "cut-in-device", plain + LAST + DEVICE[:-1]
    yield "cut-in-description", (plain + LAST + TAIL)[:-1]
    yield "bad-magic", b"QEVN" + plain[4:]
    yield "no-configuration", plain[:8] + plain[8 + 5 + 11:] + LAST + TAIL
    yield "long-machine", head(machine=b"m" * 255) + start(PAGE) + name("ram") + struct.pack(">Q", PAGE)
    yield "page-bits", setup(subsection("target-page-bits", struct.pack(">I", 16)))
    yield "unknown-subsection", setup(subsection("other", b""))
    yield "unknown-capability", setup(capabilities("other"))
    yield "mapped-ram", setup(capabilities(MAPPED_RAM))
    yield "command-first", head() + COMMANDS
    yield "other-start", head() + start(PAGE, section="block")
    yield "other-version", head() + start(PAGE, version=3)
    yield "same-names", setup(blocks=(("a", 1, 0), ("a", 1, 0)))
    yield "huge-block", head() + start(0xFFFFFFFFFFFFF000) + name("a") + struct.pack(">Q", 0x8000000000000000)
    yield "sum-differs", head() + start(PAGE) + name("a") + struct.pack(">Q", 2 * PAGE)
    yield "other-footer", setup(end=END + b"\x7e\0\0\0\7")
    yield "full-too-early", plain + DEVICE
    yield "end-too-early", plain + b"\0"
    yield "packaged", plain + b"\x08\0\7\0\4\0\0\0\0"
    yield "continues-nothing", plain + part(2, zero(0))
    yield "page-beyond", plain + part(2, zero(3, "pc.ram"))
    yield "unknown-block", plain + part(2, zero(0, "other"))
    yield "zero-is-not", plain + part(2, zero(0, "pc.ram", fill=1))
    for flags in (0x40, 0x80, 0x100, 0x200, 0x0A):
        yield f"flags-{flags:03x}", plain + part(2, zero(0, "pc.ram", flags=flags))


def multifd_streams():
    """The main one, whose sync points are the ends of its parts, or, of a newer QEMU, records of their own."""
    yield "older", setup() + part(2) + part(2, zero(0, "pc.ram")) + LAST + TAIL
    yield "flushing", setup(end=FLUSH + END + FOOTER) + part(2, FLUSH) + part(2, FIRST, FLUSH) + COMMANDS + LAST + TAIL
    yield "with-page", setup() + part(2, page(2, "pc.ram")) + LAST + TAIL
    yield "ignore-shared", setup(capabilities(IGNORE_SHARED), end=FLUSH + END + FOOTER, guest_addresses=True) + LAST + TAIL
    yield "cut-at-flush", setup(end=FLUSH + END + FOOTER) + part(2, FLUSH)[:-4]


def images():
    yield "whole", image_setup() + part(2) + COMMANDS + part(3) + TAIL
    yield "with-page", image_setup() + LAST
    yield "page-bytes", image_setup(page_bytes=2 << 20)
    yield "bitmap-too-low", image_setup(bitmap_plus=-1)
    yield "bitmap-in-pages", image_setup(bitmap_plus=1 << 20)
    yield "pages-unaligned", image_setup(pages_plus=512)
    yield "pages-too-high", image_setup(pages_plus=1 << 62)
    yield "plain", setup()
    yield "both", setup(capabilities(IGNORE_SHARED, MAPPED_RAM))


def main():
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} DIRECTORY")
    directory = pathlib.Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for number, (label, data) in enumerate(streams()):
        (directory / f"stream-{label}").write_bytes(bytes([number % 8 << 1]) + data)
    for number, (label, data) in enumerate(images()):
        (directory / f"image-{label}").write_bytes(bytes([IMAGE | number % 8 << 1]) + data)
    for number, (label, data) in enumerate(multifd_streams()):
        (directory / f"multifd-{label}").write_bytes(bytes([MULTIFD | number % 8 << 1]) + data)
    behind_header = image_setup(first=4188) + part(2) + part(3) + TAIL
    (directory / "image-behind-header").write_bytes(bytes([IMAGE | OFFSET]) + behind_header)


if __name__ == "__main__":
    main()
