#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# timeout: 120
#
# docs/protocol.md and docs/image-format.md are enough to write a manager, a reader and a writer: those in
# other_language/ were made from these pages alone, and here they meet the real helper. Where one of them stumbles,
# either the page or the helper is wrong.

import contextlib
import fcntl
import os
import random
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import traceback
from unittest import mock

HERE = os.path.dirname(os.path.abspath(__file__))
HELPER = os.path.abspath(os.environ.get("DIOHELPER") or os.path.join(HERE, "../../build/diohelper"))
MIB = 1 << 20
PAGE = 4096

sys.dont_write_bytecode = True  # no __pycache__ in the source tree
sys.path[:0] = [os.path.join(HERE, "other_language"), HERE]


def skip(reason):
    print(f"skip: {reason}")
    sys.exit(77)


if sys.version_info < (3, 9):
    skip("Python 3.9 is needed (socket.send_fds)")
if not os.access(HELPER, os.X_OK):
    skip(f"there is no helper at {HELPER}")

import manager  # noqa: E402 (the path had to be set first)
import mapped_reader  # noqa: E402
import reader  # noqa: E402
import qemu_stream  # noqa: E402
import writer  # noqa: E402
from manager import Entry, HelperError, Session  # noqa: E402

DICE = random.Random(20)
ENOENT, EBADF, EEXIST, EINVAL, ERANGE, ENODATA, EPROTO, EBADMSG, EPROTONOSUPPORT, EOPNOTSUPP, ESTALE, ECANCELED = (
    2, 9, 17, 22, 34, 61, 71, 74, 93, 95, 116, 125)

RAM = Entry(manager.REGION, 3, b"pc.ram", 5 * MIB + 2 * PAGE, manager.GUEST_ADDRESS, 0x100000000)
VGA = Entry(manager.REGION, 0xFFFFFFFF, "vga.v\u00e4m".encode(), MIB, manager.GUEST_ADDRESS, 0xFD000000)
DEVICES = Entry(manager.STREAM_ENTRY, 3, b"device state")
VGA_IN_MEMORY = 3 * PAGE  # where the second region begins in its memory: it need not be 0
DEVICE_STATE = DICE.randbytes(MIB + 300 * 1000 + 7)
PATCH_OFFSET = 4088


def header_with(word):
    return b"manager's header " + bytes(range(256)) * 15 + b"." * 231 + word + b"e" * 904


HEADER_BEFORE, HEADER_AFTER = header_with(b"PARTIAL!"), header_with(b"COMPLETE")
assert len(HEADER_BEFORE) == 5000 and HEADER_BEFORE[PATCH_OFFSET:PATCH_OFFSET + 8] == b"PARTIAL!"


# Guest memory.


class Memory:
    """A memfd with data, zero and hole pages, and what it holds."""

    def __init__(self, size, content=()):
        self.fd = os.memfd_create("memory")
        self.size = size
        os.ftruncate(self.fd, size)
        for page, data in dict(content).items():
            os.pwrite(self.fd, data, page * PAGE)

    def read(self, offset=0, size=None):
        return os.pread(self.fd, self.size if size is None else size, offset)

    def close(self):
        os.close(self.fd)


