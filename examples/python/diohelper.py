# SPDX-License-Identifier: LGPL-2.1-or-later
"""A manager for diohelper, written from docs/protocol.md alone: Python's standard library and nothing else.

It shows that the page suffices, so it checks what it receives more strictly than a manager has to. save_restore.py uses
it; so do the project's tests, as other_language/manager.py.
"""

import contextlib
import os
import socket
import struct
import subprocess
import tempfile
from typing import NamedTuple

# Messages.
HELLO, ATTACH_IMAGE, ATTACH_MEMORY, ATTACH_STREAM, SEAL = 2, 4, 6, 8, 10
CREATE_IMAGE, PUT_TABLE, WRITE_HEADER, OPEN_IMAGE, GET_TABLE, READ_HEADER = 12, 14, 16, 18, 20, 22
SAVE_MEMORY, LOAD_MEMORY, SAVE_STREAM, LOAD_STREAM, STATUS, CANCEL, FINISH = 24, 26, 28, 30, 32, 34, 36
PROGRESS, COMPLETE, STUCK, BROKEN = 129, 131, 133, 135

ERROR_FLAG = 1
PAYLOAD_MAX = 65536
TABLE_MAX = 200
NO_OFFSET = 0xFFFFFFFFFFFFFFFF

# Features.
LAYOUT_RAW, LAYOUT_CONTAINER, STREAM, SELECTION, CHECKSUM_FEATURE, WRITTEN_FEATURE = 1, 2, 4, 8, 16, 32
LAYOUT_MAPPED_RAM = 128

# Phases.
PHASE_ATTACH, PHASE_READY, PHASE_TRANSFER, PHASE_SYNC, PHASE_FINISHED = 1, 2, 3, 4, 5

# ATTACH_IMAGE.
BUFFERED, DIRECT, DIRECTORY = 1, 2, 4
SAVE, LOAD = 1, 2
NOTE_LONE_BUFFERED, NOTE_LONE_DIRECT, NOTE_DIRECT_UNSUPPORTED, NOTE_DIRECT_ALIGNMENT = 1, 2, 4, 8

# ATTACH_MEMORY.
MEMORY_FD, SELECTION_FD = 1, 2

# SEAL.
STRAYS_CLOSED, NO_CAPABILITIES, NOT_ROOT, NO_NEW_PRIVS = 1, 2, 4, 8

# The table.
REGION, STREAM_ENTRY = 1, 2
GUEST_ADDRESS, CHECKSUMS, IN_STREAM = 1, 2, 4

# Layouts, states, CREATE_IMAGE's, OPEN_IMAGE's and the transfers' flags.
DETECT, RAW, CONTAINER, MAPPED_RAM = 0, 1, 2, 3
UNKNOWN, PARTIAL, COMPLETE_STATE, WRITTEN_STATE = 0, 1, 2, 3
CONTINUE = 1
ACCEPT_WRITTEN, INSPECT = 1, 2
SELECTION_FLAG, FRESH = 1, 2

# libvirt's header, as OPEN_IMAGE's reply tells of it.
HEADER_OPAQUE, HEADER_LIBVIRT = 0, 1
HEADER_COMPLETE, HEADER_WAS_RUNNING = 1, 2

# Errors.
OPERATION_PROTOCOL, OPERATION_PARSE, OPERATION_CHECKSUM, OPERATION_CANCEL, OPERATION_FINISH = 1, 5, 6, 13, 14
OBJECT_NONE, OBJECT_SESSION, OBJECT_IMAGE, OBJECT_MEMORY, OBJECT_STREAM, OBJECT_REGION = 0, 1, 2, 3, 4, 5

