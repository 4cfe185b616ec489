# SPDX-License-Identifier: LGPL-2.1-or-later
"""What test-libvirt-mapped-ram.sh has a manager do: images that a stock libvirt restores, and libvirt's own, loaded.

    libvirt_mapped_ram.py compose IMAGE MEMORY XML      a paused domain, as a save image of the format sparse
    libvirt_mapped_ram.py plain SPARSE RAW              a sparse image as one of the format raw
    libvirt_mapped_ram.py resume SPARSE ARGV SERIAL     a sparse image into shared memory, with a QEMU of our own

Environment: DIOHELPER; VIRSH_DEFAULT_CONNECT_URI and DOMAIN for compose. MEMORY is the file that is the domain's
memory. ARGV holds what `virsh domxml-to-native qemu-argv` says.
"""
import itertools
import json
import os
import re
import shlex
import socket
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "other_language"))
import manager  # noqa: E402  (its place is known only now)
import qemu_guest  # noqa: E402

MAPPED_RAM_FEATURE, MAPPED_RAM = 0x80, 3
BLOCK = b"pc.ram"  # what QEMU calls a domain's memory when it has no NUMA nodes
PARTIAL, COMPLETE = b"LibvirtQemudPart", b"LibvirtQemudSave"
FORMAT_RAW, FORMAT_SPARSE = 0, 6
PADDING = 65536  # libvirt leaves as much, so that the XML can be edited in place


def libvirt_header(xml, image_format):
    """Of an image that is not complete yet, of a domain that ran."""
    data = xml + b"\0" + bytes(PADDING)
    return struct.pack("=16sIIIII56x", PARTIAL, 2, len(data), 1, image_format, 0) + data


def start(direction, image):
    """A session with the image attached."""
    flags = os.O_RDWR if direction == manager.SAVE else os.O_RDONLY
    session = manager.Session(os.environ["DIOHELPER"], patience=60)
    session.hello(required=MAPPED_RAM_FEATURE)
    buffered, direct = os.open(image, flags), os.open(image, flags | os.O_DIRECT)
    session.attach_image(direction, buffered=buffered, direct=direct)
    os.close(buffered)
    os.close(direct)
    return session


# ---- compose -------------------------------------------------------------------------------------------------------------


def monitor(command, fd=None, **arguments):
    """A command for the domain's QEMU, by way of virsh."""
    words = ["virsh", "--quiet", "qemu-monitor-command"] + (["--pass-fds", str(fd)] if fd is not None else [])
    words += [os.environ["DOMAIN"], json.dumps({"execute": command, "arguments": arguments})]
    answer = json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True, timeout=60,
                                       pass_fds=[fd] if fd is not None else []).stdout)
    if "error" in answer:
        raise RuntimeError(f"{command}: {answer['error']['desc']}")
    return answer["return"]


def ignore_shared(ignore):
    """As long as it is set no other save of the domain has its memory in it either."""
    monitor("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": ignore}])


def send_state(fd):
    ignore_shared(True)
    monitor("getfd", fd=fd, fdname="state")
    monitor("migrate", uri="fd:state")
    os.close(fd)


def wait_sent():
    while (status := monitor("query-migrate")["status"]) != "completed":
        if status in ("failed", "cancelled"):
            raise RuntimeError(f"the migration has {status}")
        time.sleep(0.05)
    ignore_shared(False)


