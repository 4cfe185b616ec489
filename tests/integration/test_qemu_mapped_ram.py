#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# timeout: 450
#
# Layout mapped-ram between us and a real QEMU, both ways: images that we compose are restored by a stock QEMU with
# memory of its own, images of QEMU's own by us. After each restore every RAM block (the video memory and the ROMs too)
# is compared byte for byte with the guest that was saved, and the guest goes on: it checks its memory, and its log has
# one start and each pass once. Then what must not be restored: images whose save did not end well.

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.dont_write_bytecode = True  # no __pycache__ in the source tree
sys.path[:0] = [HERE, os.path.join(HERE, "other_language")]

import manager  # noqa: E402 (the path had to be set first)
import qemu_guest  # noqa: E402
import virtio_mem  # noqa: E402
from manager import Entry, HelperError, Session  # noqa: E402
from qemu_guest import Guest, Memory, PrivateMemory, QmpError  # noqa: E402

HELPER = os.environ.get("DIOHELPER", os.path.join(qemu_guest.BUILD, "diohelper"))
MIB = 1 << 20
PAGE = 4096
MAPPED_RAM, LAYOUT_MAPPED_RAM = 3, 0x80
IN_STREAM = 4
ENODATA, ESTALE = 61, 116
WRITTEN = 1  # FINISH without syncs
VGA = ("-vga", "std")
VRAM, VRAM_BYTES = 0xfd000000, 16 * MIB  # where both machines' firmware puts it
DICE = random.Random(5)

directory = None  # of the images; made by main()
direct_works = True
left_out = []  # of the case that runs: what could not be had of it


class Skipped(Exception):
    """This case can't be had here."""


def path(name):
    return os.path.join(directory, name)


# ---- ways to restore -------------------------------------------------------------------------------------------------

PLAIN, MULTIFD, DIRECT = "plain", "multifd 4", "multifd 4, direct-io"
ALL_WAYS = (PLAIN, MULTIFD, DIRECT)
NO_DIRECT = "there is no O_DIRECT where the images stand"


def choose_way(guest, way):
    if way == DIRECT and not direct_works:
        raise Skipped(NO_DIRECT)
    guest.capabilities(*(["mapped-ram"] if way == PLAIN else ["mapped-ram", "multifd"]))
    if way != PLAIN:
        guest.parameters(multifd_channels=4)
    if way == DIRECT:
        guest.parameters(direct_io=True)


# ---- a machine, and what is kept of it when it is saved --------------------------------------------------------------


class Machine:
    """What a guest's QEMU is started with, here and at every restore. `parts`: its memory backends' names and MiB.
    `more`: those of its devices."""

    def __init__(self, machine="q35", parts=(("pc.ram", 64),), options=VGA, more=()):
        self.machine, self.parts, self.options, self.more = machine, parts, options, more
        self.mib = sum(mib for _, mib in parts)

    def addresses(self):
        """Where in the guest each backend begins: without a hole, as QEMU places them in its machine's memory."""
        at = 0
        for name, mib in self.parts:
            yield name, mib * MIB, at
            at += mib * MIB

    @contextlib.contextmanager
    def guest(self, kind, log=b"", **more):
        """A QEMU with memories of this kind, whose guest goes on writing to this log."""
        with tempfile.TemporaryDirectory(dir=directory) as place:
            with open(os.path.join(place, "serial.log"), "wb") as serial:
                serial.write(log)
            memories = [kind(mib * MIB, name) for name, mib in (*self.parts, *self.more)]
            count = len(self.parts)
            try:
                with Guest(place, self.mib, memories[:count], self.machine, options=self.options,
                           devices=memories[count:], **more) as guest:
                    guest.memories = memories
                    yield guest
            finally:
                for memory in memories:
                    memory.close()


NUMA = Machine(parts=(("left", 24), ("right", 40)))