_HEADER = struct.Struct("<IIII")
_ERROR = struct.Struct("<iIIIQQ256s")
_HELLO = struct.Struct("<IIQQQQ")
_ATTACH_IMAGE = struct.Struct("<IIIIIIIIQIIII256s")
_ATTACH_IMAGE_REPLY = struct.Struct("<IIIIIIIIIIQ256s256s")
_ATTACH_MEMORY = struct.Struct("<IIIIQ")
_ATTACH_MEMORY_REPLY = struct.Struct("<IIQQQ")
_SEAL_REPLY = struct.Struct("<IIIIII256s")
_ENTRY = struct.Struct("<IIIIQQQQ256s")
_CREATE_IMAGE = struct.Struct("<IIIIQII")
_CREATE_IMAGE_REPLY = struct.Struct("<IIQQQ")
_OPEN_IMAGE = struct.Struct("<IIIIQ")
_OPEN_IMAGE_REPLY = struct.Struct("<IIIIQQQIIIIQ40s256s")
_MEMORY_TRANSFER = struct.Struct("<IIQQQII")
_STATUS_REPLY = struct.Struct("<IIIIQQ")
_PROGRESS_ENTRY = struct.Struct("<IIQQQ")
_COMPLETE_NUMBERS = struct.Struct("<11Q32Q")
_PAIR = struct.Struct("<II")
_STUCK = struct.Struct("<IIQ")


class ProtocolViolation(Exception):
    """The helper sent something that the page does not permit."""


class SessionEnded(Exception):
    """The helper closed the connection, or said why it cannot go on."""


class HelperError(Exception):
    """An error reply, or a COMPLETE that tells of a failure."""

    def __init__(self, payload):
        fields = _ERROR.unpack(payload)
        self.code, self.operation, self.object, self.number, self.offset, reserved, text = fields
        _insist(reserved == 0, "an error's reserved field is not zero")
        self.text = unpack_text(text).decode("utf-8", "replace")
        super().__init__(f"{self.text!r} (code {self.code}, operation {self.operation}, object {self.object}, "
                         f"number {self.number}, offset {self.offset:#x})")


class ImageReply(NamedTuple):
    kind: int
    direct: int
    engine: int
    notes: int
    memory_alignment: int
    offset_alignment: int
    block_bytes: int
    in_flight: int
    workers: int
    done: int
    file_bytes: int
    label_before: bytes
    label_after: bytes


class SealReply(NamedTuple):
    layers: int
    uid: int
    gid: int
    threads: int
    engine: int
    reserved: int
    context: bytes


class CreateReply(NamedTuple):
    ready: int
    reserved: int
    needed_bytes: int
    free_bytes: int
    image_bytes: int


class OpenReply(NamedTuple):
    layout: int
    state: int
    region_count: int
    stream_count: int
    header_bytes: int
    image_bytes: int
    compatible_features: int
    ready: int
    header_kind: int
    header_format: int
    header_flags: int
    domain_memory_bytes: int
    domain_uuid: bytes
    domain_name: bytes


class StatusReply(NamedTuple):
    phase: int
    transfers: int
    in_flight: int
    reserved: int
    oldest_ns: int
    done_bytes: int


class Completion(NamedTuple):
    error: "HelperError | None"
    total_bytes: int
    data_bytes: int
    zero_bytes: int
    hole_bytes: int
    io_bytes: int
    io_count: int


class Entry(NamedTuple):
    """An entry of the image's table, as PUT_TABLE sends it and GET_TABLE answers it."""

    kind: int
    number: int
    name: bytes
    bytes: int = 0
    flags: int = 0
    guest_address: int = 0
    image_offset: int = 0
    present_bytes: int = 0

    def pack(self):
        return _ENTRY.pack(self.kind, self.number, self.flags, 0, self.bytes, self.guest_address, self.image_offset,
                           self.present_bytes, self.name)

    @classmethod
    def unpack(cls, data):
        kind, number, flags, reserved, size, address, offset, present, name = _ENTRY.unpack(data)
        _insist(reserved == 0, "an entry's reserved field is not zero")
        return cls(kind, number, unpack_text(name), size, flags, address, offset, present)


def unpack_text(field):
    text, nul, rest = field.partition(b"\0")
    _insist(nul and not any(rest), "a text without NUL, or with bytes behind it")
    return text


def _insist(condition, complaint):
    if not condition:
        raise ProtocolViolation(complaint)