def mixed_pages(count):
    """Data, zeros and holes in turn; chunk 2 is one hole, and the last page is data."""
    pages = {page: (DICE.randbytes(PAGE) if page % 5 < 2 else bytes(PAGE)) for page in range(count)
             if page % 5 < 3 and page // 256 != 2}
    pages[count - 1] = b"\x80" + bytes(PAGE - 2) + b"\x01"
    return pages


RAM_PAGES = mixed_pages(RAM.bytes // PAGE)
VGA_PAGES = {page: bytes([page ^ 0x80]) * PAGE for page in range(0, 256, 51)}


def present(pages):
    return {page: data for page, data in pages.items() if any(data)}


def content(size, pages):
    data = bytearray(size)
    for page, some in pages.items():
        data[page * PAGE:(page + 1) * PAGE] = some
    return bytes(data)


RAM_CONTENT, VGA_CONTENT = content(RAM.bytes, RAM_PAGES), content(VGA.bytes, VGA_PAGES)


def guest_memories():
    shift = VGA_IN_MEMORY // PAGE
    return (Memory(RAM.bytes, RAM_PAGES),
            Memory(VGA_IN_MEMORY + VGA.bytes, {page + shift: data for page, data in VGA_PAGES.items()}))


# Pipes: the other end is a thread's business, since neither side of a pipe may wait for the other.


class Feeder:
    """The writing end of a pipe, which gives the data and then, if wanted, the end."""

    def __init__(self, data, then_close=True):
        self.read_end, self._write_end = os.pipe()
        self._data, self._then_close = data, then_close
        self._thread = threading.Thread(target=self._feed, daemon=True)
        self._thread.start()

    def _feed(self):
        rest = memoryview(self._data)
        while rest:
            rest = rest[self.write(rest):]
        if self._then_close:
            self.close()

    def write(self, data):
        return os.write(self._write_end, data)

    def close(self):
        os.close(self._write_end)

    def join(self):
        self._thread.join(30)


class Drain:
    """The reading end of a pipe, read to its end."""

    def __init__(self):
        self._read_end, self.write_end = os.pipe()
        self._parts = []
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def _drain(self):
        while part := os.read(self._read_end, 65536):
            self._parts.append(part)
        os.close(self._read_end)

    def data(self):
        self._thread.join(30)
        check(not self._thread.is_alive(), "the helper closes a stream that it has loaded")
        return b"".join(self._parts)


# Checks.


def check(condition, what):
    if not condition:
        raise AssertionError(f"not so: {what}")


def check_equal(got, expected, what):
    if got != expected:
        raise AssertionError(f"{what}: {got!r:.300} instead of {expected!r:.300}")


def refused(code, function, *arguments, **keywords):
    """Wants an error of that code, and returns it."""
    try:
        result = function(*arguments, **keywords)
    except HelperError as error:
        check_equal(error.code, code, f"code of {error}")
        check(error.text and not error.text.endswith("\n"), "an error has a sentence, without a newline")
        return error
    raise AssertionError(f"{function.__name__} succeeded with {result!r}; expected error {code}")


def check_ends(session, status):
    session.expect_end()
    check_equal(session.exit_status(), status, f"exit status ({session.complaint().strip()!r})")


# Files.


class ImageFile:
    """An image's descriptors: buffered, if wanted another one with O_DIRECT, and the directory."""

    def __init__(self, path, writable, direct):
        self.path = path
        flags = (os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY) | os.O_CLOEXEC
        self.buffered = os.open(path, flags, 0o600)
        self.direct = open_direct(path, flags) if direct else None
        self.directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY) if writable else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for fd in (self.buffered, self.direct, self.directory):
            if fd is not None:
                os.close(fd)


def open_direct(path, flags):
    try:
        return os.open(path, flags | os.O_DIRECT)
    except OSError:
        print("direct I/O is skipped: no O_DIRECT where the images stand")
        return None


def attach(session, image, direction, base_offset=0):
    reply = session.attach_image(direction, image.buffered, image.direct, image.directory, base_offset)
    check_equal(reply.kind, 1, "kind of the image")
    check_equal(reply.file_bytes, os.fstat(image.buffered).st_size, "the image's size")
    if image.direct is None:
        check_equal((reply.direct, reply.notes & manager.NOTE_LONE_BUFFERED), (0, manager.NOTE_LONE_BUFFERED),
                    "a lone buffered descriptor")
    else:
        excuses = reply.notes & (manager.NOTE_DIRECT_UNSUPPORTED | manager.NOTE_DIRECT_ALIGNMENT)
        check(bool(reply.direct) != bool(excuses), "direct I/O, or a note that says why not")


# A save.


def save(path, layout, entries, direct, base_offset=0):
    memories, feeder, spare = guest_memories(), Feeder(DEVICE_STATE), Feeder(b"")
    with ImageFile(path, True, direct) as image, Session(HELPER) as session:
        with manager.pidfd_of_this_process() as pidfd:
            session.hello(pidfd=pidfd, required=manager.LAYOUT_RAW | manager.LAYOUT_CONTAINER | manager.STREAM)
        attach(session, image, manager.SAVE, base_offset)
        attach_memories(session, memories)
        for number, stream in ((63, feeder), (0, spare)):
            check_equal(session.attach_stream(number, stream.read_end), 1, "kind of the stream")
            os.close(stream.read_end)
        sealed = session.seal()
        check_equal(bool(sealed.layers & manager.NOT_ROOT), sealed.uid != 0 and sealed.gid != 0, "layer NOT_ROOT")
        create(session, layout, entries)
        transfers = save_all(session)
        completions = [session.complete(transfer) for transfer in transfers]
        check_saved(completions)
        refused(EBADF, session.save_stream, 63, DEVICES.number)  # a stream serves one transfer,
        refused(EEXIST, session.save_stream, 0, DEVICES.number)  # and an entry is saved once
        table = session.get_table()
        session.complete(session.finish(0, b"COMPLETE", PATCH_OFFSET))
        check_ends(session, 0)
    feeder.join()
    for memory in memories:
        memory.close()
    return table


def attach_memories(session, memories):
    for number, memory in zip((0, 255), memories):
        kind, _, size, page_bytes = session.attach_memory(number, memory.fd)
        check_equal((kind, size, page_bytes), (1, memory.size, PAGE), "an attached memory")


def create(session, layout, entries):
    check_equal(session.create_image(layout, 2, 1, len(HEADER_BEFORE)).ready, 0, "ready after CREATE_IMAGE")
    ready = put_in_two_parts(session, entries)
    check_equal(ready.ready, 0 if layout == manager.RAW else 1, "ready after PUT_TABLE")
    # In ascending order, in two pieces, and something written again.
    refused(EINVAL, session.write_header, 1, b"gap")
    session.write_header(0, b"x" * 3000)
    ready = session.write_header(3000, HEADER_BEFORE[3000:])
    check_equal(ready.ready, 1, "ready after the header's last byte")
    session.write_header(0, HEADER_BEFORE[:3000])
    refused(ERANGE, session.write_header, 4999, b"xx")


def put_in_two_parts(session, entries):
    """PUT_TABLE in a split that nobody needs, the stream in front of the last region."""
    first, second, stream = entries
    payload = struct.pack("<II", 0, 2) + first.pack() + stream.pack()
    session.request(manager.PUT_TABLE, payload)
    payload = struct.pack("<II", 2, 1) + second.pack()
    return manager.CreateReply(*struct.unpack("<IIQQQ", session.request(manager.PUT_TABLE, payload)))


def save_all(session):
    """The first region in two transfers, which run at the same time; the second one; the stream."""
    split = 2 * MIB
    return [session.save_memory(0, RAM.number, split),
            session.save_memory(0, RAM.number, RAM.bytes - split, split, split),
            session.save_memory(255, VGA.number, VGA.bytes, VGA_IN_MEMORY),
            session.save_stream(63, DEVICES.number)]


def check_saved(completions):
    *memory, stream = completions
    for done in memory:
        check_equal(done.data_bytes + done.zero_bytes + done.hole_bytes, done.total_bytes, "sum of the byte counts")
    check_equal(memory[0].total_bytes + memory[1].total_bytes, RAM.bytes, "the first region's bytes")
    check_equal(memory[0].data_bytes + memory[1].data_bytes, len(present(RAM_PAGES)) * PAGE, "its present bytes")
    check_equal(memory[2].data_bytes, len(VGA_PAGES) * PAGE, "the second region's present bytes")
    check_equal(stream.total_bytes, len(DEVICE_STATE), "the stream's bytes")


# A load.


def load(path, direct, base_offset=0, layout=manager.DETECT, entries=(), fresh=True, accept=0):
    """Everything that the image holds, got by the helper: opened image, table, header, regions and stream."""
    memories = Memory(RAM.bytes), Memory(VGA_IN_MEMORY + VGA.bytes)
    if not fresh:
        for memory in memories:
            os.pwrite(memory.fd, b"\xaa" * memory.size, 0)
    drain = Drain()
    with ImageFile(path, False, direct) as image, Session(HELPER) as session:
        session.hello()
        attach(session, image, manager.LOAD, base_offset)
        attach_memories(session, memories)
        session.attach_stream(0, drain.write_end)
        os.close(drain.write_end)
        session.seal()
        opened, table = open_image(session, layout, entries, accept)
        header = session.read_header(opened.header_bytes)
        for transfer in load_all(session, manager.FRESH if fresh else 0):
            session.complete(transfer)
        session.complete(session.finish())
        check_ends(session, 0)
    regions = memories[0].read(), memories[1].read(VGA_IN_MEMORY)
    if not fresh:
        check_equal(memories[1].read(0, VGA_IN_MEMORY), b"\xaa" * VGA_IN_MEMORY, "memory in front of the region")
    for memory in memories:
        memory.close()
    return opened, table, header, regions, drain.data()


def open_image(session, layout, entries, accept):
    if layout != manager.RAW:
        opened = session.open_image(layout, accept)
        check_equal(opened.ready, 1, "ready after OPEN_IMAGE")
    else:
        opened = session.open_image(layout, 0, 2, 1, len(HEADER_BEFORE))
        check_equal((opened.ready, opened.state), (0, manager.UNKNOWN), "a raw image, opened")
        check_equal(session.put_table(list(entries)).ready, 1, "ready after PUT_TABLE")
    return opened, session.get_table()


def load_all(session, flags):
    return [session.load_memory(0, RAM.number, RAM.bytes, flags=flags),
            session.load_memory(255, VGA.number, VGA.bytes, VGA_IN_MEMORY, flags=flags),
            session.load_stream(0, DEVICES.number)]


def check_loaded(header, regions, stream):
    check(regions[0] == RAM_CONTENT, "the first region came back as it was")
    check(regions[1] == VGA_CONTENT, "the second region came back as it was")
    check(stream == DEVICE_STATE, "the stream came back as it was")
    check_equal(header, HEADER_AFTER, "the manager's header")


def check_table(table, image):
    """What the helper said of a container is what the reader found."""
    ram, vga, devices = table
    check_equal([(entry.number, entry.name, entry.guest_address, entry.bytes, entry.present_bytes, entry.image_offset)
                 for entry in (ram, vga)],
                [(entry.number, reader.name_of(entry), entry.guest_address, entry.bytes, entry.present_pages * PAGE,
                  entry.pages_offset) for entry in image.regions], "the regions in the table")
    check_equal((devices.number, devices.bytes, devices.present_bytes, devices.image_offset),
                (DEVICES.number, len(DEVICE_STATE), len(DEVICE_STATE), image.extents[0].offset), "the stream's entry")
    check_equal([entry.flags & manager.CHECKSUMS for entry in table], [manager.CHECKSUMS] * 3, "flags in the table")


# The tests.


def test_container(directory):
    """Saved by the helper, read by the reader, loaded by the helper."""
    for direct in (True, False):
        path = os.path.join(directory, f"container-{direct}")
        with open(path, "wb") as old:  # longer than the new image, and nothing of it may shine through
            old.write(b"\x55" * (12 * MIB))
        saved = save(path, manager.CONTAINER, (RAM, VGA, DEVICES), direct)
        image = check_by_reader(path)
        check_equal([entry.image_offset for entry in saved[:2]], [entry.pages_offset for entry in image.regions],
                    "the places that the save session named")
        opened, table, *loaded = load(path, direct, fresh=direct)
        check_equal((opened.layout, opened.state, opened.region_count, opened.stream_count, opened.image_bytes),
                    (manager.CONTAINER, manager.COMPLETE_STATE, 2, 1, image.head.image_bytes), "the opened image")
        check_table(table, image)
        check_loaded(*loaded)
        os.unlink(path)


def check_by_reader(path):
    fd = os.open(path, os.O_RDONLY)
    image = reader.Image(fd)
    check_equal(os.fstat(fd).st_size, image.head.image_bytes, "the file's size")
    ram, vga = image.regions
    check_equal((ram.number, ram.flags, ram.bytes, ram.guest_address, reader.name_of(ram)),
                (RAM.number, 3, RAM.bytes, RAM.guest_address, RAM.name), "the first region's entry")
    check_equal((vga.number, vga.name), (VGA.number, VGA.name.ljust(256, b"\0")), "the second region's entry")
    check_equal(image.present(ram), sorted(present(RAM_PAGES)), "the first region's present pages")
    check_equal(image.present(vga), sorted(VGA_PAGES), "the second region's present pages")
    check_loaded(image.header(), [image.read_region(region) for region in image.regions],
                 image.read_stream(image.streams[0]))
    check_places(image)
    os.close(fd)
    return image


def check_places(image):
    """Everything stands where the page says that diohelper puts it, and the tables are the same to the bit."""
    regions = [writer.RegionSource(entry.number, entry.name, entry.bytes, present(pages), entry.guest_address)
               for entry, pages in ((RAM, RAM_PAGES), (VGA, VGA_PAGES))]
    stream = writer.StreamSource(DEVICES.number, DEVICES.name, (DEVICE_STATE,))
    made = writer.Writer(HEADER_AFTER, regions, [stream]).build(writer.as_diohelper)
    check_equal(image.head, reader.Head.unpack(bytes(made[:PAGE])), "the head")


def worked_example(place=writer.as_diohelper, **arguments):
    pages = {0: b"\x11" * PAGE, 2: b"\x22" * PAGE, 257: b"\x33" * PAGE}
    region = writer.RegionSource(7, b"ram", 1056768, pages, 0x100000000)
    made = writer.Writer(b"example\n", [region], [writer.StreamSource(0, b"device", (b"hello",))])
    return made.build(place, **arguments)


def test_worked_example(_):
    """The page's example comes out byte for byte."""
    check_equal(reader.crc32c(b"123456789"), 0xE3069283, "CRC32C")
    check_equal(reader.crc32c(worked_example()), 0x97E7FBD5, "CRC32C of the worked example")


def python_image():
    """An image whose contents are the guest's, built as no helper would build it."""
    pages = dict(RAM_PAGES)  # its zero pages are present: nobody has to leave them out
    extents = DEVICE_STATE[:MIB], DEVICE_STATE[MIB:]
    return writer.Writer(
        HEADER_AFTER,
        [writer.RegionSource(RAM.number, RAM.name, RAM.bytes, pages, RAM.guest_address),
         writer.RegionSource(VGA.number, VGA.name, VGA.bytes, VGA_PAGES, None, checksums=False)],
        [writer.StreamSource(9, b"nothing", ()), writer.StreamSource(DEVICES.number, DEVICES.name, extents)],
        filler=0xEE)


def test_python_image(directory):
    """An image that was built in Python is loaded by the helper, wherever its parts stand."""
    path, base = os.path.join(directory, "python"), 3 * PAGE
    for place, direct in ((writer.scattered, True), (writer.as_diohelper, False)):
        made = python_image()
        with open(path, "wb") as file:
            file.write(b"\xee" * base + made.build(place))
        opened, table, *loaded = load(path, direct, base, fresh=False)
        check_equal((opened.state, opened.region_count, opened.stream_count, opened.image_bytes),
                    (manager.COMPLETE_STATE, 2, 2, len(made.image)), "the opened image")
        check_equal([entry.flags for entry in table], [3, 0, manager.CHECKSUMS, manager.CHECKSUMS], "flags")
        check_equal([entry.image_offset for entry in table],
                    [made.places["pages", 0], made.places["pages", 1], 0, made.places["extent", 0, "data"]], "places")
        check_loaded(*loaded)


def test_states(directory):
    """The states of an image, and what OPEN_IMAGE makes of them; a compatible feature."""
    path = os.path.join(directory, "states")
    with Opener(path) as opener:
        opener.put(worked_example(state=reader.PARTIAL))
        refused(ENODATA, opener.session.open_image)
        opener.put(worked_example(state=reader.WRITTEN))
        check_equal(reader.Image(opener.image.buffered, accept_written=True).head.state, reader.WRITTEN, "state")
        refused(ESTALE, opener.session.open_image)
        refused(EINVAL, opener.session.open_image, regions=1)
        opener.put(worked_example(place=writer.scattered, compatible=1 << 40))
        opened = opener.session.open_image(flags=manager.ACCEPT_WRITTEN | manager.INSPECT)
        check_equal(opened.compatible_features, 1 << 40, "compatible features")
        refused(EPROTO, opener.session.load_memory, 0, 7, MIB)
    with Opener(path) as opener:  # a FINISH that was killed when it had written the tables
        region = writer.RegionSource(7, b"ram", MIB, {0: b"\x11" * PAGE})
        opener.put(writer.Writer(b"", [region], []).build(writer.as_diohelper, state=reader.PARTIAL))
        opener.session.open_image(flags=manager.INSPECT)
        check_equal([entry.present_bytes for entry in opener.session.get_table()], [0], "what a partial image has")


def test_damage(directory):
    """Damaged pages, stream bytes and stream checksums are found, and named as the page says."""
    path = os.path.join(directory, "damage")
    streams = [writer.StreamSource(0, b"data", (b"hello",))]
    pages = {0: b"\x11" * PAGE, 257: b"\x33" * PAGE}
    made = writer.Writer(b"", [writer.RegionSource(7, b"ram", 1056768, pages)], streams)
    image = made.build(writer.scattered)
    check_damaged_table(path, image, made.places["extent", 0, "checksums"])
    for place in (made.places["pages", 0] + 257 * PAGE, made.places["extent", 0, "data"] + 4):
        image[place] ^= 1
    drain, memory = Drain(), Memory(2 * MIB)
    with open(path, "wb") as file:
        file.write(image)
    check_reader_finds_damage(path)
    with ImageFile(path, False, True) as files, Session(HELPER) as session:
        session.hello()
        attach(session, files, manager.LOAD)
        session.attach_memory(1, memory.fd)
        session.attach_stream(5, drain.write_end)
        os.close(drain.write_end)
        session.seal()
        session.open_image()
        error = refused(EBADMSG, session.complete, session.load_memory(1, 7, 1056768))
        check_equal((error.operation, error.object, error.number, error.offset),
                    (manager.OPERATION_CHECKSUM, manager.OBJECT_REGION, 7, MIB), "a damaged chunk")
        session.complete(session.load_memory(1, 7, MIB))
        error = refused(EBADMSG, session.complete, session.load_stream(5, 0))
        check_equal((error.operation, error.object, error.number, error.offset),
                    (manager.OPERATION_CHECKSUM, manager.OBJECT_STREAM, 5, 0), "a damaged stream")
        check_equal(drain.data(), b"", "nothing unchecked reaches a stream")
        session.complete(session.finish())
        check_ends(session, 0)
    memory.close()


def check_damaged_table(path, image, table):
    damaged = bytearray(image)
    damaged[table] ^= 1
    with Opener(path) as opener:
        opener.put(damaged)
        error = refused(EBADMSG, opener.session.open_image)
        check_equal((error.operation, error.object, error.offset),
                    (manager.OPERATION_CHECKSUM, manager.OBJECT_IMAGE, table), "damaged checksums of a stream")


def check_reader_finds_damage(path):
    fd = os.open(path, os.O_RDONLY)
    image = reader.Image(fd)
    readings = [(image.read_region, image.regions[0])] + [(image.read_stream, stream) for stream in image.streams]
    for read, entry in readings:
        try:
            read(entry)
        except reader.Refused as refusal:
            check("damaged" in str(refusal), f"refused because of damage, not: {refusal}")
            continue
        raise AssertionError(f"the reader does not find the damage in {reader.name_of(entry)}")
    os.close(fd)


class Opener:
    """A load session for OPEN_IMAGE, and a file whose contents change under it."""

    def __init__(self, path):
        open(path, "wb").close()
        self._file = open(path, "r+b", buffering=0)
        self.image = ImageFile(path, False, False)
        self.session = Session(HELPER)

    def __enter__(self):
        self.session.hello()
        attach(self.session, self.image, manager.LOAD)
        self.session.seal()
        return self

    def __exit__(self, *_):
        self.session.hang_up()
        status = self.session.exit_status()
        self.image.__exit__()
        self._file.close()
        check_equal(status, 0, "exit status of a load session that was hung up with nothing running")

    def put(self, image):
        os.ftruncate(self._file.fileno(), 0)
        os.pwrite(self._file.fileno(), image, 0)


# One way or more to break each rule: rule, errno, where, offset in it, format, value. Offsets "head", "regions",
# "streams" and "extents" are those of the page's structs; the CRCs are made right again unless `where` is "raw".
BREAKS = (
    (1, EBADMSG, "head", 0, "<B", 0x44),
    (2, EBADMSG, "raw", 4092, "<I", 0),
    (3, EOPNOTSUPP, "head", 16, "<I", 1),
    (4, EOPNOTSUPP, "head", 24, "<Q", 1 << 63),
    (5, EOPNOTSUPP, "head", 40, "<I", 3),
    (6, EBADMSG, "head", 4091, "<B", 1),
    (6, EBADMSG, "head", 72 + 20, "<I", 1),
    (7, EBADMSG, "head", 20, "<I", 0),
    (7, EBADMSG, "head", 20, "<I", 4),
    (8, EBADMSG, "head", 44, "<I", 8192),
    (8, EBADMSG, "head", 48, "<I", 0),
    (9, EBADMSG, "head", 52, "<I", 1025),
    (9, EBADMSG, "head", 56, "<I", 0),
    (10, EBADMSG, "head", 64, "<Q", 4095),
    (10, EBADMSG, "head", 64, "<Q", (1 << 62) + 1),
    (11, EBADMSG, "head", 64, "<Q", 3149830),
    (12, EBADMSG, "head", 80, "<Q", (1 << 24) + 1),
    (12, EBADMSG, "head", 104, "<Q", 383),
    (13, EBADMSG, "head", 72, "<Q", 4097),
    (13, EBADMSG, "head", 72, "<Q", 1 << 63),
    (14, EBADMSG, "regions", 88, "256s", b"r" * 256),
    (14, EBADMSG, "streams", 24, "<B", 0),
    (15, EBADMSG, "regions", 4, "<I", 7),
    (15, EBADMSG, "streams", 4, "<I", 3),
    (16, EBADMSG, "regions", 383, "<B", 1),
    (16, EBADMSG, "regions", 60, "<I", 1),
    (16, EBADMSG, "streams", 280, "<B", 1),
    (16, EBADMSG, "extents", 36, "<I", 1),
    (17, EBADMSG, "regions", 8, "<Q", 0),
    (17, EBADMSG, "regions", 8, "<Q", 1056769),
    (18, EBADMSG, "regions", 32, "<Q", 259),
    (19, EBADMSG, "regions", 48, "<Q", 48),
    (19, EBADMSG, "regions", 72, "<Q", 4),
    (20, EBADMSG, "regions", 40, "<Q", 344065),
    (20, EBADMSG, "regions", 64, "<Q", 1 << 62),
    (21, EBADMSG, "regions", 24, "<Q", 1048576 + PAGE),
    (21, EBADMSG, "regions", 24, "<Q", 3 * MIB),
    (22, EBADMSG, "extents", 8, "<Q", 0),
    (22, EBADMSG, "extents", 0, "<Q", 3149824 + PAGE),
    (23, EBADMSG, "extents", 24, "<Q", 8),
    (23, EBADMSG, "extents", 16, "<Q", 3145729),
    (24, EBADMSG, "streams", 16, "<I", 2),
    (24, EBADMSG, "streams", 20, "<I", 0xFFFFFFFF),
    (25, EBADMSG, "streams", 8, "<QII", (0, 1, 0)),
    (26, EBADMSG, "streams", 8, "<Q", 6),
    (28, EBADMSG, "regions", 24, "<Q", 0),
    (28, EBADMSG, "extents", 0, "<Q", 3145728),
)


def test_rules(directory):
    """Whatever breaks a rule is refused by the reader and by the helper, with the errno that the page gives."""
    good = bytes(worked_example())
    head = reader.Head.unpack(good[:4096])
    start = {"raw": 0, "head": 0, "regions": head.regions.offset, "streams": head.streams.offset,
             "extents": head.extents.offset}
    with Opener(os.path.join(directory, "rules")) as opener:
        for number, errno, where, offset, layout, value in BREAKS:
            image = bytearray(good)
            struct.pack_into(layout, image, start[where] + offset, *(value if isinstance(value, tuple) else (value,)))
            if where != "raw":
                writer.reseal(image)
            check_refused_by_both(opener, image, number, errno)
        for image in twins():
            check_refused_by_both(opener, image, 27, EBADMSG)
        opener.put(good)
        opener.session.open_image()


def twins():
    """Images in which a number or a name comes twice (rule 27)."""
    regions = [writer.RegionSource(number, name, MIB, {}) for number, name in ((1, b"a"), (1, b"b"), (2, b"a"))]
    streams = [writer.StreamSource(number, name, ()) for number, name in ((1, b"a"), (1, b"b"), (2, b"a"))]
    for pair in ((0, 1), (0, 2)):
        yield writer.Writer(b"", [regions[i] for i in pair], []).build(writer.scattered)
        yield writer.Writer(b"", [], [streams[i] for i in pair]).build(writer.scattered)


def check_refused_by_both(opener, image, number, errno):
    opener.put(image)
    try:
        reader.Image(opener.image.buffered)
    except reader.Refused as broken:
        check_equal(broken.rule, number, f"the reader's rule ({broken})")
    else:
        raise AssertionError(f"the reader accepts what breaks rule {number}")
    try:
        error = refused(errno, opener.session.open_image)
        check_equal(error.object, manager.OBJECT_IMAGE, f"object of {error}")
    except AssertionError as complaint:
        raise AssertionError(f"rule {number}: {complaint}") from None


def test_raw(directory):
    """The layout raw: the image is what the manager says, and nothing else."""
    path = os.path.join(directory, "raw")
    entries = (RAM._replace(image_offset=2 * PAGE), VGA._replace(image_offset=6 * MIB),
               DEVICES._replace(image_offset=8 * MIB + 123))
    for direct, base in ((True, 0), (False, 5 * PAGE)):
        with open(path, "wb") as old:  # zero and hole pages have to replace this
            old.write(b"\x55" * (10 * MIB))
        save(path, manager.RAW, entries, direct, base)
        check_raw_bytes(path, entries, base)
        stream = entries[2]._replace(bytes=len(DEVICE_STATE))
        _, table, *loaded = load(path, direct, base, manager.RAW, (*entries[:2], stream), fresh=direct)
        check_equal([entry.image_offset for entry in table], [entry.image_offset for entry in entries], "places")
        check_loaded(*loaded)


def check_raw_bytes(path, entries, base):
    with open(path, "rb") as file:
        check_equal(file.read(base), b"\x55" * base, "bytes in front of the base offset")
        image = file.read()
    check_equal(len(image), 10 * MIB - base, "the file, which is not made shorter")
    check_equal(image[:5000], HEADER_AFTER, "the raw header")
    for entry, data in zip(entries, (RAM_CONTENT, VGA_CONTENT, DEVICE_STATE)):
        check(image[entry.image_offset:entry.image_offset + len(data)] == data, f"{entry.name} stands in its place")


def test_hello_bytes(_):
    """HELLO and an error reply, as the page's examples write them out."""
    with Session(HELPER) as session:
        session.socket.send(bytes.fromhex("02000000 00000000 01000000 28000000  01000000 01000000"
                                          "1600000000000000 1200000000000000" + 32 * "0"))
        kind, flags, got_id, payload = session.receive()
        check_equal((kind, flags, got_id, len(payload)), (3, 0, 1, 40), "HELLO's reply")
        transfer = struct.pack("<IIQQQII", 1, 3, 0, 0, 1 << 32, 0, 0)
        session.send(manager.SAVE_MEMORY, transfer, request_id=5)
        kind, flags, got_id, payload = session.receive()
        check_equal(struct.pack("<IIII", kind, flags, got_id, len(payload)) + payload[:48],
                    bytes.fromhex("19000000 01000000 05000000 20010000 47000000 01000000 01000000 00000000"
                                  "ffffffff ffffffff 00000000 00000000 53415645 5f4d454d 4f525920 6973206e"),
                    "the error reply of the page's last example")


BROKEN_HELPER = """#!{python}
import os, socket, struct, sys
manager = socket.socket(fileno=int(sys.argv[2].partition("=")[2]))
manager.recv(65552)
error = struct.pack("<iIIIQQ256s", 5, 0, 1, 0, (1 << 64) - 1, 0, b"the engine is of no use any more")
manager.send(struct.pack("<IIII", 135, 0, 0, len(error)) + error)
sys.exit(1)
"""


def test_broken(directory):
    """A helper that cannot go on says why, and that is what the manager is told."""
    path = os.path.join(directory, "broken-helper")
    with open(path, "w", encoding="utf-8") as script:
        script.write(BROKEN_HELPER.format(python=sys.executable))
    os.chmod(path, 0o755)
    with Session(path) as session:
        try:
            session.hello()
        except manager.SessionEnded as end:
            check("the engine is of no use any more" in str(end) and "code 5" in str(end), f"why it has ended: {end}")
        else:
            raise AssertionError("HELLO was answered")
        check_equal(session.exit_status(), 1, "its exit status")


def test_late_request(directory):
    """A request that the helper leaves unread does not cost the manager the answer that came before."""
    with ImageFile(os.path.join(directory, "late"), True, False) as image, Session(HELPER) as session:
        session.hello()
        attach(session, image, manager.SAVE)
        session.seal()
        session.create_image(manager.CONTAINER, 0, 0, 0)
        transfer = session.finish()
        select.select([session.socket], [], [])
        with contextlib.suppress(BrokenPipeError):
            session.send(manager.CANCEL, bytes(8))
        session.process.wait()
        check_equal(session.wait(transfer).error, None, "the completion of FINISH")


def test_refused_attachment(directory):
    """A descriptor of an image that is refused has its flags as before."""
    with Session(HELPER, "--allow=label") as session:
        session.hello()
        fd = open_direct(os.path.join(directory, "refused"), os.O_RDWR | os.O_CREAT)
        if fd is None:
            return
        before = fcntl.fcntl(fd, fcntl.F_GETFL)
        never_direct = 2
        request = manager._ATTACH_IMAGE.pack(manager.DIRECT, manager.SAVE, never_direct, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0,
                                             b"no:such:label")
        try:
            session.request(manager.ATTACH_IMAGE, request, [fd])
        except HelperError:
            check_equal(fcntl.fcntl(fd, fcntl.F_GETFL), before, "the descriptor's flags")
        else:
            raise AssertionError("a label that cannot be was set")
        os.close(fd)


def test_sigbus(directory):
    """SIGBUS where no guest's memory is touched ends the helper, before the seal and behind it, with a word of why."""
    for sealed in (False, True):
        with ImageFile(os.path.join(directory, "sigbus"), True, False) as image, Session(HELPER) as session:
            session.hello()
            attach(session, image, manager.SAVE)
            if sealed:
                session.seal()
            session.process.send_signal(signal.SIGBUS)
            check_equal(session.exit_status(), 1, "its exit status")
            check("SIGBUS" in session.complaint(), f"why it has ended: {session.complaint()}")


def narrow_pair(*arguments):
    """A socket pair as where net.core.wmem_default is 65536: the longest message does not fit."""
    pair = REAL_PAIR(*arguments)
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768)  # the kernel doubles it
    return pair