class Saved:
    """A stopped guest as it was, and the image of it: `offset` is where QEMU finds its part of the file."""

    def __init__(self, guest, machine, image, base=0, header=b""):
        self.machine, self.image, self.base, self.header_bytes = machine, image, base, len(header)
        self.stream_bytes = None
        self.passes = guest.passes()
        self.devices = guest.command("query-memory-devices")
        with open(guest.serial, "rb") as log:
            self.log = log.read()
        self.blocks = dict(self._keep(guest))

    @staticmethod
    def _keep(guest):
        for name, (read, used) in guest.blocks().items():
            memory = guest.shared.get(name)
            if memory:  # by a descriptor of our own: a big sparse one stays sparse
                kept = open(os.dup(memory.fd), "rb", buffering=0)  # closed when nobody needs it any more
                yield name, (lambda at, count, kept=kept: os.pread(kept.fileno(), count, at), used)
            else:
                yield name, (lambda at, count, kept=read(0, used): kept[at:at + count], used)

    @property
    def offset(self):
        return self.base + self.header_bytes

    @property
    def uri(self):
        return f"file:{self.image}" + (f",offset={self.offset:#x}" if self.offset else "")

    def has_contents(self, name):
        read, used = self.blocks[name]
        return any(any(read(at, PAGE)) for at in range(0, used, PAGE))


def check_same(guest, saved):
    """Every block is, byte for byte, what was saved, and so much of the devices' memory is plugged in."""
    found = guest.blocks()
    assert found.keys() == saved.blocks.keys(), (sorted(found), sorted(saved.blocks))
    assert guest.command("query-memory-devices") == saved.devices
    for name, (read, used) in found.items():
        was, was_used = saved.blocks[name]
        assert used == was_used, f"{name}: {used} bytes, not {was_used}"
        for at in range(0, used, MIB):
            count = min(MIB, used - at)
            if read(at, count) != was(at, count):
                pages = [page for page in range(at, at + count, PAGE) if read(page, PAGE) != was(page, PAGE)]
                raise AssertionError(f"block {name} differs in {len(pages)} pages of the MiB from {pages[0]:#x} on")


def check_goes_on(guest, saved, passes=2):
    assert guest.passes() == saved.passes, "the guest has run already"
    guest.run_to_pass(saved.passes + passes)
    guest.check_log()


def fill_video_memory(guest):
    """A MiB of noise, a page amidst zeros, and the last one: no guest of ours draws."""
    guest.poke(VRAM + 2 * MIB, DICE.randbytes(MIB))
    guest.poke(VRAM + 7 * MIB + 11 * PAGE, DICE.randbytes(PAGE))
    guest.poke(VRAM + VRAM_BYTES - PAGE, DICE.randbytes(PAGE))


# ---- our helper ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def session(image, direction, base=0):
    flags = os.O_RDWR | os.O_CREAT if direction == manager.SAVE else os.O_RDONLY
    buffered = os.open(image, flags, 0o600)
    direct = os.open(image, flags | os.O_DIRECT) if direct_works else None
    with Session(HELPER) as helper:
        helper.hello(offered=0xB7, required=LAYOUT_MAPPED_RAM)
        helper.attach_image(direction, buffered=buffered, direct=direct, base_offset=base)
        os.close(buffered)
        if direct is not None:
            os.close(direct)
        yield helper


def attach(helper, memories, stream):
    """What else a session has before its seal; the stream's descriptor becomes the helper's alone."""
    for number, memory in enumerate(memories):
        helper.attach_memory(number, memory.fd)
    helper.attach_stream(0, stream)
    os.close(stream)
    helper.seal()


def start_migration(guest, shared):
    """Returns the reading end of a pipe into which QEMU migrates."""
    reading, writing = os.pipe()
    if shared:
        guest.capabilities("x-ignore-shared")
    guest.migrate_to_fd(writing)
    os.close(writing)
    return reading


def create(helper, memories, header=b"", flags=0):
    """The image's table: regions are the memories, with their names and numbers; and the one stream."""
    table = [Entry(manager.REGION, number, memory.name.encode(), memory.size) for number, memory in enumerate(memories)]
    helper.create_image(MAPPED_RAM, len(table), 1, len(header), flags=flags)
    reply = helper.put_table([*table, Entry(manager.STREAM_ENTRY, 0, b"state")])
    assert reply.ready
    if header:
        helper.write_header(0, header)


