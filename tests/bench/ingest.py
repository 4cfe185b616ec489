#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""`diohelper-tool ingest` of a QEMU's migration, against saving the same stream raw.

    ingest.py [MIB [ROUNDS [DIRECTORY]]]      default: 2048 MiB, 5 rounds, /var/tmp

All take turns, round after round, each round in another order, on one file system: the stream raw by O_DIRECT, through
libvirt's own libvirt_iohelper (STOCK names it) and through the drop-in; the stream through ingest; and multifd's channels
through ingest, over UNIX sockets. The guest is paused from
the start, its memory full of incompressible data and prefaulted. Programs are started inside the clock, which stops when
what they wrote is durable and they have ended. Then stock QEMUs restore: the raw stream through libvirt's program, the
ingested image by mapped-ram with multifd and direct-io. Ratios are medians over the rounds, with the smallest and the
largest. Exit status 1: a floor was missed.
"""
import argparse
import fcntl
import functools
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True  # no __pycache__ in the source tree
import qemu  # noqa: E402
from qemu import BLOCK, Clock, HELPER, Prefaulted, forget, qemu_guest, ratios, show, uncache, wait_completed  # noqa: E402

TOOL = os.environ.get("DIOHELPER_TOOL") or os.path.join(os.environ.get("BUILD", "build"), "diohelper-tool")
PIPE_BYTES = 1 << 20
STOCK, DROPIN, INGEST = "raw, libvirt's program", "raw, the drop-in", "ingest"
MULTIFD, CHANNELS = "ingest, multifd", (1, 2, 4, 8)
COMPARED_CHANNELS = 4
RESTORE_STOCK, RESTORE_IMAGE = "raw, libvirt's program", "ingested, multifd 4"


def find_stock():
    for path in (os.environ.get("STOCK"), "/usr/lib/libvirt/libvirt_iohelper", "/usr/libexec/libvirt_iohelper"):
        if path and os.access(path, os.X_OK):
            return path
    return None


class Bench:
    """The files and figures of one run. `figures`: (MiB/s, CPU s/GiB, of it the programs'), by (direction, name)."""

    def __init__(self, mib, directory, stock):
        self.mib, self.directory, self.stock = mib, directory, stock
        self.source = Prefaulted(mib << 20, BLOCK)
        self.figures = {}

    fill = qemu.Bench.fill
    note = qemu.Bench.note
    check = qemu.Bench.check

    def path(self, name):
        return os.path.join(self.directory, name.replace(" ", "-").replace("'", ""))

    def guest(self, memory, incoming=False):
        return qemu_guest.Guest(self.directory, self.mib, [memory], incoming=incoming)

    def save(self, name, start):
        """`start` gets the pipe's reading end and answers the program that reads it."""
        forget(self.path(name))
        with self.guest(self.source) as guest:
            guest.parameters(max_bandwidth=0)
            reading, writing = os.pipe()
            fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            with Clock(guest) as clock:
                program = start(reading)
                os.close(reading)
                guest.migrate_to_fd(writing)
                os.close(writing)
                wait_completed(guest)
                assert program.wait() == 0, f"{name} failed"
            self.note("save", name, clock)

    def save_raw(self, name, program):
        def start(reading):
            image = os.open(self.path(name), os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600)
            try:
                return subprocess.Popen(["libvirt_iohelper", self.path(name), "1"], executable=program, stdin=reading,
                                        stdout=image)
            finally:
                os.close(image)
        self.save(name, start)

    def save_ingested(self):
        self.save(INGEST, lambda reading: subprocess.Popen([TOOL, "ingest", "--quiet", self.path(INGEST)], stdin=reading))

    def save_multifd(self, channels):
        name = f"{MULTIFD} {channels}"
        forget(self.path(name))
        socket = self.path("socket")
        with self.guest(self.source) as guest:
            guest.capabilities("multifd")
            guest.parameters(max_bandwidth=0, multifd_channels=channels)
            with Clock(guest) as clock:
                program = subprocess.Popen([TOOL, "ingest", "--quiet", f"--listen=unix:{socket}", f"--multifd={channels}",
                                            self.path(name)])
                while not os.path.exists(socket):
                    assert program.poll() is None, f"{name} failed"
                guest.command("migrate", uri=f"unix:{socket}")
                wait_completed(guest)
                assert program.wait() == 0, f"{name} failed"
            self.note("save", name, clock)

    def load_raw(self):
        path = self.path(STOCK)
        uncache(path)
        memory = Prefaulted(self.mib << 20, BLOCK)
        with self.guest(memory, incoming=True) as guest:
            reading, writing = os.pipe()
            fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            image = os.open(path, os.O_RDONLY | os.O_DIRECT)
            with Clock(guest) as clock:
                program = subprocess.Popen(["libvirt_iohelper", path, "0"], executable=self.stock, stdin=image,
                                           stdout=writing)
                os.close(writing)
                os.close(image)
                guest.migrate_from_fd(reading)
                os.close(reading)
                wait_completed(guest)
                assert program.wait() == 0, "libvirt_iohelper failed"
            self.check(memory)
            self.note("restore", RESTORE_STOCK, clock)

    def load_ingested(self):
        path = self.path(INGEST)
        uncache(path)
        memory = Prefaulted(self.mib << 20, BLOCK)
        with self.guest(memory, incoming=True) as guest:
            qemu.prepare(guest, 4)
            with Clock(guest) as clock:
                guest.command("migrate-incoming", uri=f"file:{path}")
                wait_completed(guest)
            self.check(memory)
            self.note("restore", RESTORE_IMAGE, clock)

    def round(self):
        """In another order each time: what was written last may still be in some cache below us."""
        saves = [self.save_ingested, lambda: self.save_raw(STOCK, self.stock), lambda: self.save_raw(DROPIN, HELPER)]
        saves += [functools.partial(self.save_multifd, channels) for channels in CHANNELS]
        loads = [self.load_raw, self.load_ingested]
        for turn in random.sample(saves, len(saves)) + random.sample(loads, len(loads)):
            turn()

    def rates(self, direction, name):
        return [rate for rate, _, _ in self.figures[direction, name]]

    def report(self, direction, names):
        print(f"\n{direction + ':':26} {'MiB/s':24} CPU s/GiB, of it the programs beside QEMU")
        for name in names:
            cpu = show([cpu for _, cpu, _ in self.figures[direction, name]], "{:.3f}")
            part = statistics.median(part for _, _, part in self.figures[direction, name])
            print(f"  {name:24} {show(self.rates(direction, name), '{:.0f}'):24} {cpu}, {part:.3f}")

    def compare(self, direction, ours, theirs, floor, target):
        """True if the floor was not missed."""
        found = ratios(self.rates(direction, ours), self.rates(direction, theirs))
        median = statistics.median(found)
        verdict = (f"target {target} reached" if median >= target else
                   f"floor {floor} reached, target {target} not" if median >= floor else f"FLOOR {floor} MISSED")
        print(f"  {ours} against {theirs}: {show(found)} times as fast: {verdict}")
        return median >= floor


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("mib", type=int, nargs="?", default=2048)
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    parser.add_argument("directory", nargs="?", default="/var/tmp")
    options = parser.parse_args()
    version, stock = qemu_guest.version(), find_stock()
    if not version or version < (9, 1) or not stock:
        print("ingest.py: this needs QEMU 9.1 (mapped-ram with direct-io) and libvirt_iohelper", file=sys.stderr)
        sys.exit(77)
    with tempfile.TemporaryDirectory(prefix="diohelper-bench.", dir=options.directory) as directory:
        bench = Bench(options.mib, directory, stock)
        bench.fill()
        for _ in range(options.rounds):
            bench.round()
    print(f"{options.mib} MiB, incompressible, {options.rounds} rounds, QEMU {version[0]}.{version[1]},",
          f"{os.cpu_count()} CPUs, Linux {platform.release()}")
    if os.getloadavg()[0] > os.cpu_count() + 1:
        print(f"the machine is busy (load average {os.getloadavg()[0]:.1f}): these figures say little")
    bench.report("save", [STOCK, DROPIN, INGEST] + [f"{MULTIFD} {channels}" for channels in CHANNELS])
    reached = [bench.compare("save", INGEST, DROPIN, 0.7, 0.85),
               bench.compare("save", f"{MULTIFD} {COMPARED_CHANNELS}", STOCK, 1.2, 1.5)]
    bench.report("restore", (RESTORE_STOCK, RESTORE_IMAGE))
    print(f"  {show(ratios(bench.rates('restore', RESTORE_IMAGE), bench.rates('restore', RESTORE_STOCK)))} times as fast")
    sys.exit(0 if all(reached) else 1)


if __name__ == "__main__":
    main()
