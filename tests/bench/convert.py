#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""diohelper-tool convert against `dd` with direct I/O, which copies as many bytes from disk to disk.

One machine's memory, MIB of it data that cannot be compressed and as much again zero, is there in each format; each
conversion is timed from the start of the tool to its end, with OUT durable, and right after it dd with the same number of
bytes (bs=1M, direct on both sides, fdatasync). Medians of REPEATS pairs; images are dropped from the page cache before.

    convert.py [DIRECTORY]          BENCH_MIB (default 1024), BENCH_REPEATS (default 3)
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.dont_write_bytecode = True  # no __pycache__ in the source tree
INTEGRATION = os.path.join(HERE, "../integration")
sys.path[:0] = [os.path.join(INTEGRATION, "other_language"), INTEGRATION]

import manager  # noqa: E402 (the path had to be set first)
import qemu_stream  # noqa: E402
from manager import Entry, Session  # noqa: E402
from qemu_stream import MIB, Block  # noqa: E402

BUILD = os.environ.get("BUILD") or os.path.join(HERE, "../../build")
TOOL = os.environ.get("DIOHELPER_TOOL") or os.path.join(BUILD, "diohelper-tool")
HELPER = os.environ["DIOHELPER"] = os.environ.get("DIOHELPER") or os.path.join(BUILD, "diohelper")
DATA_MIB = int(os.environ.get("BENCH_MIB") or 1024)
REPEATS = int(os.environ.get("BENCH_REPEATS") or 3)
RUN = 16 * MIB
FLOOR, TARGET = 0.7, 0.9

# from, to, its OUT is a later one's IN
CONVERSIONS = (("mapped-ram", "container"), ("container", "mapped-ram"), ("mapped-ram", "stream"),
               ("stream", "mapped-ram"), ("libvirt-raw", "libvirt-sparse"), ("libvirt-sparse", "libvirt-raw"))


def make_memory(size):
    memory = os.memfd_create("memory")
    os.truncate(memory, size)
    for at in range(0, size, 2 * RUN):
        os.pwrite(memory, os.urandom(RUN), at)
    return memory


def feed(fd, data):
    with open(fd, "wb", buffering=0) as pipe:
        rest = memoryview(data)
        while rest:
            rest = rest[pipe.write(rest):]


def compose(path, size):
    """A mapped-ram image with a record, of a guest whose memory is shared."""
    memory, block = make_memory(size), Block("pc.ram", size)
    fds = [os.open(path, os.O_RDWR | os.O_CREAT | flag, 0o600) for flag in (0, os.O_DIRECT)]
    read_end, write_end = os.pipe()
    threading.Thread(target=feed, args=(write_end, qemu_stream.stream((block,))), daemon=True).start()
    with Session(HELPER) as session:
        session.hello(offered=0xFF)
        session.attach_image(manager.SAVE, *fds)
        session.attach_memory(0, memory)
        session.attach_stream(0, read_end)
        os.close(read_end)
        session.seal()
        session.create_image(manager.MAPPED_RAM, 1, 1, 0, 0)
        session.put_table([Entry(manager.REGION, 0, b"pc.ram", size), Entry(manager.STREAM_ENTRY, 0, b"state")])
        session.complete(session.save_stream(0, 0))
        session.complete(session.save_memory(0, 0, size))
        session.complete(session.finish())
    for fd in (*fds, memory):
        os.close(fd)


def make_images(directory):
    paths = {name: os.path.join(directory, name) for name in ("mapped-ram", "container", "stream", "libvirt-raw",
                                                              "libvirt-sparse")}
    compose(paths["mapped-ram"], 2 * DATA_MIB * MIB)
    subprocess.run([TOOL, "convert", "--to", "container", paths["mapped-ram"], paths["container"]], check=True)
    subprocess.run([TOOL, "convert", paths["mapped-ram"], paths["stream"]], check=True)
    with open(paths["libvirt-raw"], "wb") as file:
        file.write(qemu_stream.libvirt_header("raw"))
        file.flush()
        with open(paths["stream"], "rb") as stream:
            shutil.copyfileobj(stream, file, MIB)
    subprocess.run([TOOL, "convert", paths["libvirt-raw"], paths["libvirt-sparse"]], check=True)
    return paths


def drop(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def timed(arguments, out):
    if os.path.exists(out):
        os.unlink(out)
    begun = time.monotonic()
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - begun


def pair(paths, source, target, directory):
    """MiB of data a second: convert, and dd after it."""
    out = os.path.join(directory, "out")
    drop(paths[source])
    ours = timed([TOOL, "convert", "--to", target, paths[source], out], out)
    dense = paths["stream"] # as long as the data, and on the disk
    drop(dense)
    theirs = timed(["dd", f"if={dense}", f"of={out}", "bs=1M", f"count={DATA_MIB}", "iflag=direct", "oflag=direct",
                    "conv=fdatasync"], out)
    return DATA_MIB / ours, DATA_MIB / theirs


def main():
    directory = tempfile.mkdtemp(prefix="dioh-bench.", dir=sys.argv[1] if sys.argv[1:] else os.environ.get("TMPDIR") or
                                 "/var/tmp")
    missed = 0
    try:
        paths = make_images(directory)
        print(f"{'from':<16}{'to':<16}{'convert':>9}{'dd':>9}  MiB/s   ratio (floor {FLOOR}, target {TARGET})")
        for source, target in CONVERSIONS:
            pairs = [pair(paths, source, target, directory) for _ in range(REPEATS)]
            ratio = statistics.median(ours / theirs for ours, theirs in pairs)
            missed += ratio < FLOOR
            print(f"{source:<16}{target:<16}{statistics.median(one[0] for one in pairs):>9.0f}"
                  f"{statistics.median(one[1] for one in pairs):>9.0f}          {ratio:.2f}"
                  f"{'' if ratio >= TARGET else '  below the target' if ratio >= FLOOR else '  BELOW THE FLOOR'}", flush=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