REAL_PAIR = socket.socketpair


def test_little_room(directory):
    """The longest messages come through, however little the socket pair had room for when either side got it."""
    path, header = os.path.join(directory, "little-room"), DICE.randbytes(3 * manager.PAYLOAD_MAX)
    regions = [Entry(manager.REGION, number, b"region %d" % number, PAGE) for number in range(450)]
    piece = manager.PAYLOAD_MAX - 8
    with mock.patch.object(socket, "socketpair", narrow_pair):
        with ImageFile(path, True, False) as image, Session(HELPER) as session:
            session.hello()
            attach(session, image, manager.SAVE)
            session.seal()
            session.create_image(manager.CONTAINER, len(regions), 0, len(header))
            session.put_table(regions)
            for offset in range(0, len(header), piece):
                session.write_header(offset, header[offset:offset + piece])
            session.hang_up()
        with ImageFile(path, False, False) as image, Session(HELPER) as session:
            session.hello()
            attach(session, image, manager.LOAD)
            session.seal()
            session.open_image(flags=manager.INSPECT)
            check(session.read_header(len(header)) == header, "the header, 65536 bytes at a time")
            check_equal([entry.name for entry in session.get_table()], [entry.name for entry in regions], "the table")


def test_features_and_versions(_):
    """HELLO is refused for a feature or a version that is not to be had, and the session ends."""
    unknown = 1 << 40
    for offered in (0x37, 0x37 | unknown):
        with Session(HELPER) as session:
            error = refused(EOPNOTSUPP, session.hello, offered, manager.LAYOUT_CONTAINER | unknown)
            check_equal((error.operation, error.object, error.number, error.offset),
                        (manager.OPERATION_PROTOCOL, manager.OBJECT_SESSION, 0, manager.NO_OFFSET), "error of HELLO")
            check_ends(session, 1)
    with Session(HELPER) as session:
        refused(EPROTONOSUPPORT, session.hello, versions=(2, 9))
        check_ends(session, 1)
    with Session(HELPER) as session:
        refused(EINVAL, session.hello, versions=(2, 1))
        check_ends(session, 1)
    with Session(HELPER) as session:
        refused(EPROTO, session.status)
        check_ends(session, 1)


