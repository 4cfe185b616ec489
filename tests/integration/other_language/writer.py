# SPDX-License-Identifier: LGPL-2.1-or-later
"""A writer of container images, from docs/image-format.md alone. It builds an image in memory, so keep it small.

Where the parts of an image stand is a writer's choice; it is made by one of the two functions `as_diohelper` and
`scattered`. The second does everything that a reader must not be astonished at.
"""

import struct
from typing import NamedTuple

import reader
from reader import CHUNK, HEAD_BYTES, PAGE, bitmap_bytes, checksum_bytes, crc32c, round_up


class RegionSource(NamedTuple):
    number: int
    name: bytes
    bytes: int
    pages: dict  # page number -> 4096 bytes: those that shall be present
    guest_address: "int | None" = None
    checksums: bool = True


class StreamSource(NamedTuple):
    number: int
    name: bytes
    extents: tuple  # of bytes
    checksums: bool = True


class Part(NamedTuple):
    """A stretch of the image that needs a place: `room` bytes from a multiple of `alignment` on."""

    key: tuple
    room: int
    alignment: int = PAGE


def as_diohelper(parts):
    """The places that the page's section "Where a writer puts things" gives, and image_bytes."""
    places, end, fixed = {}, HEAD_BYTES, True
    for part in sorted(parts, key=lambda part: _ORDER.index(part.key[0])):
        if fixed and part.key[0] == "extent":
            fixed, end = False, round_up(end, CHUNK)
        places[part.key] = round_up(end, part.alignment)
        end = places[part.key] + part.room
    return places, round_up(end, CHUNK) if fixed else end


_ORDER = ("header", "regions", "streams", "extents", "tables", "pages", "extent")


def scattered(parts):
    """Last things first, a gap after everything, extents' checksums behind their data."""
    places, end = {}, HEAD_BYTES + PAGE
    for part in reversed(parts):
        places[part.key] = round_up(end, part.alignment)
        end = places[part.key] + part.room + PAGE + 1
    return places, end


class Writer:
    """Makes one image out of its sources. `filler` is the byte that stands where nothing has a meaning."""

    def __init__(self, header, regions, streams, filler=0):
        self.header, self.regions, self.streams, self.filler = header, regions, streams, filler

    def _parts(self):
        parts = [Part(("header",), len(self.header)), Part(("regions",), len(self.regions) * reader.REGION.size),
                 Part(("streams",), len(self.streams) * reader.STREAM.size)]
        # Room for all extents that there can be, as diohelper does it: it does not know beforehand how many will come.
        parts.append(Part(("extents",), reader.EXTENTS_MAX * reader.EXTENT.size if self.streams else 0))
        for index, region in enumerate(self.regions):
            parts.append(Part(("tables", index, "bitmap"), bitmap_bytes(region.bytes)))
            parts.append(Part(("tables", index, "checksums"), checksum_bytes(region.bytes)))
            parts.append(Part(("pages", index), region.bytes, CHUNK))
        for index, data in enumerate(self._all_extents()):
            parts.append(Part(("extent", index, "checksums"), checksum_bytes(len(data))))
            parts.append(Part(("extent", index, "data"), len(data)))
        return [part for part in parts if part.room]

    def _all_extents(self):
        return [data for stream in self.streams for data in stream.extents]

    def build(self, place, state=reader.COMPLETE, compatible=0):
        self.places, size = place(self._parts())
        self.image = bytearray([self.filler]) * size
        areas = [self._put(("header",), self.header), self._put(("regions",), self._region_table()),
                 self._put(("streams",), self._stream_table()), self._put(("extents",), self._extent_table())]
        self.image[:HEAD_BYTES] = self._head(areas, state, compatible)
        return self.image

    def _put(self, key, data):
        """Puts an area's bytes in their place and gives the area's fields."""
        if not data:
            return 0, 0, 0, 0
        offset = self.places[key]
        self.image[offset:offset + len(data)] = data
        return offset, len(data), crc32c(data), 0

    def _put_checksums(self, key, crcs, wanted):
        if wanted:
            return self._put(key, struct.pack(f"<{len(crcs)}I", *crcs))
        # The area is there, but nothing in it has a meaning, and neither has its CRC.
        return self.places[key], 4 * len(crcs), 0xBADBAD, 0

    def _region_table(self):
        return b"".join(self._region(index, region) for index, region in enumerate(self.regions))

    def _region(self, index, region):
        bits, crcs = 0, [0] * (checksum_bytes(region.bytes) // 4)
        pages_offset = self.places["pages", index]
        for page in sorted(region.pages):
            bits |= 1 << page
            crcs[page * PAGE // CHUNK] = crc32c(region.pages[page], crcs[page * PAGE // CHUNK])
            self.image[pages_offset + page * PAGE:pages_offset + (page + 1) * PAGE] = region.pages[page]
        bitmap = self._put(("tables", index, "bitmap"), bits.to_bytes(bitmap_bytes(region.bytes), "little"))
        checksums = self._put_checksums(("tables", index, "checksums"), crcs, region.checksums)
        known = region.guest_address is not None
        flags = (reader.GUEST_ADDRESS_KNOWN if known else 0) | (reader.HAS_CHECKSUMS if region.checksums else 0)
        return reader.REGION.pack(region.number, flags, region.bytes, region.guest_address if known else 0,
                                  pages_offset, len(region.pages), *bitmap, *checksums, region.name, b"")

    def _stream_table(self):
        table, first = b"", 0
        for stream in self.streams:
            table += reader.STREAM.pack(stream.number, reader.HAS_CHECKSUMS if stream.checksums else 0,
                                        sum(map(len, stream.extents)), first, len(stream.extents), stream.name, b"")
            first += len(stream.extents)
        return table

    def _extent_table(self):
        wanted = [stream.checksums for stream in self.streams for _ in stream.extents]
        table = b""
        for index, data in enumerate(self._all_extents()):
            crcs = [crc32c(data[at:at + CHUNK]) for at in range(0, len(data), CHUNK)]
            checksums = self._put_checksums(("extent", index, "checksums"), crcs, wanted[index])
            offset = self.places["extent", index, "data"]
            self.image[offset:offset + len(data)] = data
            table += reader.EXTENT.pack(offset, len(data), *checksums)
        return table

    def _head(self, areas, state, compatible):
        counts = len(self.regions), len(self.streams), len(self._all_extents())
        head = reader.HEAD.pack(reader.MAGIC, reader.VERSION, state, 0, compatible, reader.LAYOUT_CONTAINER, PAGE,
                                CHUNK, *counts, len(self.image),
                                *(field for area in areas for field in area), b"", 0)
        return head[:4092] + struct.pack("<I", crc32c(head[:4092]))


def reseal(image):
    """Makes the CRCs of the head and of the tables right again, after somebody changed bytes of them."""
    head = reader.Head.unpack(bytes(image[:HEAD_BYTES]))
    for at, area in ((96, head.regions), (120, head.streams), (144, head.extents)):
        if area.bytes and area.offset + area.bytes <= len(image):
            crc = crc32c(image[area.offset:area.offset + area.bytes])
            struct.pack_into("<I", image, at + 16, crc)
    struct.pack_into("<I", image, 4092, crc32c(image[:4092]))
