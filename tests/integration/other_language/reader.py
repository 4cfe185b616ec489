# SPDX-License-Identifier: LGPL-2.1-or-later
"""A reader of diohelper's container images, written from docs/image-format.md alone.

It keeps all 28 rules of that page. It knows nothing of the helper, and nothing of where a writer usually puts things.
"""

import os
import struct
from typing import NamedTuple

MAGIC = b"diohelper record"
VERSION = 0x80000001
PARTIAL, COMPLETE, WRITTEN = 1, 2, 3
LAYOUT_CONTAINER = 2
PAGE = 4096
CHUNK = 1 << 20
PAGES_OF_CHUNK = CHUNK // PAGE

GUEST_ADDRESS_KNOWN = 1
HAS_CHECKSUMS = 2

HEAD_BYTES = 4096
REGIONS_MAX = 1024
STREAMS_MAX = 64
EXTENTS_MAX = 8192
REGION_BYTES_MAX = 1 << 46
EXTENT_BYTES_MAX = 1 << 30
HEADER_BYTES_MAX = 1 << 24
OFFSET_MAX = 1 << 62

AREA_FORMAT = "QQII"
HEAD = struct.Struct("<16sIIQQIIIIIIQ" + 4 * AREA_FORMAT + "3924sI")
REGION = struct.Struct("<IIQQQQ" + 2 * AREA_FORMAT + "256s40s")
STREAM = struct.Struct("<IIQII256s40s")
EXTENT = struct.Struct("<QQ" + AREA_FORMAT)
assert (HEAD.size, REGION.size, STREAM.size, EXTENT.size) == (4096, 384, 320, 40)


def _make_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _make_table()


def crc32c(data, crc=0):
    """CRC32C; the second argument continues: crc32c(b, crc32c(a)) == crc32c(a + b)."""
    table = _TABLE
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def round_up(value, unit):
    return (value + unit - 1) // unit * unit


