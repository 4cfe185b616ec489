#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A mapped-ram image saved and loaded by diohelper, against QEMU itself (mapped-ram, direct-io, multifd) and fio.

    qemu.py [--cold] [MIB [ROUNDS [DIRECTORY]]]      default: 2048 MiB, 5 rounds, /var/tmp

All take turns, round after round, each round in another order, on one file system. The guest is paused from the start,
its memory a memfd full of incompressible data. Every measurement has a QEMU of its own, whose memory is prefaulted
(prealloc=on) before the clock starts; --cold: it is not, which costs QEMU much and diohelper little.

A save ends when the file is durable: QEMU's with the fdatasync that QEMU leaves out, diohelper's with its FINISH. The
helper is started inside the clock. A load ends when QEMU says so; the file is not in the page cache. CPU is QEMU's
during the measurement, and for diohelper also all of the helper's. Ratios are medians over the rounds, with the
smallest and the largest. Exit status 1: a floor was missed.
"""
import argparse
import functools
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "../integration"), os.path.join(HERE, "../integration/other_language")]
import manager  # noqa: E402  (their places are known only now)
import qemu_guest  # noqa: E402

HELPER = os.environ.get("DIOHELPER") or os.path.join(os.environ.get("BUILD", "build"), "diohelper")
MAPPED_RAM_FEATURE, MAPPED_RAM = 0x80, 3
BLOCK = "pc.ram"
CHANNELS = (1, 2, 8)
OURS, FIO = "diohelper", "fio"
TICK = os.sysconf("SC_CLK_TCK")
FIO_SHAPES = [(depth, block) for depth in (4, 16) for block in ("1M", "4M")]


class Prefaulted(qemu_guest.Memory):
    """QEMU's page tables are full when it is ready."""

    def backend(self):
        return super().backend() + ",prealloc=on"