def compose(guest, machine, image, base=0, header=b"", finish=0):
    """Saves a guest the way a manager does; its shared memories by their descriptors."""
    memories = list(guest.shared.values())
    with session(image, manager.SAVE, base) as helper:
        attach(helper, memories, start_migration(guest, memories))
        create(helper, memories, header)
        streamed = helper.complete(helper.save_stream(0, 0))
        guest.wait_migrated()
        for transfer in [helper.save_memory(number, number, memory.size) for number, memory in enumerate(memories)]:
            helper.complete(transfer)
        helper.complete(helper.finish(finish))
        helper.expect_end()
        assert helper.exit_status() == 0, helper.complaint()
    saved = Saved(guest, machine, image, base, header)
    saved.stream_bytes = streamed.total_bytes
    return saved


def start_and_compose(machine, image, *where, kind=Memory, video=True, stop=True, prepare=lambda guest: None, **how):
    with machine.guest(kind, poke=video) as guest:
        guest.run_to_pass(2)
        if stop:
            guest.command("stop")
        if video:
            fill_video_memory(guest)
        prepare(guest)
        return compose(guest, machine, image, *where, **how)


def look_at(saved, flags=manager.INSPECT):
    """OPEN_IMAGE's reply and the table."""
    with session(saved.image, manager.LOAD, saved.base) as helper:
        helper.seal()
        reply = helper.open_image(MAPPED_RAM, flags, header_bytes=saved.header_bytes)
        return reply, {entry.name.decode(): entry for entry in helper.get_table()}


def check_we_refuse(saved, flags, code, word):
    try:
        look_at(saved, flags)
    except HelperError as error:
        assert error.code == code and word in error.text, error
        return
    raise AssertionError("the image was opened")


# ---- stock QEMU ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def restored_by_qemu(saved, way, image=None):
    """A stopped guest that an unmodified QEMU has restored into memory of its own, without x-ignore-shared."""
    with saved.machine.guest(PrivateMemory, saved.log, incoming=True) as guest:
        choose_way(guest, way)
        guest.command("migrate-incoming", uri=saved.uri.replace(saved.image, image or saved.image))
        guest.wait_migrated()
        check_same(guest, saved)
        yield guest


def check_qemu_restores(saved, *ways, image=None, passes=2):
    for way in ways:
        if way == DIRECT and not direct_works:
            left_out.append(f"no restore by direct-io: {NO_DIRECT}")
            continue
        with restored_by_qemu(saved, way, image) as guest:
            check_goes_on(guest, saved, passes)


def check_qemu_refuses(saved, pattern, way=MULTIFD):
    try:
        with restored_by_qemu(saved, way) as guest:
            raise AssertionError(f"QEMU has restored it: {guest.command('query-status')}")
    except QmpError as error:
        assert re.search(pattern, str(error)), error


def save_by_qemu(guest, machine, image, way, base=0, header=b""):
    """QEMU's own mapped-ram image, behind `base` and `header` bytes of ours."""
    with open(image, "wb") as file:
        file.write(bytes(base) + header)
    choose_way(guest, way)
    saved = Saved(guest, machine, image, base, header)
    guest.command("migrate", uri=saved.uri)
    guest.wait_migrated()
    return saved


# ---- loads by our helper ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def restored_by_us(saved, given=False, layout=MAPPED_RAM):
    """A stopped guest with shared memory that we have filled. `given`: the manager says which regions, and where."""
    table = [Entry(manager.REGION, 40 + number, name.encode(), size, manager.GUEST_ADDRESS, address)
             for number, (name, size, address) in enumerate(saved.machine.addresses())]
    with saved.machine.guest(Memory, saved.log, incoming=True) as guest:
        reading, writing = os.pipe()
        with session(saved.image, manager.LOAD, saved.base) as helper:
            attach(helper, guest.memories, writing)
            helper.open_image(layout, regions=len(table) if given else 0, header_bytes=saved.header_bytes)
            if given:
                assert helper.put_table(table).ready
            regions = check_table(helper, saved)
            for transfer in [helper.load_memory(number, regions[memory.name].number, memory.size, flags=manager.FRESH)
                             for number, memory in enumerate(guest.memories)]:
                helper.complete(transfer)
            guest.capabilities("x-ignore-shared")
            take_stream(guest, helper, reading)
        check_same(guest, saved)
        yield guest