def test_refusals(directory):
    """Requests in the wrong phase or direction, unknown and malformed ones."""
    path = os.path.join(directory, "refusals")
    with ImageFile(path, True, False) as image, Session(HELPER) as session:
        session.hello()
        check_equal(session.status().phase, manager.PHASE_ATTACH, "phase")
        error = refused(EPROTO, session.seal)
        check_equal((error.operation, error.object), (manager.OPERATION_PROTOCOL, manager.OBJECT_SESSION),
                    "wrong phase")
        attach(session, image, manager.SAVE)
        refused(EEXIST, session.attach_image, manager.SAVE, image.buffered)
        refused(EINVAL, session.seal, 1 << 31)
        session.seal()
        check_equal(session.status().phase, manager.PHASE_READY, "phase")
        error = refused(EPROTO, session.open_image)
        check("OPEN_IMAGE" in error.text, "the text names the message")
        for unknown in (42, 127, 128, 130, 0xFFFFFFFF):
            refused(EOPNOTSUPP, session.request, unknown)
        refused(EINVAL, session.create_image, 9, 1, 0, 0)
        session.create_image(manager.CONTAINER, 1, 0, 0)
        refused(EINVAL, session.put_table, [RAM._replace(bytes=PAGE + 1)])
        session.put_table([RAM])
        check_equal(refused(ENOENT, session.save_memory, 1, RAM.number, RAM.bytes).operation,
                    manager.OPERATION_PROTOCOL, "operation")
        error = refused(ENODATA, session.finish)
        check_equal((error.object, error.number, error.offset), (manager.OBJECT_REGION, RAM.number, 0),
                    "what is missing")
        # An id of 0 is malformed, and that ends the session.
        session.send(manager.STATUS, request_id=0)
        refused(EBADMSG, session.reply, manager.STATUS, 0)
        check_ends(session, 1)