def compose(image, memory_path, xml_path):
    with open(xml_path, "rb") as xml:
        header = libvirt_header(xml.read(), FORMAT_SPARSE)
    memory = os.open(memory_path, os.O_RDWR)
    size = os.fstat(memory).st_size
    os.close(os.open(image, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    state, qemus = os.pipe()
    with start(manager.SAVE, image) as session:
        session.attach_memory(0, memory)
        session.attach_stream(0, state)
        os.close(state)
        session.seal()
        send_state(qemus)
        session.create_image(MAPPED_RAM, 1, 1, len(header))
        session.put_table([manager.Entry(manager.REGION, 0, BLOCK, size),
                           manager.Entry(manager.STREAM_ENTRY, 0, b"state")])
        for at in range(0, len(header), 32768):
            session.write_header(at, header[at:at + 32768])
        session.complete(session.save_stream(0, 0))
        wait_sent()
        session.complete(session.save_memory(0, 0, size))
        with open(image, "rb") as file:
            assert file.read(len(PARTIAL)) == PARTIAL, "it is marked complete too early"
        session.complete(session.finish(patch=COMPLETE))


# ---- load ----------------------------------------------------------------------------------------------------------------


def plain(sparse, raw):
    """The header with another format, and what a QEMU without the capability mapped-ram would have sent."""
    with open(sparse, "rb") as file:
        header = bytearray(file.read(92))
        header += file.read(struct.unpack_from("=I", header, 20)[0])
    struct.pack_into("=I", header, 28, FORMAT_RAW)
    with open(raw, "xb") as file:
        file.write(header)
    with start(manager.LOAD, sparse) as session, open(raw, "ab") as file:
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file) as cat:
            session.attach_stream(0, cat.stdin.fileno())
            cat.stdin.close()
            session.seal()
            opened = session.open_image()
            assert opened.header_bytes == len(header), opened
            session.complete(session.load_stream(0, 0))


class LibvirtsGuest(qemu_guest.Guest):
    """A QEMU like the one that libvirt would start, but its memory is a memfd of ours, and so is its monitor."""

    def __init__(self, words, memory, serial):  # pylint: disable=super-init-not-called
        self.serial = self.complaints = serial
        self.poker = socket.socket()
        self.socket, theirs = socket.socketpair()
        monitor_here = f"socket,id=charmonitor,fd={theirs.fileno()}"
        words = [memory.backend() if '"memory-backend-file"' in word else
                 monitor_here if "id=charmonitor" in word else word for word in without_secret(words)]
        with theirs:
            self.process = subprocess.Popen(words + ["-incoming", "defer"], pass_fds=[theirs.fileno(), memory.fd],
                                            stdin=subprocess.DEVNULL)
        self.lines = self.socket.makefile("r")
        self._read()
        self.command("qmp_capabilities")


def without_secret(words):
    """The file of the master key does not exist, and nothing here needs it."""
    at = next(i for i, word in enumerate(words) if '"masterKey0"' in word)
    return words[:at - 1] + words[at + 1:]


def libvirts_words(path):
    """QEMU's command line; variables of the environment stand in front of it."""
    with open(path, encoding="utf-8") as file:
        return list(itertools.dropwhile(lambda word: re.match("[A-Z_]+=", word), shlex.split(file.read())))


def resume(sparse, argv_path, serial):
    words = libvirts_words(argv_path)
    size = next(json.loads(word)["size"] for word in words if '"memory-backend-file"' in word)
    memory = qemu_guest.Memory(size, BLOCK.decode())
    state, helpers = os.pipe()
    with start(manager.LOAD, sparse) as session:
        session.attach_memory(0, memory.fd)
        session.attach_stream(0, helpers)
        os.close(helpers)
        session.seal()
        session.open_image(MAPPED_RAM, regions=1)
        # libvirt's QEMU did not say where the memory stands: an image of its own has no guest addresses.
        session.put_table([manager.Entry(manager.REGION, 0, BLOCK, size, manager.GUEST_ADDRESS)])
        session.complete(session.load_memory(0, 0, size, flags=manager.FRESH))
        with LibvirtsGuest(words, memory, serial) as guest:
            guest.capabilities("x-ignore-shared")
            guest.migrate_from_fd(state)
            os.close(state)
            session.complete(session.load_stream(0, 0))
            guest.wait_migrated()
            guest.run_to_pass(guest.passes() + 2)


if __name__ == "__main__":
    {"compose": compose, "plain": plain, "resume": resume}[sys.argv[1]](*sys.argv[2:])