def take_stream(guest, helper, reading):
    guest.migrate_from_fd(reading)
    os.close(reading)
    helper.complete(helper.load_stream(0, 0))
    guest.wait_migrated()


def check_table(helper, saved):
    """All blocks are in it, those of the machine's memory as to be loaded, all others as in the stream."""
    entries = {entry.name.decode(): entry for entry in helper.get_table() if entry.kind == manager.REGION}
    assert entries.keys() == saved.blocks.keys(), sorted(entries)
    for name, entry in entries.items():
        mine = name in dict((*saved.machine.parts, *saved.machine.more))
        assert bool(entry.flags & IN_STREAM) != mine, entry
    return entries


def check_we_restore(saved, given=False, layout=MAPPED_RAM):
    with restored_by_us(saved, given, layout) as guest:
        check_goes_on(guest, saved)


def check_plain_stream(saved):
    """An image of QEMU's own as a migration stream of the old kind, for a QEMU with memory of its own."""
    with saved.machine.guest(PrivateMemory, saved.log, incoming=True) as guest:
        reading, writing = os.pipe()
        with session(saved.image, manager.LOAD, saved.base) as helper:
            attach(helper, [], writing)
            helper.open_image(MAPPED_RAM, header_bytes=saved.header_bytes)
            assert all(entry.flags & IN_STREAM for entry in helper.get_table() if entry.kind == manager.REGION)
            take_stream(guest, helper, reading)
        check_same(guest, saved)
        check_goes_on(guest, saved)


# ---- cases: composed images ------------------------------------------------------------------------------------------

VIDEO_BLOCK = re.compile(r".*/vga\.vram")


def check_video_is_kept(saved):
    name, = filter(VIDEO_BLOCK.fullmatch, saved.blocks)
    read, _ = saved.blocks[name]
    assert any(read(VRAM_BYTES - PAGE, PAGE)), "the video memory has no contents: the case shows nothing"
    reply, table = look_at(saved)
    assert reply.state == manager.COMPLETE_STATE, reply
    # The noise, the two pages, and the firmware's text: not the whole 16 MiB.
    assert 258 * PAGE <= table[name].present_bytes < 4 * MIB, table[name]


def composed(machine):
    def run():
        saved = start_and_compose(machine, path("composed"))
        check_video_is_kept(saved)
        check_qemu_restores(saved, *ALL_WAYS)
    return run


def two_backends():
    saved = start_and_compose(NUMA, path("composed"))
    assert all(saved.has_contents(name) for name in ("left", "right"))
    check_qemu_restores(saved, *ALL_WAYS)
    check_we_restore(saved)


def of_512_mib():
    saved = start_and_compose(Machine(parts=(("pc.ram", 512),)), path("composed"), video=False)
    check_qemu_restores(saved, *ALL_WAYS, passes=1)  # each takes long here, and every byte has been compared
    check_we_restore(saved)


# The guest fills and checks what lies below the PCI hole, which is kept small here: a pass over gigabytes would take
# too long. What lies above 4 GiB gets its contents from us, and is compared.
def of_4_gib():
    machine = Machine("q35,max-ram-below-4g=128M", (("pc.ram", 4096),))

    def scatter(guest):
        memory = guest.shared["pc.ram"]
        for at in range(256 * MIB, 4096 * MIB, 173 * MIB):
            os.pwrite(memory.fd, DICE.randbytes(PAGE), at + DICE.randrange(256) * PAGE)
        os.pwrite(memory.fd, DICE.randbytes(3 * MIB), 3072 * MIB - MIB)
        os.pwrite(memory.fd, DICE.randbytes(PAGE), 4096 * MIB - PAGE)

    saved = start_and_compose(machine, path("composed"), prepare=scatter)
    check_qemu_restores(saved, *ALL_WAYS)
    with restored_by_us(saved) as guest:
        allocated = os.fstat(guest.shared["pc.ram"].fd).st_blocks * 512
        assert allocated < 256 * MIB, f"a sparse guest of 4 GiB has {allocated} bytes after a load"
        check_goes_on(guest, saved)