# The layout mapped-ram. QEMU's own name for the second region is that of a block that the stream brings.

PC_RAM = qemu_stream.Block("pc.ram", RAM.bytes, None, RAM.guest_address)
VGA_RAM = qemu_stream.Block("0000:00:02.0/vga.vram", VGA.bytes, VGA_PAGES, VGA.guest_address)
QEMU_STATE = DICE.randbytes(MIB + 4321)
LIBVIRT_AFTER = qemu_stream.libvirt_header("sparse", size=8192)
LIBVIRT_BEFORE = qemu_stream.libvirt_header("sparse", complete=False, size=8192)
NUMBER_OF_VGA = 0  # the lowest one that the table does not use


def save_mapped_ram(path, header, after, base_offset=0):
    """A save whose table says no more of pc.ram than QEMU does, the header's magic last."""
    feeder, memory = Feeder(qemu_stream.stream((PC_RAM, VGA_RAM), state=QEMU_STATE)), Memory(RAM.bytes, RAM_PAGES)
    with ImageFile(path, True, True) as image, Session(HELPER) as session:
        session.hello(offered=0xFF, required=manager.LAYOUT_MAPPED_RAM)
        attach(session, image, manager.SAVE, base_offset)
        session.attach_memory(0, memory.fd)
        session.attach_stream(63, feeder.read_end)
        os.close(feeder.read_end)
        session.seal()
        refused(ENOENT, session.create_image, manager.MAPPED_RAM, 1, 1, len(header), 5)
        for streams in (0, 2):
            refused(EINVAL, session.create_image, manager.MAPPED_RAM, 1, streams, len(header), 63)
        check_equal(session.create_image(manager.MAPPED_RAM, 1, 1, len(header), 63).ready, 0, "ready")
        check_equal(session.put_table([RAM, DEVICES]).ready, 1, "ready after PUT_TABLE")
        check_table_of_save(session)
        stream = session.save_stream(63, DEVICES.number)
        if header:
            session.write_header(0, header)
        check_equal(session.complete(stream).total_bytes, len(qemu_stream.stream((PC_RAM, VGA_RAM), state=QEMU_STATE)),
                    "the stream's bytes")
        session.complete(session.save_memory(0, RAM.number, RAM.bytes))
        session.complete(session.finish(0, after[:16], 0) if header else session.finish())
        check_ends(session, 0)
    feeder.join()
    memory.close()