class Bench:
    """The files and figures of one run. `figures`: (MiB/s, CPU s/GiB, of it the helper's), by (direction, name)."""

    def __init__(self, mib, directory, cold):
        self.mib = mib
        self.directory = directory
        self.kind = qemu_guest.Memory if cold else Prefaulted
        self.source = self.kind(mib << 20, BLOCK)
        self.figures = {}
        self.fio_shape = {}

    def path(self, name):
        return os.path.join(self.directory, name.replace(" ", "-"))

    def fill(self):
        piece = bytearray(os.urandom(64 << 20))
        for at in range(0, self.mib << 20, len(piece)):
            piece[:8] = at.to_bytes(8, "little")
            os.pwrite(self.source.fd, memoryview(piece)[:(self.mib << 20) - at], at)

    def guest(self, memory, incoming=False):
        return qemu_guest.Guest(self.directory, self.mib, [memory], incoming=incoming)

    def note(self, direction, name, clock):
        per_gib = 1024 / self.mib
        self.figures.setdefault((direction, name), []).append(
            (self.mib / clock.seconds, clock.cpu * per_gib, clock.helper * per_gib))

    # fio.

    def fio(self, rw, shape):
        """MiB/s."""
        if rw == "write" and os.path.exists(self.path("fio")):
            os.unlink(self.path("fio"))
        said = subprocess.run(
            ["fio", "--name=peer", f"--filename={self.path('fio')}", f"--size={self.mib}M", f"--rw={rw}",
             f"--iodepth={shape[0]}", f"--bs={shape[1]}", "--direct=1", "--ioengine=io_uring", "--fallocate=truncate",
             "--end_fsync=1", "--output-format=terse", "--terse-version=3"],
            stdout=subprocess.PIPE, check=True).stdout.decode()
        fields = next(line.split(";") for line in said.splitlines() if line.count(";") > 50)
        return float(fields[47 if rw == "write" else 6]) / 1024

    def fio_turn(self, direction):
        rw = "write" if direction == "save" else "read"
        if direction not in self.fio_shape:
            self.fio_shape[direction] = max(FIO_SHAPES, key=lambda shape: self.fio(rw, shape))
        rate = self.fio(rw, self.fio_shape[direction])
        self.figures.setdefault((direction, FIO), []).append((rate, 0, 0))

    # QEMU by itself.

    def qemu_save(self, channels):
        path = self.path(f"qemu {channels}")
        forget(path)
        with self.guest(self.source) as guest:
            prepare(guest, channels)
            with Clock(guest) as clock:
                guest.command("migrate", uri=f"file:{path}")
                wait_completed(guest)
                with open(path, "rb") as file:
                    os.fdatasync(file.fileno())
            self.note("save", f"QEMU {channels}", clock)

    def qemu_load(self, channels):
        path = self.path(f"qemu {channels}")
        uncache(path)
        memory = self.kind(self.mib << 20, BLOCK)
        with self.guest(memory, incoming=True) as guest:
            prepare(guest, channels)
            with Clock(guest) as clock:
                guest.command("migrate-incoming", uri=f"file:{path}")
                wait_completed(guest)
            self.check(memory)
            self.note("load", f"QEMU {channels}", clock)

    # diohelper.

    def session(self, direction, path, memory, stream):
        flags = os.O_RDWR | os.O_CREAT if direction == manager.SAVE else os.O_RDONLY
        session = manager.Session(HELPER, patience=120)
        session.hello(required=MAPPED_RAM_FEATURE)
        buffered, direct = os.open(path, flags, 0o600), os.open(path, flags | os.O_DIRECT)
        session.attach_image(direction, buffered=buffered, direct=direct)
        session.attach_memory(0, memory.fd)
        session.attach_stream(0, stream)
        for fd in (buffered, direct, stream):
            os.close(fd)
        session.seal()
        return session

    def our_save(self):
        path = self.path(OURS)
        forget(path)
        with self.guest(self.source) as guest:
            guest.capabilities("x-ignore-shared")
            with Clock(guest) as clock:
                state, qemus = os.pipe()
                with self.session(manager.SAVE, path, self.source, state) as session:
                    guest.migrate_to_fd(qemus)
                    os.close(qemus)
                    session.create_image(MAPPED_RAM, 1, 1, 0)
                    session.put_table([manager.Entry(manager.REGION, 0, BLOCK.encode(), self.source.size),
                                       manager.Entry(manager.STREAM_ENTRY, 0, b"state")])
                    session.complete(session.save_stream(0, 0))
                    wait_completed(guest)
                    session.complete(session.save_memory(0, 0, self.source.size))
                    session.complete(session.finish())
            self.note("save", OURS, clock)

    def our_load(self):
        path = self.path(OURS)
        uncache(path)
        memory = self.kind(self.mib << 20, BLOCK)
        with self.guest(memory, incoming=True) as guest:
            guest.capabilities("x-ignore-shared")
            with Clock(guest) as clock:
                qemus, state = os.pipe()
                with self.session(manager.LOAD, path, memory, state) as session:
                    session.open_image()
                    session.complete(session.load_memory(0, 0, memory.size, flags=manager.FRESH))
                    guest.migrate_from_fd(qemus)
                    os.close(qemus)
                    session.complete(session.load_stream(0, 0))
                    wait_completed(guest)
            self.check(memory)
            self.note("load", OURS, clock)

    def check(self, memory):
        """Some pages of what was loaded, so that nobody is fast by doing nothing; and the end of `memory`."""
        for _ in range(64):
            at = random.randrange(0, self.mib << 20, 4096)
            assert memory.read(at, 4096) == self.source.read(at, 4096), f"page {at:#x} is not what it was"
        memory.close()

    # All.

    def round(self):
        """In another order each time: what was written last may still be in some cache below us."""
        saves = [lambda: self.fio_turn("save"), self.our_save]
        loads = [lambda: self.fio_turn("load"), self.our_load]
        saves += [functools.partial(self.qemu_save, channels) for channels in CHANNELS]
        loads += [functools.partial(self.qemu_load, channels) for channels in CHANNELS]
        for turn in random.sample(saves, len(saves)) + random.sample(loads, len(loads)):
            turn()

    def rates(self, direction, name):
        return [rate for rate, _, _ in self.figures[direction, name]]

    def cpus(self, direction, name):
        return [cpu for _, cpu, _ in self.figures[direction, name]]

    def report(self, direction):
        """True if no floor was missed."""
        print(f"\n{direction + ':':24} {'MiB/s':24} CPU s/GiB")
        names = [FIO, OURS] + [f"QEMU {channels}" for channels in CHANNELS]
        for name in names:
            cpu = show(self.cpus(direction, name), "{:.3f}") if name != FIO else ""
            if name == OURS:
                helper = statistics.median(part for _, _, part in self.figures[direction, name])
                cpu += f", of it the helper {helper:.3f}"
            rate = show(self.rates(direction, name), "{:.0f}")
            print(f"  {name.replace('QEMU', 'QEMU, multifd'):22} {rate:24} {cpu}")
        best = max(names[2:], key=lambda name: statistics.median(self.rates(direction, name)))
        to_qemu = ratios(self.rates(direction, OURS), self.rates(direction, best))
        to_fio = ratios(self.rates(direction, OURS), self.rates(direction, FIO))
        cpu = ratios(self.cpus(direction, OURS), self.cpus(direction, best))
        reached = statistics.median(to_qemu) >= 1
        print(f"  against QEMU's best ({best.rpartition(' ')[2]} channels): {show(to_qemu)} times as fast:",
              "floor 1 reached" if reached else "FLOOR 1 MISSED")
        print(f"  of fio {self.fio_shape[direction]}: {show(to_fio)}:", target(statistics.median(to_fio) >= 0.95, 0.95))
        print(f"  of that QEMU's CPU time: {show(cpu)}:", target(statistics.median(cpu) <= 0.5, 0.5))
        return reached


