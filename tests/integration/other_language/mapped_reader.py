# SPDX-License-Identifier: LGPL-2.1-or-later
"""A reader of mapped-ram images that have diohelper's record, written from docs/image-format.md alone.

It reads QEMU's own headers as well, for QEMU follows them and not the record: rule 29 compares the two.
"""

import os
import struct
from typing import NamedTuple

import reader
from reader import PAGE, Head, Image, bitmap_bytes, checksum_bytes, crc32c, lies_in, name_of, round_up, rule

LAYOUT_MAPPED_RAM = 3
IN_STREAM = 4
PAGES_ALIGNMENT = 2 << 20
OTHER_SUBSECTIONS = {b"configuration/target-page-bits": "I", b"configuration/uuid": "16s"}


class Block(NamedTuple):
    """QEMU's: offsets count from the start of the file."""

    name: bytes
    bytes: int
    header_offset: int
    bitmap_offset: int
    pages_offset: int


class QemuReader:
    """QEMU's bytes from its magic up to the last block's header."""

    def __init__(self, fd, offset):
        self._fd, self._at = fd, offset

    def _take(self, layout):
        data = os.pread(self._fd, struct.calcsize(">" + layout), self._at)
        rule(1, len(data) == struct.calcsize(">" + layout), "QEMU's bytes end too early")
        self._at += len(data)
        return struct.unpack(">" + layout, data)

    def _name(self):
        return self._take(f"{self._take('B')[0]}s")[0]

    def _configuration(self):
        rule(1, self._take("4sI") == (b"QEVM", 3), "not QEMU's")
        rule(1, self._take("B") == (7,), "no configuration")
        self._take(f"{self._take('I')[0]}s")
        capabilities, kind = [], self._take("B")[0]
        while kind == 5:
            subsection, version = self._name(), self._take("I")
            rule(1, version == (1,), f"version {version} of {subsection}")
            if subsection == b"configuration/capabilities":
                capabilities += [self._name() for _ in range(self._take("I")[0])]
            else:
                rule(1, subsection in OTHER_SUBSECTIONS, f"subsection {subsection}")
                self._take(OTHER_SUBSECTIONS[subsection])
            kind = self._take("B")[0]
        rule(1, capabilities == [b"mapped-ram"], f"capabilities {capabilities}")
        return kind

    def blocks(self):
        rule(1, self._configuration() == 1, "no section's start behind the configuration")
        self._take("I")
        rule(1, self._name() == b"ram", "the first section is not RAM's")
        _, version, total = self._take("IIQ")
        rule(1, version == 4 and total % PAGE == 4 and total - 4 <= 1 << 46, "RAM's start")
        total, found = total - 4, []
        while total > 0:
            at, name, size = self._at, self._name(), self._take("Q")[0]
            one, page_bytes, bitmap, pages = self._take("IQQQ")
            rule(1, (one, page_bytes) == (1, PAGE) and 0 < size <= total, "a block's header")
            found.append(Block(name, size, at, bitmap, pages))
            total, self._at = total - size, pages + size
        return found