def check_table_of_save(session):
    ram, vga, devices = session.get_table()
    check_equal((ram.number, ram.name, ram.bytes, ram.flags, ram.guest_address),
                (RAM.number, RAM.name, RAM.bytes, manager.GUEST_ADDRESS | manager.CHECKSUMS, RAM.guest_address), "pc.ram")
    check_equal((vga.number, vga.name, vga.bytes, vga.flags),
                (NUMBER_OF_VGA, VGA_RAM.name.encode(), VGA.bytes,
                 manager.GUEST_ADDRESS | manager.CHECKSUMS | manager.IN_STREAM), "the block that was not in the table")
    check_equal((devices.number, devices.name), (DEVICES.number, DEVICES.name), "the stream's entry")
    refused(EINVAL, session.save_memory, 0, NUMBER_OF_VGA, VGA.bytes)


def load_mapped_ram(path, base_offset=0, regions=()):
    """Memory of pc.ram, the residual stream, header, opened image and table."""
    memory, drain = Memory(RAM.bytes), Drain()
    with ImageFile(path, False, True) as image, Session(HELPER) as session:
        session.hello(offered=0xFF)
        attach(session, image, manager.LOAD, base_offset)
        session.attach_memory(0, memory.fd)
        session.attach_stream(0, drain.write_end)
        os.close(drain.write_end)
        session.seal()
        opened = session.open_image(manager.MAPPED_RAM if regions else manager.DETECT, regions=len(regions))
        check_equal(opened.ready, 0 if regions else 1, "ready after OPEN_IMAGE")
        if regions:
            check_equal(session.put_table(list(regions)).ready, 1, "ready after PUT_TABLE")
        table = session.get_table()
        header = session.read_header(opened.header_bytes)
        number = [entry.number for entry in table if entry.name == b"pc.ram"][0]
        session.complete(session.load_memory(0, number, RAM.bytes, flags=manager.FRESH))
        done = session.complete(session.load_stream(0, table[-1].number))
        check_equal((done.total_bytes, table[-1].bytes), (table[-1].bytes, done.data_bytes), "the stream's length")
        session.complete(session.finish())
        check_ends(session, 0)
    content_read = memory.read()
    memory.close()
    return opened, table, header, content_read, drain.data()


def check_mapped_by_reader(path, header, base_offset):
    """The reader finds what was saved, by the record as well as by QEMU's own headers."""
    fd = os.open(path, os.O_RDONLY)
    image = mapped_reader.MappedImage(fd, base_offset, len(header))
    ram, vga = image.regions
    check_equal(os.fstat(fd).st_size, base_offset + image.head.image_bytes, "the file's size")
    check_equal((ram.number, ram.flags, ram.guest_address), (RAM.number, 3, RAM.guest_address), "pc.ram's entry")
    check_equal((vga.number, vga.flags, vga.guest_address), (NUMBER_OF_VGA, 7, VGA.guest_address), "the other's entry")
    check_equal([block.pages_offset % mapped_reader.PAGES_ALIGNMENT for block in image.blocks], [0, 0], "alignment")
    check(image.read_region(ram) == RAM_CONTENT and image.read_region(vga) == VGA_CONTENT, "the pages")
    check_equal(image.header(), header, "the manager's header")
    check_equal(image.read_stream(image.streams[0]), expected_qemu_bytes(image.blocks), "QEMU's bytes")
    os.close(fd)
    return image


