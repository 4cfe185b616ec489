#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# timeout: 300
#
# `diohelper-tool ingest` between real QEMUs: what one sends, of a paused or a running guest with private memory, is restored
# by a stock one from the image, with multifd and direct-io. After each restore every RAM block is compared byte for byte
# with the guest that was saved, and the guest goes on and checks its memory. QEMU_OLDER names an older QEMU as the sender.

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.dont_write_bytecode = True  # no __pycache__ in the source tree
sys.path[:0] = [HERE, os.path.join(HERE, "other_language")]

import qemu_guest  # noqa: E402 (the path had to be set first)
import test_qemu_mapped_ram as images  # noqa: E402
from qemu_guest import PrivateMemory, QmpError  # noqa: E402
from test_qemu_mapped_ram import DIRECT, MULTIFD, PLAIN, Machine, Saved, Skipped, path  # noqa: E402

TOOL = os.environ.get("DIOHELPER_TOOL", os.path.join(qemu_guest.BUILD, "diohelper-tool"))
MIB = 1 << 20


# ---- the sink --------------------------------------------------------------------------------------------------------


class Ingest:
    """`ingest` into an image; `stream`: a descriptor to be read, which becomes its alone, or None: it listens."""

    def __init__(self, image, stream=None, options=()):
        self.socket = path("socket")
        self.complaints = path("ingest.log")
        command = [TOOL, "ingest", *options, image]
        if stream is None:
            command.insert(2, f"--listen=unix:{self.socket}")
        with open(self.complaints, "wb") as complaints:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL if stream is None else stream,
                                            stderr=complaints)
        if stream is not None:
            os.close(stream)
        else:
            self._await_socket()

    def _await_socket(self):
        deadline = time.monotonic() + qemu_guest.PATIENCE
        while not os.path.exists(self.socket):
            assert self.process.poll() is None and time.monotonic() < deadline, self.complaint()
            time.sleep(0.01)

    def complaint(self):
        with open(self.complaints, encoding="utf-8", errors="replace") as complaints:
            return complaints.read().strip()

    def wait(self):
        return self.process.wait(qemu_guest.PATIENCE)

    def succeed(self):
        assert self.wait() == 0, self.complaint()
        assert not os.path.exists(self.socket)

    def fail(self, pattern):
        assert self.wait() == 1, self.complaint()
        assert re.search(pattern, self.complaint()), self.complaint()
        print(f"     {self.complaint()}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def verify(image, base=0):
    subprocess.run([TOOL, "verify", "--quiet", f"--base-offset={base}", image], check=True)


def state(image):
    said = subprocess.run([TOOL, "inspect", image], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False).stdout
    found = re.search(rb"^state: *(\w+)", said, re.M)
    return found[1].decode() if found else said.decode(errors="replace")


# ---- the guest that is saved -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def started(machine):
    with machine.guest(PrivateMemory, poke=True) as guest:
        guest.run_to_pass(2)
        yield guest


@contextlib.contextmanager
def paused(machine):
    with started(machine) as guest:
        guest.command("stop")
        images.fill_video_memory(guest)
        yield guest


# The guest dirties its memory all the while; QEMU goes round and round, and is let go at last.
def send_live(guest, rounds=4):
    images.let_rounds_pass(guest, rounds)
    guest.parameters(max_bandwidth=0, downtime_limit=2000)
    guest.wait_migrated()
    sent = guest.command("query-migrate")["ram"]
    assert sent["normal"] + sent["duplicate"] > sent["total"] // images.PAGE + 500, f"hardly a page came twice: {sent}"


def slow(guest, *capabilities):
    guest.capabilities(*capabilities)
    guest.parameters(max_bandwidth=20 * MIB, downtime_limit=1)


# Whoever was to read has gone.
def wait_failed(guest):
    try:
        guest.wait_migrated()
    except QmpError:
        return
    raise AssertionError("QEMU says that it has migrated")


def pipe_from(guest):
    return images.start_migration(guest, False)


def check_image(saved, *ways):
    """It is verified, bounded, and restored in each of these ways by a stock QEMU."""
    verify(saved.image)
    check_bounded(saved)
    images.check_qemu_restores(saved, *ways)


def check_bounded(saved):
    """No larger than the guest's memory and what else there is, however often pages came."""
    memory = sum(used for _, used in saved.blocks.values())
    status = os.stat(saved.image)
    assert status.st_size < saved.offset + memory + (2 * len(saved.blocks) + 4) * MIB, status
    assert status.st_blocks * 512 <= saved.offset + memory + 8 * MIB, status


# Its pages come by so many channels.
def send_by_multifd(guest, sink, channels, **parameters):
    guest.capabilities("multifd")
    guest.parameters(multifd_channels=channels, **parameters)
    guest.command("migrate", uri=f"unix:{sink.socket}")


# ---- cases -----------------------------------------------------------------------------------------------------------


def by_exec():
    machine = Machine()
    with paused(machine) as guest:
        guest.command("migrate", uri=f"exec:exec {TOOL} ingest {path('image')}")
        guest.wait_migrated()
        saved = Saved(guest, machine, path("image"))
        deadline = time.monotonic() + qemu_guest.PATIENCE
        while state(saved.image) != "complete":  # later than QEMU is done
            assert time.monotonic() < deadline, state(saved.image)
            time.sleep(0.05)
    check_image(saved, PLAIN, MULTIFD, DIRECT)


def by_socket():
    machine = Machine("pc")
    with paused(machine) as guest, Ingest(path("image")) as sink:
        guest.command("migrate", uri=f"unix:{sink.socket}")
        sink.succeed()
        guest.wait_migrated()
        saved = Saved(guest, machine, path("image"))
    verify(saved.image)
    images.check_qemu_restores(saved, DIRECT)
    images.check_we_restore(saved, given=True)


def behind_a_header():
    machine = Machine()
    header = images.DICE.randbytes(images.ODD)
    with open(path("header"), "wb") as file:
        file.write(header)
    with paused(machine) as guest:
        with Ingest(path("image"), pipe_from(guest), [f"--header={path('header')}", "--base-offset=8K"]) as sink:
            sink.succeed()
        guest.wait_migrated()
        saved = Saved(guest, machine, path("image"), 8192, header)
    images.check_qemu_restores(saved, MULTIFD)


def write_flash(byte, zero_pages, bios):
    with open(path("flash"), "wb") as file:
        for page in range(64):
            file.write(bytes([0 if page in zero_pages else byte]) * images.PAGE)
        file.write(bios)


# The host's firmware is a newer one where the guest comes back: it gets the flash that it had, zero pages and all.
def another_firmware():
    with Machine().guest(PrivateMemory) as guest:
        read, used = guest.blocks()["pc.bios"]
        bios = read(0, used)
    machine = Machine(options=(*images.VGA, "-drive", f"if=pflash,format=raw,readonly=on,file={path('flash')}"))
    write_flash(0xAA, (1, 2), bios)
    with paused(machine) as guest, Ingest(path("image"), pipe_from(guest)) as sink:
        sink.succeed()
        guest.wait_migrated()
        saved = Saved(guest, machine, path("image"))
    assert not any(saved.blocks["system.flash0"][0](images.PAGE, 2 * images.PAGE)), "no zero pages: the case shows nothing"
    write_flash(0xBB, (), bios)
    check_image(saved, PLAIN, DIRECT)


# Over the image of another guest, whose pages must not show.
def live(machine, *options):
    def run():
        with paused(machine) as guest, Ingest(path("image"), pipe_from(guest), options) as sink:
            sink.succeed()
        with started(machine) as guest:
            slow(guest)
            with Ingest(path("image"), pipe_from(guest), options) as sink:
                send_live(guest)
                sink.succeed()
            saved = Saved(guest, machine, path("image"))
        check_image(saved, PLAIN, DIRECT)
    return run


@contextlib.contextmanager
def older_qemu():
    older, newer = os.environ.get("QEMU_OLDER"), qemu_guest.QEMU
    if not older:
        raise Skipped("QEMU_OLDER does not name an older QEMU")
    qemu_guest.QEMU = older
    try:
        major, minor = qemu_guest.version()
        yield Machine(f"pc-i440fx-{major}.{minor}", options=())
    finally:
        qemu_guest.QEMU = newer


def read_memory(guest, size):
    guest.dump_memory(path("dump"), size)
    with open(path("dump"), "rb") as dump:
        return dump.read()


# The machine type is the older QEMU's, which does not say where it has its blocks: the guest's memory is compared.
def from_older_qemu(send, channels=0):
    def run():
        with older_qemu() as machine, machine.guest(PrivateMemory) as guest:
            guest.run_to_pass(2)
            if send == send_live:
                slow(guest)
            else:
                guest.command("stop")
            options = [f"--multifd={channels}"] if channels else []
            with Ingest(path("image"), None if channels else pipe_from(guest), options) as sink:
                if channels:
                    send_by_multifd(guest, sink, channels)
                send(guest)
                sink.succeed()
            passes, memory = guest.passes(), read_memory(guest, machine.mib * MIB)
            with open(guest.serial, "rb") as serial:
                log = serial.read()
        verify(path("image"))
        with machine.guest(PrivateMemory, log, incoming=True) as guest:
            images.choose_way(guest, DIRECT)
            guest.command("migrate-incoming", uri=f"file:{path('image')}")
            guest.wait_migrated()
            assert read_memory(guest, machine.mib * MIB) == memory, "the guest's memory is another"
            guest.run_to_pass(passes + 2)
            guest.check_log()
    return run


def multifd(channels, machine, *options, **parameters):
    def run():
        with paused(machine) as guest, Ingest(path("image"), None, [f"--multifd={channels}", *options]) as sink:
            send_by_multifd(guest, sink, channels, **parameters)
            sink.succeed()
            guest.wait_migrated()
            saved = Saved(guest, machine, path("image"))
        check_image(saved, DIRECT)
    return run


def live_multifd(channels, machine, **parameters):
    def run():
        with started(machine) as guest, Ingest(path("image"), None, [f"--multifd={channels}"]) as sink:
            slow(guest)
            send_by_multifd(guest, sink, channels, **parameters)
            send_live(guest)
            sink.succeed()
            saved = Saved(guest, machine, path("image"))
        check_image(saved, PLAIN, DIRECT)
    return run


def xbzrle():
    machine = Machine()
    with started(machine) as guest:
        slow(guest, "xbzrle")
        with Ingest(path("image"), pipe_from(guest)) as sink:
            sink.fail("flag XBZRLE .* is not understood")
    assert state(path("image")) == "partial", state(path("image"))


def postcopy():
    machine = Machine()
    with paused(machine) as guest:
        with open(path("image"), "wb") as file:
            file.write(b"what stood there" * 1000)
        guest.capabilities("postcopy-ram")
        with Ingest(path("image"), pipe_from(guest)) as sink:
            sink.fail("command 1, OPEN_RETURN_PATH, .* is not understood")
    with open(path("image"), "rb") as file:
        assert file.read() == b"what stood there" * 1000, "it was overwritten"


# A disk with a bitmap of what was written to it: QEMU sends that as a section of its own, which only QEMU understands, and
# might send it after the guest goes on: that is what the stream begins with.
def add_disk(guest):
    guest.capabilities("dirty-bitmaps")
    guest.command("blockdev-add", driver="null-co", node_name="disk", size=16 * MIB)


def dirtied(guest):
    node, = (node for node in guest.command("query-named-block-nodes") if node["node-name"] == "disk")
    return [(bitmap["name"], bitmap["count"]) for bitmap in node.get("dirty-bitmaps", [])]


def dirty_bitmaps():
    machine = Machine()
    with paused(machine) as guest:
        add_disk(guest)
        guest.command("block-dirty-bitmap-add", node="disk", name="since-backup")
        guest.command("human-monitor-command", command_line='qemu-io disk "write 1M 192k"')
        assert dirtied(guest) == [("since-backup", 192 * 1024)], dirtied(guest)
        with open(path("image"), "wb") as file:
            file.write(b"what stood there" * 1000)
        with Ingest(path("image"), pipe_from(guest)) as sink:
            sink.fail("command 3, POSTCOPY_ADVISE, .* is not understood")
        with open(path("image"), "rb") as file:
            assert file.read() == b"what stood there" * 1000, "it was overwritten"
        wait_failed(guest)
        with Ingest(path("image"), pipe_from(guest), ["--or-raw"]) as sink:
            sink.succeed()
            assert "kept verbatim as raw: QEMU stream: command 3, POSTCOPY_ADVISE, " in sink.complaint(), sink.complaint()
        guest.wait_migrated()
        saved = Saved(guest, machine, path("image"))
    with machine.guest(PrivateMemory, saved.log, incoming=True) as guest:
        add_disk(guest)
        guest.command("migrate-incoming", uri=f"file:{saved.image}")
        guest.wait_migrated()
        images.check_same(guest, saved)
        assert dirtied(guest) == [("since-backup", 192 * 1024)], dirtied(guest)
        images.check_goes_on(guest, saved)


def qemu_killed():
    machine = Machine()
    with started(machine) as guest:
        slow(guest)
        with Ingest(path("image"), pipe_from(guest)) as sink:
            images.let_rounds_pass(guest, 2)
            guest.process.kill()
            sink.fail("ends too early")
    assert state(path("image")) == "partial", state(path("image"))


CASES = [
    ("a paused guest, by exec:", by_exec),
    ("a paused guest, by a socket", by_socket),
    ("a paused guest, behind a header", behind_a_header),
    ("a paused guest, restored with another firmware", another_firmware),
    ("a running guest", live(Machine())),
    ("a running guest, buffered", live(Machine("pc"), "--buffered", "--engine=sync")),
    ("a paused guest of an older QEMU", from_older_qemu(lambda guest: guest.wait_migrated())),
    ("a running guest of an older QEMU", from_older_qemu(send_live)),
    ("multifd, 1 channel", multifd(1, Machine())),
    ("multifd, 2 channels", multifd(2, Machine("pc"))),
    ("multifd, 4 channels", multifd(4, Machine())),
    ("multifd, 8 channels, zero pages by the stream", multifd(8, Machine(), zero_page_detection="legacy")),
    ("multifd, 4 channels, by the engine sync, buffered", multifd(4, Machine(), "--engine=sync", "--buffered")),
    ("multifd, a running guest, 1 channel", live_multifd(1, Machine())),
    ("multifd, a running guest, 2 channels, zero pages by the stream",
     live_multifd(2, Machine("pc"), zero_page_detection="legacy")),
    ("multifd, a running guest, 4 channels", live_multifd(4, Machine())),
    ("multifd, a running guest, 8 channels", live_multifd(8, Machine())),
    ("multifd, a paused guest of an older QEMU", from_older_qemu(lambda guest: guest.wait_migrated(), 2)),
    ("multifd, a running guest of an older QEMU", from_older_qemu(send_live, 4)),
    ("XBZRLE", xbzrle),
    ("postcopy", postcopy),
    ("dirty bitmaps, refused, then kept as raw", dirty_bitmaps),
    ("QEMU killed amidst its rounds", qemu_killed),
]


def main():
    version = qemu_guest.version()
    if not version:
        images.skip(f"{qemu_guest.QEMU} is not here")
    if version < (9, 0):
        images.skip(f"mapped-ram needs QEMU 9, and {qemu_guest.QEMU} is version {version[0]}.{version[1]}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was set up is taken down
    images.directory = tempfile.mkdtemp(prefix="dioh-ingest.")
    try:
        images.direct_works = images.look_for_direct()
        outcomes = [images.run_case(*case) for case in CASES if len(sys.argv) < 2 or sys.argv[1] in case[0]]
    finally:
        shutil.rmtree(images.directory)
    sys.exit(1 if "FAIL" in outcomes or not outcomes else 0)


if __name__ == "__main__":
    main()