def old_machine():
    found = subprocess.run([qemu_guest.QEMU, "-machine", "help"], stdout=subprocess.PIPE, check=True).stdout.decode()
    numbers = re.findall(r"^pc-i440fx-(\d+)\.(\d+) ", found, re.M)
    oldest = "pc-i440fx-" + ".".join(min(numbers, key=lambda number: [int(part) for part in number]))
    print(f"     the oldest that this QEMU has is {oldest}")
    saved = start_and_compose(Machine(oldest), path("composed"))
    check_qemu_restores(saved, PLAIN, DIRECT)
    check_we_restore(saved)


def behind_a_header():
    header = b"a manager's header of an odd length " * 37 + b"!"
    others = DICE.randbytes(8192)  # what stands before the image is not ours
    assert len(header) % 2
    with open(path("composed"), "wb") as image:
        image.write(others)
    saved = start_and_compose(Machine(), path("composed"), base=len(others), header=header)
    check_qemu_restores(saved, *ALL_WAYS)
    check_we_restore(saved)
    with open(saved.image, "rb") as image:
        assert image.read(len(others) + len(header)) == others + header


def second_generation():
    machine = Machine("pc")
    saved = start_and_compose(machine, path("composed"))
    with restored_by_us(saved, layout=manager.DETECT) as guest:
        check_goes_on(guest, saved)
        guest.command("stop")
        again = compose(guest, machine, saved.image)  # over the first one
    assert again.passes > saved.passes
    check_qemu_restores(again, MULTIFD, DIRECT)
    check_we_restore(again, given=True)


# The manager leaves it to QEMU to stop the guest: memory is saved when the migration is complete.
def stopped_by_qemu():
    saved = start_and_compose(Machine(), path("composed"), stop=False)
    check_qemu_restores(saved, MULTIFD)
    check_we_restore(saved)


def never_synced():
    saved = start_and_compose(Machine(), path("composed"), finish=WRITTEN)
    check_qemu_restores(saved, DIRECT)
    check_we_refuse(saved, 0, ESTALE, "never synced")
    reply, _ = look_at(saved, manager.ACCEPT_WRITTEN)
    assert reply.state == manager.WRITTEN_STATE, reply


def copied_sparse():
    saved = start_and_compose(Machine(), path("composed"))
    for sparse in ("always", "never"):
        copy = path(f"copy-{sparse}")
        subprocess.run(["cp", f"--sparse={sparse}", saved.image, copy], check=True)
        check_qemu_restores(saved, MULTIFD, DIRECT, image=copy)
        os.unlink(copy)


# QEMU goes through the memory again and again, so slowly that the guest has dirtied some by then: pages come twice and
# more, and as zero what came as data. At last it is let go.
def of_a_running_guest():
    machine = Machine()
    with machine.guest(PrivateMemory, poke=True) as guest:
        guest.run_to_pass(1)
        guest.parameters(max_bandwidth=20 * MIB, downtime_limit=1)
        with session(path("composed"), manager.SAVE) as helper:
            attach(helper, [], start_migration(guest, False))
            create(helper, [])
            transfer = helper.save_stream(0, 0)
            let_rounds_pass(guest, 4)
            guest.parameters(max_bandwidth=0, downtime_limit=2000)
            helper.complete(transfer)
            guest.wait_migrated()
            helper.complete(helper.finish())
            helper.expect_end()
        sent = guest.command("query-migrate")["ram"]
        assert sent["normal"] + sent["duplicate"] > sent["total"] // PAGE + 500, f"hardly a page came twice: {sent}"
        saved = Saved(guest, machine, path("composed"))
    check_qemu_restores(saved, PLAIN, MULTIFD, DIRECT)
    check_plain_stream(saved)