def expected_qemu_bytes(blocks):
    """Setup, and all else that came but pages: what the stream entry of the record holds."""
    out = qemu_stream.configuration(qemu_stream.MAPPED_RAM, "pc-q35-10.0") + qemu_stream.ram_start((PC_RAM, VGA_RAM))
    for block in blocks:
        out += bytes([len(block.name)]) + block.name
        out += struct.pack(">QIQQQ", block.bytes, 1, PAGE, block.bitmap_offset, block.pages_offset)
    return out + qemu_stream.SECTION_END + qemu_stream.sections_without_pages() + qemu_stream.devices(QEMU_STATE)


def test_mapped_ram(directory):
    """Composed by the helper, read by the reader, loaded by the helper: alone, and behind libvirt's header."""
    path = os.path.join(directory, "mapped-ram")
    for before, after, base in ((b"", b"", 0), (LIBVIRT_BEFORE, LIBVIRT_AFTER, 0), (b"", b"", 5 * PAGE)):
        with open(path, "wb") as old:
            old.write(b"\x55" * (12 * MIB))
        save_mapped_ram(path, before, after, base)
        image = check_mapped_by_reader(path, after, base)
        opened, table, header, ram, stream = load_mapped_ram(path, base)
        check_equal((opened.layout, opened.state, opened.region_count, opened.stream_count, opened.image_bytes),
                    (manager.MAPPED_RAM, manager.COMPLETE_STATE, 2, 1, image.head.image_bytes), "the opened image")
        check_equal([entry.flags for entry in table], [3, 7, manager.CHECKSUMS], "flags")
        check_equal(table[-1].image_offset, len(after), "where the stream's first extent starts")
        check_equal(header, after, "the manager's header")
        check_libvirt_told(opened, bool(after))
        check(ram == RAM_CONTENT, "pc.ram came back as it was")
        left = qemu_stream.residual_stream((PC_RAM, qemu_stream.with_zeros(VGA_RAM)), QEMU_STATE)
        check_equal(stream, left, "the stream that is left")


def check_libvirt_told(opened, there):
    told = (opened.header_kind, opened.header_format, opened.header_flags, opened.domain_memory_bytes,
            manager.unpack_text(opened.domain_uuid), manager.unpack_text(opened.domain_name))
    check_equal(told, (manager.HEADER_LIBVIRT, 6, 3, 64 * MIB, b"c7a5fdbd-edaf-9455-926a-d65c16db1809", b"guest")
                if there else (manager.HEADER_OPAQUE, 0, 0, 0, b"", b""), "libvirt's header")


def test_mapped_ram_of_qemu(directory):
    """QEMU's own image: as it is, all of it is in the stream; the table takes pc.ram out of it."""
    path = os.path.join(directory, "mapped-ram-of-qemu")
    blocks = PC_RAM._replace(pages=present(RAM_PAGES)), VGA_RAM
    wanted = RAM._replace(number=9)
    for header, base in ((b"", 3 * PAGE), (LIBVIRT_AFTER, 0)):
        pieces, size = qemu_stream.image(blocks, header, base, QEMU_STATE)
        qemu_stream.write_pieces(path, pieces)
        opened, table, got_header, ram, stream = load_mapped_ram(path, base)
        check_equal((opened.state, opened.region_count, opened.image_bytes),
                    (manager.COMPLETE_STATE if header else manager.UNKNOWN, 2, size), "the opened image")
        check_equal(([entry.flags for entry in table], got_header), ([manager.IN_STREAM, manager.IN_STREAM, 0], header),
                    "flags and header")
        check(table[-1].image_offset > opened.header_bytes, "without a record the stream's entry is QEMU's last bytes")
        check_libvirt_told(opened, bool(header))
        check(ram == RAM_CONTENT, "pc.ram as it was")
        check_equal(stream, qemu_stream.residual_stream(blocks, QEMU_STATE), "a plain migration stream")
        opened, table, _, ram, stream = load_mapped_ram(path, base, [wanted])
        check_equal([(entry.number, entry.flags) for entry in table],
                    [(9, manager.GUEST_ADDRESS), (0, manager.IN_STREAM), (0, 0)], "numbers and flags")
        check(ram == RAM_CONTENT, "pc.ram as it was")
        # Where the image does not know a guest address, and nobody gives it, it is 0: QEMU compares shared ones only.
        shared = PC_RAM, VGA_RAM._replace(guest_address=0)
        check_equal(stream, qemu_stream.residual_stream(shared, QEMU_STATE), "a stream without pc.ram's pages")


def test_mapped_ram_saved_over(directory):
    """What a save has emptied while it was open is not a guest of zeros."""
    path, memory = os.path.join(directory, "mapped-ram-saved-over"), Memory(RAM.bytes)
    pieces, _ = qemu_stream.image((PC_RAM._replace(pages=present(RAM_PAGES)), VGA_RAM), LIBVIRT_AFTER, 0, QEMU_STATE)
    qemu_stream.write_pieces(path, pieces)
    with ImageFile(path, False, True) as image, Session(HELPER) as session, Session(HELPER) as other:
        session.hello(offered=0xFF)
        attach(session, image, manager.LOAD)
        session.attach_memory(0, memory.fd)
        session.seal()
        session.open_image()
        with ImageFile(path, True, False) as again:
            other.hello()
            attach(other, again, manager.SAVE)
            other.seal()
            other.create_image(manager.CONTAINER, 1, 0, 0)
            other.put_table([RAM._replace(bytes=64 * MIB)])  # it is no shorter for that
        error = session.wait(session.load_memory(0, 0, RAM.bytes)).error
        check_equal((error.code, error.operation), (EBADMSG, manager.OPERATION_PARSE), f"COMPLETE: {error}")
    memory.close()


def test_mapped_ram_refusals(directory):
    """Streams and tables that do not fit each other; and before anything has been understood nothing is touched."""
    path, old = os.path.join(directory, "mapped-ram-refused"), b"an older image" * 1000
    good = qemu_stream.stream((PC_RAM, VGA_RAM))
    small, elsewhere = RAM._replace(bytes=MIB), RAM._replace(guest_address=4096)
    cases = ((good[:60], RAM, EBADMSG, manager.OBJECT_STREAM), (b"QEVN" + good[4:], RAM, EBADMSG, manager.OBJECT_STREAM),
             (good, RAM._replace(name=b"pc.rom"), ENOENT, manager.OBJECT_REGION), (good, small, EINVAL, manager.OBJECT_REGION),
             (good, elsewhere, EINVAL, manager.OBJECT_REGION),
             (good.replace(b"x-ignore-shared", b"x-ignore-sharee"), RAM, EOPNOTSUPP, manager.OBJECT_STREAM),
             (qemu_stream.stream((PC_RAM._replace(pages={}),), None), RAM, EINVAL, manager.OBJECT_STREAM))
    for stream, region, errno, thing in cases:
        with open(path, "wb") as file:
            file.write(old)
        error = create_refused(path, stream, region, errno)
        check_equal(error.object, thing, f"object of {error}")
        with open(path, "rb") as file:
            check(file.read() == old, "what stood there is untouched")


def create_refused(path, stream, region, errno):
    feeder = Feeder(stream)
    with ImageFile(path, True, False) as image, Session(HELPER) as session:
        session.hello(offered=0xFF)
        attach(session, image, manager.SAVE)
        session.attach_stream(1, feeder.read_end)
        os.close(feeder.read_end)
        session.seal()
        session.create_image(manager.MAPPED_RAM, 1, 1, 0, 1)
        error = refused(errno, session.put_table, [region, DEVICES])
        refused(EPROTO, session.get_table)
        session.hang_up()
        check_equal(session.exit_status(), 1, "exit status")
    return error


