# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory of other shapes: much of it zero, every other page a hole, a little in much, single pages far apart."""
import harness
from harness import GIB, MIB, OURS, PAGE, Experiment, Fio, FioShape, Memory

ZERO_MIB, HOLES_MIB, DATA_MIB = 2048, 1024, 1024
# With `discard`, a file system may take milliseconds to give back each single page: minutes for a GiB of them.
SCATTERED_MIB, SCATTERED_MIB_DISCARD = 1024, 32
SPARSE_TIMES = 512 # so much larger than its data is a sparse region
RUN, SCATTER = MIB, 2 * MIB
FIO_DEPTHS = [FioShape(depth, "4k") for depth in (16, 64, 128)]


class Shape:
    """One alternative of a pair of experiments, save and load."""

    def __init__(self, bench, name, memory, counted=None):
        self.name, self.memory, self.counted = name, memory, counted
        self.path = bench.path("image")

    def both(self, save, load):
        save.add(self.name, self.memory.save(self.path, counted=self.counted))
        load.add(self.name, self.memory.load(self.path, counted=self.counted))


def experiments(name, title, **about):
    return {f"{name}-save": Experiment(f"Save: {title}", **about), f"{name}-load": Experiment(f"Load: {title}", **about)}


def compare(bench, name, title, shapes, more=(), **about):
    found = experiments(name, title, **about)
    save, load = found.values()
    bench.repeat([lambda s=shape: s.both(save, load) for shape in shapes] +
                 [lambda t=turn: t(save, load) for turn in more])
    return found


def zeros(bench):
    mib = bench.size(ZERO_MIB)
    with Memory(mib * MIB) as full, Memory(mib * MIB, MIB // 4, MIB, "zero") as quarter:
        return compare(bench, "zero", f"{mib} MiB, of it three quarters zero pages that are there (runs of 768 KiB); rates "
                       "in bytes of the guest", [Shape(bench, "all of it data", full),
                                              Shape(bench, "three quarters zero", quarter)], mib=mib)


def holes(bench):
    mib = bench.size(HOLES_MIB)
    with Memory(mib * MIB, PAGE, 2 * PAGE) as alternate:
        return compare(bench, "holes", f"{mib} MiB, every other page a hole; rates in bytes of the guest",
                       [Shape(bench, "every other page a hole", alternate)], mib=mib)


def sparse(bench):
    mib = bench.size(DATA_MIB)
    size = mib * MIB
    with Memory(size) as dense, Memory(size * SPARSE_TIMES, RUN, RUN * SPARSE_TIMES) as runs:
        much = f"{runs.size // GIB} GiB"
        return compare(bench, "sparse", f"{mib} MiB of data in {much} of memory, runs of 1 MiB, against the data alone; rates "
                       "in bytes of data", [Shape(bench, f"{mib} MiB", dense, size),
                                            Shape(bench, f"{mib} MiB in {much}", runs, size)], mib=mib)


def scattered(bench):
    """The disk's rate of single pages is fio's, at the best of a few depths."""
    discards = "discard" in harness.file_system(bench.directory).split()[-1].split(",")
    mib = SCATTERED_MIB_DISCARD // (16 if bench.quick else 1) if discards else bench.size(SCATTERED_MIB)
    size = mib * MIB
    fio = Fio(bench.path("fio"), max(64, mib // 4), FIO_DEPTHS, "native") # its blocks in one piece, for the same reason

    def fio_turn(save, load):
        save.add("fio", fio.turn("randwrite"))
        load.add("fio", fio.turn("randread"))

    with Memory(SCATTER * size // PAGE, PAGE, SCATTER) as pages:
        found = compare(bench, "scattered", f"{size // PAGE} single pages in {pages.size // GIB} GiB, against the disk's rate "
                        "of 4 KiB I/O; rates in bytes of data", [Shape(bench, OURS, pages, size)], [fio_turn], mib=mib)
    fio.describe(found["scattered-save"], "randwrite")
    fio.describe(found["scattered-load"], "randread")
    return found


def measure(bench):
    harness.require_memory(2 * bench.size(ZERO_MIB) * MIB)
    return {**zeros(bench), **holes(bench), **sparse(bench), **scattered(bench)}