def _named(reply_type, layout, payload):
    """A reply's payload as a named tuple. Whoever receives `reserved` refuses anything but 0."""
    _insist(len(payload) == layout.size, f"{reply_type.__name__} of {len(payload)} bytes")
    reply = reply_type(*layout.unpack(payload))
    reserved = getattr(reply, "reserved", 0)
    _insist(reserved == 0, f"{reply_type.__name__}: reserved is {reserved}")
    return reply


class Session:
    """One helper, and the control connection to it."""

    def __init__(self, helper, *options, patience=30):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * PAYLOAD_MAX)  # room for the longest message
        self._stderr = tempfile.TemporaryFile()
        with theirs:  # our copy of the helper's end: while it is open we would not notice that the helper is gone
            self.process = subprocess.Popen(
                [helper, "serve", f"--fd={theirs.fileno()}", *options], pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._stderr)
        self.socket = ours
        self.socket.settimeout(patience)
        self._patience = patience
        self._last_id = 0
        self._completions = {}
        self.progress = []
        self.stuck = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.hang_up()
        self.exit_status()
        self._stderr.close()

    # The connection.

    def hang_up(self):
        self.socket.close()

    def exit_status(self):
        return self.process.wait(self._patience)

    def complaint(self):
        self._stderr.seek(0)
        return self._stderr.read().decode("utf-8", "replace")

    def send(self, kind, payload=b"", fds=(), request_id=None):
        """Sends a request and returns its id."""
        if request_id is None:
            self._last_id += 1
            request_id = self._last_id
        packet = _HEADER.pack(kind, 0, request_id, len(payload)) + payload
        sent = socket.send_fds(self.socket, [packet], fds) if fds else self.socket.send(packet)
        _insist(sent == len(packet), "a packet was sent in part")
        return request_id

    def _receive_packet(self):
        # One byte more than a packet may have, so that a longer one shows.
        return self.socket.recvmsg(_HEADER.size + PAYLOAD_MAX + 1, socket.CMSG_SPACE(4))

    def receive(self):
        """The next packet: type, flags, id and payload."""
        try:
            packet, ancillary, flags, _ = self._receive_packet()
        except ConnectionResetError:  # the helper has left a request unread; its last packets come behind this
            packet, ancillary, flags, _ = self._receive_packet()
        if not packet:
            raise SessionEnded(self.complaint())
        _insist(not ancillary and not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC), "descriptors, or a long packet")
        _insist(len(packet) >= _HEADER.size, "a short packet")
        kind, flags, request_id, size = _HEADER.unpack_from(packet)
        _insist(len(packet) == _HEADER.size + size, "size is not the rest of the packet")
        return kind, flags, request_id, packet[_HEADER.size:]

    def request(self, kind, payload=b"", fds=()):
        """Sends a request, waits for its reply, and returns the reply's payload. Raises HelperError if refused."""
        return self.reply(kind, self.send(kind, payload, fds))

    def reply(self, kind, request_id):
        while True:
            got, flags, got_id, payload = self.receive()
            # Above 128 the reply to an unknown request may have an event's number: what tells them apart is its flag.
            if got > 128 and not flags & ERROR_FLAG:
                self._event(got, flags, got_id, payload)
                continue
            _insist((got, got_id) == (kind | 1, request_id), f"message {got} id {got_id} in place of a reply")
            _insist(flags in (0, ERROR_FLAG), f"reply with flags {flags}")
            if flags == ERROR_FLAG:
                raise HelperError(payload)
            return payload

    def _event(self, kind, flags, event_id, payload):
        _insist(flags == 0, "an event with flags")
        if kind == COMPLETE:
            _insist(event_id not in self._completions, "a second COMPLETE")
            self._completions[event_id] = _unpack_completion(payload)
        elif kind == PROGRESS:
            self.progress.append(_unpack_progress(payload))
        elif kind == STUCK:
            _insist(len(payload) == _STUCK.size, "STUCK's size")
            self.stuck += 1
        elif kind == BROKEN:
            _insist(event_id == 0, "BROKEN with an id")
            raise SessionEnded(str(HelperError(payload)))
        else:
            raise ProtocolViolation(f"an event of type {kind}")

    def wait(self, transfer):
        """Waits for a transfer's COMPLETE, whatever it says."""
        while transfer not in self._completions:
            kind, flags, event_id, payload = self.receive()
            _insist(kind > 128, f"a reply of type {kind} that nobody asked for")
            self._event(kind, flags, event_id, payload)
        return self._completions.pop(transfer)

    def complete(self, transfer):
        """Waits for a transfer's COMPLETE. Raises HelperError if it failed."""
        completion = self.wait(transfer)
        if completion.error:
            raise completion.error
        return completion

    def expect_end(self):
        """The helper has to close the connection, and to say nothing more."""
        packet = self.socket.recv(_HEADER.size + PAYLOAD_MAX)
        _insist(not packet, f"{len(packet)} bytes where the end of the connection was due")

    # Before the seal.

    def hello(self, offered=0x37, required=LAYOUT_CONTAINER, versions=(1, 1), pidfd=None):
        payload = _HELLO.pack(*versions, offered, required, 0, 0)
        reply = self.request(HELLO, payload, () if pidfd is None else (pidfd,))
        _insist(len(reply) == _HELLO.size, "HELLO's reply has a wrong size")
        lowest, highest, offered_there, required_there, *reserved = _HELLO.unpack(reply)
        _insist(lowest == highest and versions[0] <= lowest <= versions[1], "not a version that we speak")
        _insist(not any(reserved), "HELLO: reserved is not zero")
        _insist(not required_there & ~offered, "the helper requires what we have not offered")
        return offered_there

    def attach_image(self, direction, buffered=None, direct=None, directory=None, base_offset=0, in_flight=0,
                     workers=0):
        fds = [(bit, fd) for bit, fd in ((BUFFERED, buffered), (DIRECT, direct), (DIRECTORY, directory))
               if fd is not None]
        payload = _ATTACH_IMAGE.pack(sum(bit for bit, _ in fds), direction, 0, 0, 0, in_flight, workers, 0,
                                     base_offset, 0, 0, 0, 0, b"")
        reply = self.request(ATTACH_IMAGE, payload, [fd for _, fd in fds])
        return _named(ImageReply, _ATTACH_IMAGE_REPLY, reply)

    def attach_memory(self, memory, fd, selection=None):
        fds = [fd] if selection is None else [fd, selection]
        which = MEMORY_FD if selection is None else MEMORY_FD | SELECTION_FD
        reply = self.request(ATTACH_MEMORY, _ATTACH_MEMORY.pack(memory, which, 0, 0, 0), fds)
        kind, seals, size, page_bytes, reserved = _ATTACH_MEMORY_REPLY.unpack(reply)
        _insist(reserved == 0, "ATTACH_MEMORY: reserved is not zero")
        return kind, seals, size, page_bytes

    def attach_stream(self, stream, fd):
        kind, reserved = _PAIR.unpack(self.request(ATTACH_STREAM, _PAIR.pack(stream, 0), [fd]))
        _insist(reserved == 0, "ATTACH_STREAM: reserved is not zero")
        return kind

    def seal(self, required=STRAYS_CLOSED | NO_CAPABILITIES | NO_NEW_PRIVS):
        reply = _named(SealReply, _SEAL_REPLY, self.request(SEAL, _PAIR.pack(required, 0)))
        _insist(required & ~reply.layers == 0, "SEAL succeeded without a required layer")
        return reply

    # The image.

    def create_image(self, layout, regions, streams, header_bytes, stream=0, flags=0):
        payload = _CREATE_IMAGE.pack(layout, regions, streams, flags, header_bytes, stream, 0)
        return _named(CreateReply, _CREATE_IMAGE_REPLY, self.request(CREATE_IMAGE, payload))

    def put_table(self, entries):
        for first in range(0, len(entries), TABLE_MAX):
            some = entries[first:first + TABLE_MAX]
            payload = _PAIR.pack(first, len(some)) + b"".join(entry.pack() for entry in some)
            reply = _named(CreateReply, _CREATE_IMAGE_REPLY, self.request(PUT_TABLE, payload))
        return reply

    def write_header(self, offset, data):
        reply = self.request(WRITE_HEADER, struct.pack("<Q", offset) + data)
        return _named(CreateReply, _CREATE_IMAGE_REPLY, reply)

    def open_image(self, layout=DETECT, flags=0, regions=0, streams=0, header_bytes=0):
        payload = _OPEN_IMAGE.pack(layout, flags, regions, streams, header_bytes)
        return _named(OpenReply, _OPEN_IMAGE_REPLY, self.request(OPEN_IMAGE, payload))

    def get_table(self):
        entries = []
        while True:
            some = self._table_part(len(entries))
            if not some:
                return entries
            entries += some

    def _table_part(self, first):
        reply = self.request(GET_TABLE, _PAIR.pack(first, TABLE_MAX))
        first_there, count = _PAIR.unpack_from(reply)
        _insist(first_there == first and count <= TABLE_MAX, "GET_TABLE: first or count")
        _insist(len(reply) == _PAIR.size + count * _ENTRY.size, "GET_TABLE: size")
        return [Entry.unpack(reply[at:at + _ENTRY.size]) for at in range(_PAIR.size, len(reply), _ENTRY.size)]

    def read_header(self, size):
        data = b""
        while len(data) < size:
            want = min(size - len(data), PAYLOAD_MAX)
            some = self.request(READ_HEADER, struct.pack("<QII", len(data), want, 0))
            _insist(0 < len(some) <= want, "READ_HEADER: too few or too many bytes")
            data += some
        return data

    # Transfers. Each returns the transfer's id.

    def _begin(self, kind, payload):
        transfer = self.send(kind, payload)
        _insist(self.reply(kind, transfer) == b"", "a payload where none belongs")
        return transfer

    def save_memory(self, memory, region, length, memory_offset=0, region_offset=0, flags=0):
        return self._begin(SAVE_MEMORY, _MEMORY_TRANSFER.pack(memory, region, memory_offset, region_offset, length,
                                                              flags, 0))

    def load_memory(self, memory, region, length, memory_offset=0, region_offset=0, flags=0):
        return self._begin(LOAD_MEMORY, _MEMORY_TRANSFER.pack(memory, region, memory_offset, region_offset, length,
                                                              flags, 0))

    def save_stream(self, stream, entry, flags=0):
        return self._begin(SAVE_STREAM, struct.pack("<IIII", stream, entry, flags, 0))

    def load_stream(self, stream, entry, flags=0):
        return self._begin(LOAD_STREAM, struct.pack("<IIII", stream, entry, flags, 0))

    def finish(self, mode=0, patch=b"", patch_offset=0):
        return self._begin(FINISH, struct.pack("<IIQ", mode, len(patch), patch_offset) + patch)

    def status(self):
        return _named(StatusReply, _STATUS_REPLY, self.request(STATUS))

    def cancel(self, transfer=0):
        in_flight, reserved = _PAIR.unpack(self.request(CANCEL, _PAIR.pack(transfer, 0)))
        _insist(reserved == 0, "CANCEL: reserved is not zero")
        return in_flight


def _unpack_completion(payload):
    _insist(len(payload) == _ERROR.size + _COMPLETE_NUMBERS.size, "COMPLETE's size")
    code = struct.unpack_from("<i", payload)[0]
    error = HelperError(payload[:_ERROR.size]) if code else None
    numbers = _COMPLETE_NUMBERS.unpack_from(payload, _ERROR.size)
    return Completion(error, *numbers[:6])


def _unpack_progress(payload):
    phase, count = _PAIR.unpack_from(payload)
    _insist(count <= 64 and len(payload) == _PAIR.size + count * _PROGRESS_ENTRY.size, "PROGRESS's size")
    return phase, list(_PROGRESS_ENTRY.iter_unpack(payload[_PAIR.size:]))


@contextlib.contextmanager
def pidfd_of_this_process():
    """A pidfd for HELLO, or None where Python or the kernel has none. The helper has its own copy: ours is closed behind it."""
    pidfd = None
    with contextlib.suppress(AttributeError, OSError):
        pidfd = os.pidfd_open(os.getpid())
    try:
        yield pidfd
    finally:
        if pidfd is not None:
            os.close(pidfd)