# As BREAKS, for the rules that are others in this layout; the head stands where it does.
MAPPED_BREAKS = (
    (1, "head", 0, "<B", 0x65),
    (1, "head", 0, "16s", bytes(16)),
    (2, "raw", 4092, "<I", 0),
    (5, "head", 40, "<I", 2),
    (9, "head", 52, "<I", 0),
    (9, "head", 56, "<I", 2),
    (13, "head", 72 + 16, "<I", 1),
    (15, "regions", 4, "<I", 8 | 3),
    (17, "regions", 8, "<Q", 0),
    (20, "regions", 40, "<Q", 1 << 62),
    (20, "regions", 64, "<Q", 4097),
    (21, "regions", 24, "<Q", 512),
    (22, "extents", 8, "<Q", 0),
    (23, "extents", 16, "<Q", 4098),
    (24, "streams", 16, "<I", 1),
    (25, "streams", 16, "<II", (1, 2)),
    (26, "streams", 8, "<Q", 6),
    (28, "regions", 64, "<Q", 0),
    (29, "regions", 88, "7s", b"pc.rom\0"),
    (29, "regions", 384 + 88 + 13, "<B", 0x56),
)


def test_mapped_ram_rules(directory):
    """What breaks a rule of this layout is refused by the reader and by the helper."""
    path = os.path.join(directory, "mapped-ram-rules")
    save_mapped_ram(path, b"", b"")
    with open(path, "rb") as file:
        good = file.read()
    fd = os.open(path, os.O_RDONLY)
    image = mapped_reader.MappedImage(fd)
    os.close(fd)
    head, at = image.head, image.head_offset
    start = {"raw": at, "head": at, "regions": head.regions.offset, "streams": head.streams.offset,
             "extents": head.extents.offset}
    with Opener(path + "-broken") as opener:
        for number, where, offset, layout, value in MAPPED_BREAKS:
            broken = bytearray(good)
            struct.pack_into(layout, broken, start[where] + offset, *(value if isinstance(value, tuple) else (value,)))
            if where != "raw":
                mapped_reader.reseal(broken, at)
            check_mapped_refused(opener, broken, number)
        check_damaged_setup(opener, good, image)
        opener.put(good)
        opener.session.open_image()
    with Opener(path + "-without") as opener:  # nothing but zeros where the head stands: as QEMU would have left it
        opener.put(good[:at] + bytes(PAGE) + good[at + PAGE:])
        check_equal(opener.session.open_image().state, manager.UNKNOWN, "the state of an image without a record")


def check_mapped_refused(opener, broken, number):
    opener.put(broken)
    try:
        mapped_reader.MappedImage(opener.image.buffered)
    except reader.Refused as refusal:
        check_equal(refusal.rule, number, f"the reader's rule ({refusal})")
    else:
        raise AssertionError(f"the reader accepts what breaks rule {number}")
    try:
        refused(EOPNOTSUPP if number == 5 else EBADMSG, opener.session.open_image)
    except AssertionError as complaint:
        raise AssertionError(f"rule {number}: {complaint}") from None


def check_damaged_setup(opener, good, image):
    """Every byte that QEMU would read of the setup is vouched for, the machine's name too."""
    broken = bytearray(good)
    broken[broken.index(b"pc-q35") + 3] ^= 1
    opener.put(broken)
    error = refused(EBADMSG, opener.session.open_image)
    check_equal((error.operation, error.offset), (manager.OPERATION_CHECKSUM, image.extents[0].offset), "a damaged setup")


def test_written_selection(directory):
    """A selection of pages is saved, and finished without syncs."""
    path = os.path.join(directory, "written")
    memory, selection = Memory(VGA.bytes, VGA_PAGES), Memory(32, {0: bytes([0x02]) + bytes(5) + bytes([0x0C])})
    with ImageFile(path, True, False) as image, Session(HELPER) as session:
        session.hello()
        attach(session, image, manager.SAVE)
        session.attach_memory(1, memory.fd, selection.fd)
        session.seal()
        session.create_image(manager.CONTAINER, 1, 0, 0)
        session.put_table([VGA])
        done = session.complete(session.save_memory(1, VGA.number, VGA.bytes, flags=manager.SELECTION_FLAG))
        # Bits 1, 50 and 51: only the last one is a page that the memory has.
        check_equal((done.data_bytes, done.hole_bytes + done.zero_bytes), (PAGE, VGA.bytes - PAGE), "the byte counts")
        session.complete(session.finish(1))
        check_ends(session, 0)
        found = reader.Image(image.buffered, accept_written=True)
        check_equal((found.head.state, found.present(found.regions[0])), (reader.WRITTEN, [51]), "state and pages")
        check(found.read_region(found.regions[0]) == content(VGA.bytes, {51: VGA_PAGES[51]}), "the page's bytes")
    memory.close()
    selection.close()


def test_cancel(directory):
    """A stream that does not end is cancelled; the image stays partial."""
    path, feeder = os.path.join(directory, "cancel"), Feeder(b"x" * 50000, then_close=False)
    with ImageFile(path, True, True) as image, Session(HELPER) as session:
        session.hello()
        attach(session, image, manager.SAVE)
        session.attach_stream(0, feeder.read_end)
        os.close(feeder.read_end)
        session.seal()
        session.create_image(manager.CONTAINER, 0, 1, 0)
        session.put_table([DEVICES])
        transfer = session.save_stream(0, DEVICES.number)
        status = session.status()
        check_equal((status.phase, status.transfers), (manager.PHASE_TRANSFER, 1), "status while a transfer runs")
        refused(ENOENT, session.cancel, transfer + 100)
        session.cancel(transfer)
        error = session.wait(transfer).error
        check_equal((error.code, error.operation), (ECANCELED, manager.OPERATION_CANCEL), f"COMPLETE: {error}")
        session.cancel()  # with nothing running: a success
        check_broken(feeder)
        check_equal(refused(ENODATA, session.finish).object, manager.OBJECT_STREAM, "what is missing")
        session.hang_up()
        check_equal(session.exit_status(), 1, "exit status of an unfinished save")
        check_partial(image.buffered)
    feeder.join()
    feeder.close()


def check_broken(feeder):
    """Whoever writes a stream learns that nobody reads it any more."""
    feeder.join()
    try:
        feeder.write(b"x")
    except BrokenPipeError:
        return
    raise AssertionError("the helper has closed a stream whose transfer was cancelled")


def check_partial(fd):
    try:
        reader.Image(fd)
    except reader.Refused as refusal:
        check("partial" in str(refusal), f"refused because it is partial, not: {refusal}")
        return
    raise AssertionError("the reader accepts a partial image")


TESTS = (test_worked_example, test_hello_bytes, test_broken, test_features_and_versions, test_refusals, test_container,
         test_python_image, test_mapped_ram, test_mapped_ram_of_qemu, test_mapped_ram_saved_over,
         test_mapped_ram_refusals, test_mapped_ram_rules, test_states, test_damage, test_rules, test_raw,
         test_written_selection, test_cancel, test_late_request, test_little_room, test_refused_attachment,
         test_sigbus)


def run(directory):
    failed = 0
    for test in TESTS:
        try:
            test(directory)
            print(f"ok    {test.__name__}", flush=True)
        except Exception:
            failed += 1
            print(f"FAIL  {test.__name__}: {test.__doc__}\n{traceback.format_exc()}", flush=True)
    return failed


def main():
    above = os.environ.get("TEST_DIR") or os.environ.get("TMPDIR") or "/var/tmp"
    directory = tempfile.mkdtemp(prefix="dioh-python.", dir=above)
    try:
        return 1 if run(directory) else 0
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