class Clock:
    """Seconds and CPU seconds: of this guest's QEMU, and of children that have ended meanwhile (the helper)."""

    def __init__(self, guest):
        self.pid = guest.process.pid
        self.seconds = self.qemu = self.helper = 0

    @property
    def cpu(self):
        return self.qemu + self.helper

    def add(self, sign):
        with open(f"/proc/{self.pid}/stat", encoding="ascii") as stat:
            fields = stat.read().rpartition(")")[2].split()
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.seconds += sign * time.monotonic()
        self.qemu += sign * (int(fields[11]) + int(fields[12])) / TICK
        self.helper += sign * (children.ru_utime + children.ru_stime)

    def __enter__(self):
        self.add(-1)
        return self

    def __exit__(self, *_):
        self.add(1)


def prepare(guest, channels):
    guest.capabilities("mapped-ram", "multifd")
    guest.parameters(multifd_channels=channels, direct_io=True, max_bandwidth=0)


def wait_completed(guest):
    while (answer := guest.command("query-migrate")).get("status") != "completed":
        if answer.get("status") in ("failed", "cancelled"):
            raise SystemExit(f"qemu.py: QEMU: {answer.get('error-desc', answer['status'])}")
        time.sleep(0.002)


def forget(path):
    if os.path.exists(path):
        os.unlink(path)


def uncache(path):
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ratios(ours, theirs):
    return [mine / other for mine, other in zip(ours, theirs)]


def show(values, how="{:.2f}"):
    return f"{how.format(statistics.median(values))} ({how.format(min(values))} to {how.format(max(values))})"


def target(reached, wanted):
    return f"target {wanted} reached" if reached else f"target {wanted} not reached"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cold", action="store_true", help="QEMU's memory is not prefaulted")
    parser.add_argument("mib", type=int, nargs="?", default=2048)
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    parser.add_argument("directory", nargs="?", default="/var/tmp")
    options = parser.parse_args()
    version = qemu_guest.version()
    if not version or version < (9, 1):
        print("qemu.py: this needs QEMU 9.1: mapped-ram with direct-io", file=sys.stderr)
        sys.exit(77)
    with tempfile.TemporaryDirectory(prefix="diohelper-bench.", dir=options.directory) as directory:
        bench = Bench(options.mib, directory, options.cold)
        bench.fill()
        for _ in range(options.rounds):
            bench.round()
    print(f"{options.mib} MiB, incompressible, {'not ' if options.cold else ''}prefaulted, {options.rounds} rounds,",
          f"QEMU {version[0]}.{version[1]}, {os.cpu_count()} CPUs, Linux {platform.release()}")
    if os.getloadavg()[0] > os.cpu_count() + 1:
        print(f"the machine is busy (load average {os.getloadavg()[0]:.1f}): these figures say little")
    reached = [bench.report(direction) for direction in ("save", "load")]
    sys.exit(0 if all(reached) else 1)


if __name__ == "__main__":
    main()