class MappedImage(Image):
    """As reader.Image; the rules that are others in this layout stand here."""

    def __init__(self, fd, base_offset=0, header_bytes=0):
        self._fd, self._base, self._header_bytes = fd, base_offset, header_bytes
        self.blocks = QemuReader(fd, base_offset + header_bytes).blocks()
        first = self.blocks[0]
        self.head_offset = round_up(first.bitmap_offset - base_offset + bitmap_bytes(first.bytes), PAGE)
        data = self._read(self.head_offset, reader.HEAD_BYTES)
        self.head = check_head(data, max(os.lseek(fd, 0, os.SEEK_END) - base_offset, 0))
        self._check_state(False)
        self.regions = self._table(self.head.regions, reader.Region)
        self.streams = self._table(self.head.streams, reader.Stream)
        self.extents = self._table(self.head.extents, reader.Extent)
        check_tables(self.head, self.head_offset, self.regions, self.streams, self.extents)
        self._check_agreement()

    def _area(self, area):
        if area is self.head.header:
            return self._read(area.offset, area.bytes)  # vouched for by nothing
        return super()._area(area)

    def _check_agreement(self):
        rule(29, self.head.header.bytes == self._header_bytes, "the header's area")
        rule(29, len(self.regions) == len(self.blocks), "regions and blocks")
        end = self._header_bytes
        for region, block, extent in zip(self.regions, self.blocks, self.extents):
            rule(29, (name_of(region), region.bytes, region.bitmap.offset, region.pages_offset)
                 == (block.name, block.bytes, block.bitmap_offset - self._base, block.pages_offset - self._base),
                 "a region that is not QEMU's block")
            rule(29, (extent.offset, extent.offset + extent.bytes) == (end, region.bitmap.offset), "an extent")
            end = region.pages_offset + region.bytes
        tail = self.extents[len(self.regions):]
        rule(29, tail, "no tail")
        for extent in tail:
            rule(29, extent.offset == end, "an extent of the tail")
            end += extent.bytes
        rule(29, end == self.head.image_bytes, "image_bytes")


def _check_counts(head):
    reader.check_counts(head)
    rule(9, head.region_count >= 1 and head.stream_count == 1, "counts")


def check_head(data, available):
    head = reader.check_head(data, available, LAYOUT_MAPPED_RAM, _check_counts)
    rule(13, head.header.crc32c == 0, "the header's CRC")
    return head


def check_tables(head, head_offset, regions, streams, extents):
    for region in regions:
        reader.check_name_flags_reserved(head, region, 3 | IN_STREAM, (region.bitmap, region.checksums))
        _check_region(head, region)
    for stream in streams:
        reader.check_name_flags_reserved(head, stream, reader.HAS_CHECKSUMS, ())
    for extent in extents:
        _check_extent(head, extent)
    stream = streams[0]
    rule(24, lies_in(stream.first_extent, stream.extent_count, len(extents)), "a stream's extents")
    rule(25, stream.first_extent == 0 and stream.extent_count == len(extents), "an extent without a stream")
    rule(26, sum(extent.bytes for extent in extents) == stream.bytes, "the stream's length")
    reader.check_unique(regions)
    rule(28, lies_in(head_offset, reader.HEAD_BYTES, head.image_bytes), "the head's place")
    reader.check_overlaps(head, regions, extents, head_offset)


def _check_region(head, region):
    reader.check_region_sizes(region)
    rule(20, lies_in(region.bitmap.offset, region.bitmap.bytes, head.image_bytes), "a bitmap's place")
    rule(20, reader.well_placed(region.checksums.offset, region.checksums.bytes, head.image_bytes), "checksums' place")
    rule(21, reader.well_placed(region.pages_offset, region.bytes, head.image_bytes), "the page area's place")


def _check_extent(head, extent):
    rule(16, extent.checksums.reserved == 0, "reserved bytes")
    rule(22, 1 <= extent.bytes <= reader.EXTENT_BYTES_MAX and lies_in(extent.offset, extent.bytes, head.image_bytes),
         "an extent")
    rule(23, extent.checksums.bytes == checksum_bytes(extent.bytes) and extent.checksums.offset % 4 == 0
         and lies_in(extent.checksums.offset, extent.checksums.bytes, head.image_bytes), "an extent's checksums")


def reseal(image, head_offset):
    """Makes the CRCs of head and tables right again, after somebody changed bytes of them."""
    head = Head.unpack(bytes(image[head_offset:head_offset + reader.HEAD_BYTES]))
    for at, area in ((96, head.regions), (120, head.streams), (144, head.extents)):
        if area.bytes and area.offset + area.bytes <= len(image):
            struct.pack_into("<I", image, head_offset + at + 16,
                             crc32c(image[area.offset:area.offset + area.bytes]))
    struct.pack_into("<I", image, head_offset + 4092, crc32c(image[head_offset:head_offset + 4092]))
