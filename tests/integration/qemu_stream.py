#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What QEMU and libvirt write, made without them: migration streams, mapped-ram images, libvirt's header.

The machines in them are none that QEMU would run; their memory and their framing are as QEMU 10.0 and libvirt 11.3 have
them (QEMU's docs/devel/migration/mapped-ram.rst, libvirt's src/qemu/qemu_saveimage.h).

    qemu_stream.py KIND FILE [BLOCK=MIB...]     writes an example: stream, bitmaps-stream (with a section of dirty bitmaps),
                                                image, libvirt-FORMAT, libvirt-FORMAT-partial, libvirt-FORMAT-header
"""

import struct
import sys
from typing import NamedTuple

PAGE = 4096
MIB = 1 << 20
IGNORE_SHARED, MAPPED_RAM = "x-ignore-shared", "mapped-ram"
FORMATS = ("raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse")
PAGES_ALIGNMENT = MIB  # QEMU's own; it is no part of the format

RAM_SECTION = 2
FOOTER = struct.pack(">BI", 0x7E, RAM_SECTION)
SECTION_END = struct.pack(">Q", 0x10) + FOOTER
DESCRIPTION = b'{"page_size": 4096, "devices": []}'


class Block(NamedTuple):
    """A RAMBlock. `pages`: number -> 4096 bytes; None: shared memory that a stream leaves out."""

    name: str
    bytes: int
    pages: "dict | None" = None
    guest_address: int = 0


def name(text):
    data = text.encode()
    return bytes([len(data)]) + data


def configuration(capability, machine):
    listed = struct.pack(">I", 1) + name(capability) if capability else b""
    subsection = b"\5" + name("configuration/capabilities") + struct.pack(">I", 1) + listed if capability else b""
    return b"QEVM" + struct.pack(">IBI", 3, 7, len(machine)) + machine.encode() + subsection


def ram_start(blocks):
    total = sum(block.bytes for block in blocks)
    return struct.pack(">BI", 1, RAM_SECTION) + name("ram") + struct.pack(">IIQ", 0, 4, total | 4)


def setup(blocks, capability=IGNORE_SHARED, machine="pc-q35-10.0"):
    """All that stands before the first page of a stream."""
    out = configuration(capability, machine) + ram_start(blocks)
    for block in blocks:
        out += name(block.name) + struct.pack(">Q", block.bytes)
        if capability == IGNORE_SHARED:
            out += struct.pack(">Q", block.guest_address)
    return out + SECTION_END


def section(kind):
    """The start of a part of the RAM section: 2, or 3 for the last one."""
    return struct.pack(">BI", kind, RAM_SECTION)


def pages(block, zeros=True):
    """A block's pages as a stream has them; those that are not in `pages` are zero."""
    out, named = [], False
    for number in range(block.bytes // PAGE):
        data = (block.pages or {}).get(number)
        if data is None and not zeros:
            continue
        flags = (0x08 if data else 0x02) | (0x20 if named else 0)
        out.append(struct.pack(">Q", number * PAGE | flags) + (b"" if named else name(block.name)) + (data or b"\0"))
        named = True
    return b"".join(out)


def with_zeros(block):
    """A small block as an image of ours has it whose pages came in a stream: its zero pages are present."""
    return block._replace(pages=dict.fromkeys(range(block.bytes // PAGE), bytes(PAGE)) | block.pages)


def devices(state=b"\xa5" * 5000):
    """A section of some device, the stream's end, and its description."""
    device = b"\4" + struct.pack(">I", 7) + name("timer") + struct.pack(">II", 0, 2) + state + b"\x7e" + struct.pack(">I", 7)
    return device + b"\0\6" + struct.pack(">I", len(DESCRIPTION)) + DESCRIPTION


def sections_without_pages():
    return section(2) + SECTION_END + section(3) + SECTION_END


def stream(blocks, capability=IGNORE_SHARED, state=None):
    """A whole migration stream."""
    sent = b"".join(pages(block) for block in blocks if block.pages is not None)
    tail = devices() if state is None else devices(state)
    return setup(blocks, capability) + section(2) + sent + SECTION_END + section(3) + SECTION_END + tail


def bitmaps_stream(blocks):
    """The same with a section that only QEMU understands: what follows its start does not matter."""
    start = struct.pack(">BI", 1, 3) + name("dirty-bitmap") + struct.pack(">II", 0, 1)
    whole, ram = stream(blocks, None), setup(blocks, None)
    return ram + start + whole[len(ram):]


def residual_stream(blocks, state=None):
    """What is left of that stream when one brings no page of shared memory, and the others' pages all at once."""
    sent = b"".join(pages(block) for block in blocks if block.pages is not None)
    part = section(2) + sent + SECTION_END if sent else b""
    capability = None if all(block.pages is not None for block in blocks) else IGNORE_SHARED
    tail = devices() if state is None else devices(state)
    return setup(blocks, capability) + part + sections_without_pages() + tail


def round_up(value, unit):
    return (value + unit - 1) // unit * unit


def bitmap(block):
    bits = sum(1 << number for number in block.pages or {})
    return bits.to_bytes(round_up(block.bytes // PAGE, 64) // 8, "little")


def image(blocks, header=b"", base=0, state=None):
    """A mapped-ram image of QEMU's own, as (offset in the file, bytes) pieces and its length from `base` on."""
    pieces, start = [(base, header)] if header else [], base + len(header)
    at, head = start, configuration(MAPPED_RAM, "pc-q35-10.0") + ram_start(blocks)
    for block in blocks:
        head += name(block.name) + struct.pack(">Q", block.bytes)
        bitmap_at = at + len(head) + 28
        bits = bitmap(block)
        pages_at = round_up(bitmap_at + len(bits), PAGES_ALIGNMENT)
        pieces += [(at, head + struct.pack(">IQQQ", 1, PAGE, bitmap_at, pages_at)), (bitmap_at, bits)]
        pieces += [(pages_at + number * PAGE, data) for number, data in (block.pages or {}).items()]
        at, head = pages_at + block.bytes, b""
    tail = SECTION_END + sections_without_pages() + (devices() if state is None else devices(state))
    return pieces + [(at, tail)], at + len(tail) - base


def write_pieces(path, pieces):
    with open(path, "wb") as file:
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)


XML = """<domain type='kvm'>
  <name>%s</name>
  <uuid>c7a5fdbd-edaf-9455-926a-d65c16db1809</uuid>
  <memory unit='KiB'>%d</memory>
</domain>
"""


def libvirt_header(form="sparse", complete=True, was_running=True, domain="guest", memory=64 * MIB, size=4096,
                   order="<"):
    """92 bytes, XML, padding up to `size` altogether; `order`: of the host's bytes, as in struct."""
    xml = (XML % (domain, memory // 1024)).encode() + b"\0"
    data = xml.ljust(size - 92, b"\0")
    magic = b"LibvirtQemudSave" if complete else b"LibvirtQemudPart"
    return magic + struct.pack(order + "IIIII", 2, len(data), was_running, FORMATS.index(form), 0) + bytes(56) + data


def example_blocks(arguments):
    fill = {number: bytes([number % 255 + 1]) * PAGE for number in range(0, 256, 3)}
    sizes = [argument.split("=") for argument in arguments] or [("pc.ram", "16"), ("vga.vram", "1")]
    return [Block(text, int(mib) * MIB, fill, index << 32) for index, (text, mib) in enumerate(sizes)]


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    kind, path, blocks = sys.argv[1], sys.argv[2], example_blocks(sys.argv[3:])
    words = kind.split("-")
    header = libvirt_header(words[1], words[-1] != "partial") if words[0] == "libvirt" else b""
    if kind == "stream":
        write_pieces(path, [(0, stream(blocks))])
    elif kind == "bitmaps-stream":
        write_pieces(path, [(0, bitmaps_stream(blocks))])
    elif words[-1] == "header":
        write_pieces(path, [(0, libvirt_header(words[1]))])
    elif kind == "image" or kind.startswith("libvirt-sparse"):
        write_pieces(path, image(blocks, header)[0])
    elif header:
        write_pieces(path, [(0, header), (len(header), stream(blocks, None))])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