def bitmap_bytes(region_bytes):
    return round_up(region_bytes // PAGE, 64) // 8


def checksum_bytes(data_bytes):
    return round_up(data_bytes, CHUNK) // CHUNK * 4


class Refused(Exception):
    """The image breaks a rule, its state is not accepted (rule 0), or a checksum does not match (rule 0)."""

    def __init__(self, rule, what):
        self.rule = rule
        super().__init__(f"rule {rule}: {what}" if rule else what)


def rule(number, holds, what):
    if not holds:
        raise Refused(number, what)


class Area(NamedTuple):
    offset: int
    bytes: int
    crc32c: int
    reserved: int


class Head(NamedTuple):
    magic: bytes
    version: int
    state: int
    incompatible: int
    compatible: int
    layout: int
    page_bytes: int
    chunk_bytes: int
    region_count: int
    stream_count: int
    extent_count: int
    image_bytes: int
    header: Area
    regions: Area
    streams: Area
    extents: Area
    reserved: bytes
    crc32c: int

    @classmethod
    def unpack(cls, data):
        fields = HEAD.unpack(data)
        return cls(*fields[:12], *_areas(fields[12:28]), *fields[28:])


class Region(NamedTuple):
    number: int
    flags: int
    bytes: int
    guest_address: int
    pages_offset: int
    present_pages: int
    bitmap: Area
    checksums: Area
    name: bytes
    reserved: bytes

    @classmethod
    def unpack(cls, data):
        fields = REGION.unpack(data)
        return cls(*fields[:6], *_areas(fields[6:14]), *fields[14:])


class Stream(NamedTuple):
    number: int
    flags: int
    bytes: int
    first_extent: int
    extent_count: int
    name: bytes
    reserved: bytes

    @classmethod
    def unpack(cls, data):
        return cls(*STREAM.unpack(data))


class Extent(NamedTuple):
    offset: int
    bytes: int
    checksums: Area

    @classmethod
    def unpack(cls, data):
        fields = EXTENT.unpack(data)
        return cls(*fields[:2], *_areas(fields[2:]))


def _areas(fields):
    return [Area(*fields[at:at + 4]) for at in range(0, len(fields), 4)]


def lies_in(offset, size, limit):
    return offset <= limit and size <= limit - offset


def well_placed(offset, size, limit):
    return lies_in(offset, size, limit) and offset % PAGE == 0


# The head: rules 1 to 13.


def check_counts(head):
    rule(9, head.region_count <= REGIONS_MAX and head.stream_count <= STREAMS_MAX
         and head.extent_count <= EXTENTS_MAX, "too many entries")
    rule(9, head.stream_count or not head.extent_count, "extents without streams")


def check_head(data, available, layout=LAYOUT_CONTAINER, check_counts=check_counts):
    """The head, checked. `available` is what the file or device has from the base offset on."""
    rule(1, data[:16] == MAGIC, "not an image")
    rule(2, crc32c(data[:4092]) == struct.unpack_from("<I", data, 4092)[0], "the head is damaged")
    head = Head.unpack(data)
    rule(3, head.version == VERSION, "a version that this reader does not know")
    rule(4, head.incompatible == 0, "a feature that this reader does not know")
    rule(5, head.layout == layout, "a layout that this reader does not know")
    areas = (head.header, head.regions, head.streams, head.extents)
    # A compatible feature may give meaning to bytes that are reserved today.
    if not head.compatible:
        rule(6, not any(head.reserved) and not any(area.reserved for area in areas), "reserved bytes")
    rule(7, head.state in (PARTIAL, COMPLETE, WRITTEN), "an unknown state")
    rule(8, (head.page_bytes, head.chunk_bytes) == (PAGE, CHUNK), "sizes of page and chunk")
    check_counts(head)
    rule(10, HEAD_BYTES <= head.image_bytes <= OFFSET_MAX, "image_bytes")
    rule(11, head.state == PARTIAL or head.image_bytes <= available, "the image is truncated")
    rule(12, head.header.bytes <= HEADER_BYTES_MAX
         and head.regions.bytes == head.region_count * REGION.size
         and head.streams.bytes == head.stream_count * STREAM.size
         and head.extents.bytes == head.extent_count * EXTENT.size, "the size of an area")
    for area in areas:
        _check_head_area(head, area)
    return head


def _check_head_area(head, area):
    if area.bytes:
        rule(13, well_placed(area.offset, area.bytes, head.image_bytes), "an area's place")
        return
    rule(13, area.crc32c == 0, "an empty area's CRC")
    highest = head.image_bytes if area is head.extents else 0
    rule(13, area.offset <= highest, "an empty area's offset")


# The tables: rules 14 to 28.


def check_tables(head, regions, streams, extents):
    rule(17, sum(region.bytes for region in regions) <= REGION_BYTES_MAX, "the regions' sizes together")
    for region in regions:
        check_name_flags_reserved(head, region, GUEST_ADDRESS_KNOWN | HAS_CHECKSUMS,
                                   (region.bitmap, region.checksums))
        _check_region(head, region)
    for stream in streams:
        check_name_flags_reserved(head, stream, HAS_CHECKSUMS, ())
    for extent in extents:
        _check_extent(head, extent)
    _check_streams(streams, extents)
    check_unique(regions)
    check_unique(streams)
    check_overlaps(head, regions, extents)


def check_name_flags_reserved(head, entry, known_flags, areas):
    rule(14, 0 < entry.name.find(b"\0"), "a name")
    rule(15, not entry.flags & ~known_flags, "an unknown flag")
    if not head.compatible:
        rule(16, not any(entry.reserved) and not any(area.reserved for area in areas), "reserved bytes")


def check_region_sizes(region):
    rule(17, region.bytes % PAGE == 0 and PAGE <= region.bytes <= REGION_BYTES_MAX, "a region's size")
    rule(18, region.present_pages <= region.bytes // PAGE, "present_pages")
    rule(19, region.bitmap.bytes == bitmap_bytes(region.bytes), "a bitmap's length")
    rule(19, region.checksums.bytes == checksum_bytes(region.bytes), "the length of a region's checksums")


def _check_region(head, region):
    check_region_sizes(region)
    for area in (region.bitmap, region.checksums):
        rule(20, well_placed(area.offset, area.bytes, head.image_bytes), "the place of bitmap or checksums")
    rule(21, lies_in(region.pages_offset, region.bytes, head.image_bytes) and region.pages_offset % CHUNK == 0,
         "the page area's place")


def _check_extent(head, extent):
    if not head.compatible:
        rule(16, extent.checksums.reserved == 0, "reserved bytes")
    rule(22, 1 <= extent.bytes <= EXTENT_BYTES_MAX, "an extent's size")
    rule(22, well_placed(extent.offset, extent.bytes, head.image_bytes), "an extent's place")
    rule(23, extent.checksums.bytes == checksum_bytes(extent.bytes)
         and well_placed(extent.checksums.offset, extent.checksums.bytes, head.image_bytes),
         "an extent's checksums")


def _check_streams(streams, extents):
    owners = [0] * len(extents)
    for stream in streams:
        rule(24, lies_in(stream.first_extent, stream.extent_count, len(extents)), "a stream's extents")
        mine = range(stream.first_extent, stream.first_extent + stream.extent_count)
        for index in mine:
            owners[index] += 1
            rule(25, index == mine[-1] or extents[index].bytes % CHUNK == 0, "an extent that is no multiple of 1 MiB")
        rule(26, sum(extents[index].bytes for index in mine) == stream.bytes, "a stream's length")
    rule(25, all(count == 1 for count in owners), "an extent without a stream, or with two")


def check_unique(entries):
    rule(27, len({entry.number for entry in entries}) == len(entries), "a number twice")
    rule(27, len({name_of(entry) for entry in entries}) == len(entries), "a name twice")


def check_overlaps(head, regions, extents, head_offset=0):
    ranges = [(head_offset, HEAD_BYTES)]
    areas = [head.header, head.regions, head.streams, head.extents]
    for region in regions:
        areas += (region.bitmap, region.checksums)
        ranges.append((region.pages_offset, region.bytes))
    for extent in extents:
        areas.append(extent.checksums)
        ranges.append((extent.offset, extent.bytes))
    ranges += [(area.offset, area.bytes) for area in areas if area.bytes]
    ranges.sort()
    for (offset, size), (following, _) in zip(ranges, ranges[1:]):
        rule(28, offset + size <= following, "parts that overlap")


def name_of(entry):
    return entry.name.partition(b"\0")[0]


class Image:
    """An image, opened: head and tables have passed all rules, and the state is accepted."""

    def __init__(self, fd, base_offset=0, accept_written=False):
        self._fd = fd
        self._base = base_offset
        available = max(os.lseek(fd, 0, os.SEEK_END) - base_offset, 0)
        data = os.pread(fd, HEAD_BYTES, base_offset)
        rule(1, len(data) == HEAD_BYTES, "no image: too short")
        self.head = check_head(data, available)
        self._check_state(accept_written)
        self.regions = self._table(self.head.regions, Region)
        self.streams = self._table(self.head.streams, Stream)
        self.extents = self._table(self.head.extents, Extent)
        check_tables(self.head, self.regions, self.streams, self.extents)
        if self.head.state == WRITTEN:
            rule(0, all(entry.flags & HAS_CHECKSUMS for entry in self.regions + self.streams),
                 "the image was never synced, and does not have all checksums")

    def _check_state(self, accept_written):
        rule(0, self.head.state != PARTIAL, "the image is partial")
        rule(0, self.head.state == COMPLETE or accept_written, "the image was never synced")

    def _read(self, offset, size):
        parts = []
        while size:
            part = os.pread(self._fd, size, self._base + offset)
            rule(0, part, "the file ends too early")
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return b"".join(parts)

    def _area(self, area):
        data = self._read(area.offset, area.bytes)
        rule(0, crc32c(data) == area.crc32c, f"the area at {area.offset:#x} is damaged")
        return data

    def _table(self, area, entry):
        size = {Region: REGION, Stream: STREAM, Extent: EXTENT}[entry].size
        data = self._area(area)
        return [entry.unpack(data[at:at + size]) for at in range(0, len(data), size)]

    def header(self):
        return self._area(self.head.header)

    def present(self, region):
        """The numbers of the present pages, ascending."""
        bits = int.from_bytes(self._area(region.bitmap), "little")
        rule(0, bits >> region.bytes // PAGE == 0, "bits behind the last page")
        pages = [page for page in range(region.bytes // PAGE) if bits >> page & 1]
        rule(0, len(pages) == region.present_pages, "present_pages is not the number of bits set")
        return pages

    def _checksums(self, flags, area):
        """The checksums, or None where they mean nothing."""
        if not flags & HAS_CHECKSUMS:
            return None
        data = self._area(area)
        return struct.unpack(f"<{len(data) // 4}I", data)

    def read_region(self, region):
        """The region's bytes, every chunk compared with its checksum."""
        data = bytearray(region.bytes)
        sums = self._checksums(region.flags, region.checksums)
        crcs = [0] * (checksum_bytes(region.bytes) // 4)
        for page in self.present(region):
            content = self._read(region.pages_offset + page * PAGE, PAGE)
            data[page * PAGE:(page + 1) * PAGE] = content
            if sums:
                crcs[page // PAGES_OF_CHUNK] = crc32c(content, crcs[page // PAGES_OF_CHUNK])
        rule(0, sums is None or tuple(crcs) == sums, "a region's chunk is damaged")
        return bytes(data)

    def read_stream(self, stream):
        """The stream's bytes, every chunk compared with its checksum."""
        parts = []
        for extent in self.extents[stream.first_extent:stream.first_extent + stream.extent_count]:
            data = self._read(extent.offset, extent.bytes)
            sums = self._checksums(stream.flags, extent.checksums)
            if sums is not None:
                crcs = tuple(crc32c(data[at:at + CHUNK]) for at in range(0, len(data), CHUNK))
                rule(0, crcs == sums, "a stream's chunk is damaged")
            parts.append(data)
        return b"".join(parts)