def let_rounds_pass(guest, wanted):
    deadline = time.monotonic() + qemu_guest.PATIENCE
    while time.monotonic() < deadline:
        answer = guest.command("query-migrate")
        if answer["status"] == "completed" or answer.get("ram", {}).get("dirty-sync-count", 0) >= wanted:
            return
        time.sleep(0.05)
    raise AssertionError(f"QEMU makes no rounds: {answer}")


# ---- cases: a virtio-mem device --------------------------------------------------------------------------------------

VMEM = "0000:00:05.0/vmem"


# What is not plugged in, QEMU discards. The guest has no driver: without our help nothing is plugged in.
def with_virtio_mem(properties=""):
    return Machine(options=(*VGA, "-m", "maxmem=256M", "-device", "virtio-mem-pci,memdev=vmem,addr=5.0" + properties),
                   more=((VMEM, 128),))


def read_file(name):
    with open(name, "rb") as file:
        return file.read()


def virtio_mem_early():
    good = start_and_compose(Machine(), path("composed"))
    stood_there = read_file(good.image)
    try:
        start_and_compose(with_virtio_mem(), good.image)
    except HelperError as error:
        assert '"0000:00:05.0/virtio-mem-device-early"' in error.text, error
        print(f"     {error.text}")
    else:
        raise AssertionError("it was composed, without what QEMU sends ahead of the memory")
    assert read_file(good.image) == stood_there, "the older image was touched"
    check_qemu_restores(good, PLAIN)


def virtio_mem_late(kind, plugged):
    machine = with_virtio_mem(f",x-early-migration=off,requested-size={plugged}")

    def prepare(guest):
        if plugged:
            address = virtio_mem.plug(guest, 5, plugged)
            for at in (0, 3 * MIB, plugged - PAGE):
                guest.poke(address + at, DICE.randbytes(PAGE))

    def run():
        saved = start_and_compose(machine, path("composed"), kind=kind, prepare=prepare)
        _, table = look_at(saved)
        assert (table[VMEM].bytes, table[VMEM].present_bytes) == (128 * MIB, 3 * PAGE if plugged else 0), table[VMEM]
        assert [device["data"]["size"] for device in saved.devices] == [plugged], saved.devices
        check_qemu_restores(saved, *ALL_WAYS)
        if kind is PrivateMemory:
            check_plain_stream(saved)
            return
        with restored_by_us(saved) as guest:
            allocated = os.fstat(guest.shared[VMEM].fd).st_blocks * 512  # pages, or huge ones
            assert allocated <= table[VMEM].present_bytes // PAGE * 2 * MIB, f"{allocated} bytes for a few pages"
            check_goes_on(guest, saved)
    return run


# ---- cases: QEMU's own images ----------------------------------------------------------------------------------------


def qemus_own(way, machine, base=0, header=b"", plain_stream=True):
    def run():
        with machine.guest(PrivateMemory, poke=True) as guest:
            guest.run_to_pass(1)
            guest.command("stop")
            fill_video_memory(guest)
            saved = save_by_qemu(guest, machine, path("qemus"), way, base, header)
        check_we_restore(saved, given=True)
        if plain_stream:
            check_plain_stream(saved)
    return run


# ---- cases: block devices --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def loop_device(size):
    if os.geteuid() != 0:
        raise Skipped("a loop device needs root")
    if not shutil.which("losetup"):
        raise Skipped("there is no losetup here")
    with open(path("disk"), "wb") as disk:
        for _ in range(size // MIB):  # nothing on it is zero
            disk.write(b"\xa5" * MIB)
    made = subprocess.run(["losetup", "--find", "--show", path("disk")], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          check=False)
    if made.returncode != 0:
        raise Skipped(f"no loop device can be had here: {made.stderr.decode().strip()}")
    device = made.stdout.decode().strip()
    held = os.open(device, os.O_RDWR)
    try:
        # It goes with the last process that has it open, even if that is killed.
        subprocess.run(["losetup", "--detach", device], check=True)
        yield device
    finally:
        os.close(held)
        os.unlink(path("disk"))


def on_a_block_device():
    machine = Machine()
    with loop_device(160 * MIB) as device:
        saved = start_and_compose(machine, device, base=4096)
        check_qemu_restores(saved, *ALL_WAYS)
        check_we_restore(saved)
        # Another guest over it, with contents elsewhere and a BIOS of another machine: what stood there must not show.
        other = start_and_compose(Machine("pc"), device, base=4096, header=b"odd", video=False)
        check_qemu_restores(other, PLAIN, DIRECT)
        # And over that one the first again, where no header stands.
        saved = start_and_compose(machine, device, video=False)
        check_qemu_restores(saved, MULTIFD)


# ---- cases: saves that do not end well -------------------------------------------------------------------------------


def check_is_partial(saved):
    """Neither we nor QEMU take it for an image, and inspecting says why."""
    check_we_refuse(saved, 0, ENODATA, "partial")
    reply, _ = look_at(saved)
    assert reply.state == manager.PARTIAL, reply
    check_qemu_refuses(saved, "Not a migration stream")
    check_qemu_refuses(saved, "Not a migration stream", PLAIN)


class CutPipe(threading.Thread):
    """Passes on so many bytes of what QEMU sends, and then kills it."""

    def __init__(self, reading, count, process):
        super().__init__(daemon=True)
        self.reading, self.left, self.process = reading, count, process
        self.for_helper, self.writing = os.pipe()
        self.passed_on = 0
        self.start()

    def run(self):
        while self.passed_on < self.left:
            data = os.read(self.reading, min(PAGE, self.left - self.passed_on))
            if not data:
                break
            os.write(self.writing, data)
            self.passed_on += len(data)
        os.kill(self.process.pid, signal.SIGKILL)
        os.close(self.writing)
        os.close(self.reading)


# The image over which it saves is a good one before.
def qemu_killed(machine, cut):
    def run():
        good = start_and_compose(machine, path("composed"))
        with machine.guest(Memory, poke=True) as guest:
            guest.run_to_pass(1)
            guest.command("stop")
            fill_video_memory(guest)
            count = cut(good)
            pipe = CutPipe(start_migration(guest, True), count, guest.process)
            with session(good.image, manager.SAVE) as helper:
                attach(helper, guest.memories, pipe.for_helper)
                create(helper, guest.memories)
                completion = helper.wait(helper.save_stream(0, 0))
                pipe.join()
                assert pipe.passed_on == count, "QEMU had ended before it could be killed"
                assert completion.error and completion.error.object == manager.OBJECT_STREAM, completion
                assert re.search("ends too early", completion.error.text), completion.error
                print(f"     {completion.error.text}")
                check_cannot_finish(helper)
            assert guest.process.wait() == -signal.SIGKILL
        check_is_partial(good)
    return run


def check_cannot_finish(helper):
    try:
        helper.complete(helper.finish())
    except HelperError:
        return
    raise AssertionError("FINISH after a save that failed")


# `flags` of CREATE_IMAGE: with CONTINUE the older image, which was complete, stays as it is but for its marks.
def helper_killed(flags):
    def run():
        machine = Machine()
        good = start_and_compose(machine, path("composed"))
        with machine.guest(Memory) as guest:
            guest.run_to_pass(1)
            guest.command("stop")
            with session(good.image, manager.SAVE) as helper:
                attach(helper, guest.memories, start_migration(guest, True))
                create(helper, guest.memories, flags=flags)
                check_is_partial(good)
                helper.complete(helper.save_stream(0, 0))
                guest.wait_migrated()
                helper.complete(helper.save_memory(0, 0, guest.memories[0].size))
                helper.process.kill()
                helper.process.wait()
            check_is_partial(good)
            guest.command("cont")  # and nothing has happened to the guest
            guest.command("stop")
            saved = compose(guest, machine, good.image)
        check_qemu_restores(saved, MULTIFD)
    return run


# ---- all of them -----------------------------------------------------------------------------------------------------

ODD = 0x11921  # what stands before QEMU's part of an image of libvirt's is about so long

CASES = [
    ("composed, q35", composed(Machine())),
    ("composed, pc", composed(Machine("pc"))),
    ("composed, an old machine type", old_machine),
    ("composed, two NUMA memory backends", two_backends),
    ("composed, 512 MiB", of_512_mib),
    ("composed, 4 GiB, sparse", of_4_gib),
    ("composed at a base offset, behind a header", behind_a_header),
    ("composed, loaded, composed again", second_generation),
    ("composed, copied", copied_sparse),
    ("composed, written but never synced", never_synced),
    ("composed, stopped by QEMU", stopped_by_qemu),
    ("composed from a running guest's whole stream", of_a_running_guest),
    ("composed on a block device", on_a_block_device),
    ("composed with virtio-mem in its usual form: refused", virtio_mem_early),
    ("composed with virtio-mem of a file, nothing plugged in", virtio_mem_late(Memory, 0)),
    ("composed with virtio-mem of a file, half of it plugged in", virtio_mem_late(Memory, 64 * MIB)),
    ("composed with virtio-mem that QEMU sends, half of it plugged in", virtio_mem_late(PrivateMemory, 64 * MIB)),
    ("QEMU's own, plain", qemus_own(PLAIN, Machine())),
    ("QEMU's own, multifd", qemus_own(MULTIFD, Machine("pc"), header=bytes(ODD))),
    ("QEMU's own, multifd and direct-io", qemus_own(DIRECT, Machine(), base=3 * PAGE)),
    ("QEMU's own, two NUMA memory backends", qemus_own(MULTIFD, NUMA, PAGE, b"7 bytes", plain_stream=False)),
    ("QEMU killed in the pages of its stream", qemu_killed(Machine(), lambda good: 100000)),
    ("QEMU killed in its devices' state", qemu_killed(Machine("pc"), lambda good: good.stream_bytes - 30000)),
    ("QEMU killed at the end of its stream", qemu_killed(Machine(), lambda good: good.stream_bytes - 5000)),
    ("helper killed before FINISH", helper_killed(0)),
    ("helper killed before FINISH of a save that is continued", helper_killed(manager.CONTINUE)),
]


def look_for_direct():
    """Whether O_DIRECT is to be had where the images stand."""
    with open(path("probe"), "wb"):
        pass
    try:
        os.close(os.open(path("probe"), os.O_RDONLY | os.O_DIRECT))
        return True
    except OSError:
        return False


def skip(reason):
    print(f"skip: {reason}")
    sys.exit(77)


def run_case(name, run):
    """What came of it, in a word. A case of which something was left out is a skipped one."""
    began = time.monotonic()
    left_out.clear()
    for image in os.listdir(directory):
        os.unlink(path(image))
    outcome = "ok"
    try:
        run()
    except Skipped as reason:
        left_out.append(str(reason))
    except Exception:  # whatever it is: the other cases are to run too
        traceback.print_exc(file=sys.stdout)
        outcome = "FAIL"
    if left_out:
        print(f"{name} is skipped: {'; '.join(dict.fromkeys(left_out))}")
        outcome = "skip" if outcome == "ok" else outcome
    print(f"{outcome:4} {name} ({time.monotonic() - began:.1f} s)", flush=True)
    return outcome


def main():
    global direct_works, directory
    if sys.version_info < (3, 9):
        skip("Python 3.9 is needed (socket.send_fds)")
    version = qemu_guest.version()
    if not version:
        skip(f"{qemu_guest.QEMU} is not here")
    if version < (9, 0):
        skip(f"mapped-ram needs QEMU 9, and {qemu_guest.QEMU} is version {version[0]}.{version[1]}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was set up is taken down
    directory = tempfile.mkdtemp(prefix="dioh-mapped-ram.")
    try:
        direct_works = look_for_direct()
        outcomes = [run_case(*case) for case in CASES if len(sys.argv) < 2 or sys.argv[1] in case[0]]
    finally:
        shutil.rmtree(directory)
    sys.exit(1 if "FAIL" in outcomes or not outcomes else 0)


if __name__ == "__main__":
    main()
