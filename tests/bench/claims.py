# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the figures are to show: which experiments are compared, floors and aims, and remarks on single tables.

A measure is a function of all experiments that gives a Spread, or None where nothing was measured.
"""
from typing import Callable, NamedTuple, Optional

import figures

OURS, FIO, FIO_SMALL = "diohelper", "fio", "fio, buffers in 4 KiB pages"
LEGACY, STOCK = "QEMU, legacy stream, libvirt_iohelper", "libvirt_iohelper"
KEPT = "diohelper, DIOHELPER_KEEP_CACHE=1"
ALLOCATED, NO_DISK = "diohelper, memory allocated before", "dd from /dev/zero, no disk"
COMPOSED = "mapped-ram composed by diohelper"
RAW, DROP_IN, INGEST, MULTIFD = "raw, libvirt_iohelper", "raw, drop-in", "ingest", "ingest, multifd 4"
CONVERSIONS = [f"{source} to {target}" for source, target in (
    ("mapped-ram", "container"), ("container", "mapped-ram"), ("mapped-ram", "stream"), ("stream", "mapped-ram"),
    ("libvirt-raw", "libvirt-sparse"), ("libvirt-sparse", "libvirt-raw"))]
MIB = 1 << 20


class Claim(NamedTuple):
    text: str
    measure: Callable
    floor: Optional[float]  # None: there is no more than an aim
    aim: float
    at_least: bool = True


class Line(NamedTuple):
    """One of the summary."""

    text: Callable
    save: Optional[Callable]
    load: Optional[Callable]


# ---- measures ----------------------------------------------------------------------------------------------------------


def peer_of(experiments, experiment, peer):
    """Its samples. `peer` may be a function that chooses among the names."""
    peers = experiments.get(experiment, {}).get("peers", {})
    name = peer(peers) if callable(peer) and peers else peer
    return peers.get(name, {}).get("samples", [])


def ratio(experiment, ours, theirs, key="mib_per_s"):
    def measure(experiments):
        found = figures.pairs(peer_of(experiments, experiment, ours), peer_of(experiments, experiment, theirs), key)
        return figures.spread(found) if found else None
    return measure


def figure(experiment, peer, key, scale=1.0):
    def measure(experiments):
        found = figures.values(peer_of(experiments, experiment, peer), key)
        return figures.spread(value / scale for value in found) if found else None
    return measure


def figure_most(experiment, peer, key, scale):
    def measure(experiments):
        found = figure(experiment, peer, key, scale)(experiments)
        return found and figures.Spread(found.high, found.low, found.high)
    return measure


def most(names, key, scale):
    """Of all that diohelper did in these experiments: the worst decides, so it stands for the median, too."""
    def measure(experiments):
        found = [value / scale for name in names for peer in experiments.get(name, {}).get("peers", {}).values()
                 for value in figures.values(peer["samples"], key)]
        return figures.Spread(max(found), min(found), max(found)) if found else None
    return measure


def growth(experiment):
    """MiB by which a save has made the memory larger, at most."""
    def measure(experiments):
        found = [(sample["memory_after_bytes"] - sample["memory_before_bytes"]) / MIB
                 for peer in experiments.get(experiment, {}).get("peers", {}).values() for sample in peer["samples"]]
        return figures.Spread(max(found), min(found), max(found)) if found else None
    return measure


def best_qemu(peers):
    """QEMU's own best way."""
    return figures.best(peers, [name for name in peers if name.startswith("QEMU") and name != LEGACY])


def best_of_all(peers):
    return figures.best(peers, peers)


def last(peers):
    return list(peers)[-1]


def first(peers):
    return next(iter(peers))


def largest(peers):
    return max(peers, key=size_of)


def smallest(peers):
    return min(peers, key=size_of)


def size_of(name):
    """Of "4 GiB" or "256 MiB"."""
    number, unit = name.split()
    return int(number) * (1024 if unit == "GiB" else 1)


# ---- the summary -------------------------------------------------------------------------------------------------------


def plain(text):
    return lambda _: text


def both(name, ours, theirs):
    return ratio(f"{name}-save", ours, theirs), ratio(f"{name}-load", ours, theirs)


def virsh(ours, theirs):
    return ratio("virsh-save", ours, theirs), ratio("virsh-restore", ours, theirs)


def qemus_best(experiments):
    names = [best_qemu(experiments[name]["peers"]).partition(", ")[2]
             for name in ("qemu-save", "qemu-load") if name in experiments]
    return "QEMU itself at its best (" + "; ".join(dict.fromkeys(names)) + ")"


SHORT = [
    Line(plain("fio, of the disk (memory)"), *both("memory", OURS, FIO)),
    Line(plain("fio, of the disk (memory that is there already)"), None, ratio("memory-load", ALLOCATED, FIO)),
    Line(plain("fio, of the disk (memory in huge pages)"), *both("huge", OURS, FIO)),
    Line(plain("fio, its buffers in pages of 4 KiB, as the memory is"), *both("memory", OURS, FIO_SMALL)),
    Line(plain("dd with O_DIRECT"), *both("memory", OURS, "dd")),
    Line(plain("qemu-img convert"), *both("memory", OURS, "qemu-img")),
    Line(qemus_best, *both("qemu", OURS, best_qemu)),
    Line(plain("QEMU, mapped-ram, buffered"), *both("qemu", OURS, "QEMU, mapped-ram")),
    Line(plain("QEMU through libvirt_iohelper, O_DIRECT"), *both("qemu", OURS, LEGACY)),
    Line(plain("libvirt_iohelper, O_DIRECT stream"), *both("stream-direct", OURS, STOCK)),
    Line(plain("libvirt_iohelper, buffered stream"), *both("stream-buffered", OURS, STOCK)),
    Line(plain("QEMU's stream through libvirt_iohelper, O_DIRECT (ingest)"), *both("ingest", INGEST, RAW)),
    Line(plain("QEMU's stream through libvirt_iohelper, O_DIRECT (ingest, 4 channels)"),
         ratio("ingest-save", MULTIFD, RAW), None),
    Line(plain("fio, blocks of 4 KiB (single pages far apart)"), *both("scattered", OURS, FIO)),
    Line(plain("virsh, legacy (composed image)"), *virsh(COMPOSED, "legacy")),
    Line(plain("virsh, mapped-ram (composed image)"), *virsh(COMPOSED, "mapped-ram")),
    Line(plain("virsh, legacy, bypass-cache (composed image)"), *virsh(COMPOSED, "legacy, bypass-cache")),
    Line(plain("virsh, mapped-ram, bypass-cache (composed image)"), *virsh(COMPOSED, "mapped-ram, bypass-cache")),
    Line(plain("virsh, mapped-ram, bypass-cache, 8 channels (composed image)"),
         *virsh(COMPOSED, "mapped-ram, bypass-cache, 8 channels")),
    Line(plain("virsh, legacy (drop-in)"), *virsh("legacy, drop-in", "legacy")),
    Line(plain("virsh, legacy, bypass-cache (drop-in)"), *virsh("legacy, bypass-cache, drop-in", "legacy, bypass-cache")),
]

# ---- floors and aims ---------------------------------------------------------------------------------------------------

SMALL, THP, HUGETLB = "4 KiB pages", "2 MiB pages (transparent)", "2 MiB pages (hugetlb)"
BARE = ", no scan, no checksums"
OUR_MEMORY = [f"{name}-{verb}" for verb in ("save", "load")
              for name in ("memory", "flat", "flat-there", "zero", "holes", "sparse", "scattered", "cpu", "engine")]
CPU = "cpu_s_per_gib"

CLAIMS = {
    "Memory": [
        Claim("save from 4 KiB pages, of fio's rate", ratio("memory-save", OURS, FIO), 0.90, 0.97),
        Claim("save from 4 KiB pages, of fio's rate with buffers in such", ratio("memory-save", OURS, FIO_SMALL), 0.90, 0.97),
        Claim("save from huge pages, of fio's rate", ratio("huge-save", OURS, FIO), 0.90, 0.97),
        Claim("load into 4 KiB pages that are there, of fio's rate", ratio("memory-load", ALLOCATED, FIO), 0.90, 0.97),
        Claim("load into fresh 4 KiB pages, of fio's rate", ratio("memory-load", OURS, FIO), 0.90, 0.97),
        Claim("load into huge pages, of fio's rate", ratio("huge-load", OURS, FIO), 0.90, 0.97),
        Claim("load into fresh 4 KiB pages, of the rate at which one program can make them",
              ratio("memory-load", OURS, NO_DISK), 0.90, 0.97),
        Claim("save, three quarters zero pages: rate to all of it data", ratio("zero-save", last, first), 2, 2.5),
        Claim("save, every other page a hole: the memory grows by MiB", growth("holes-save"), 0, 0, False),
        Claim("save, a little in much memory: time to that of the data alone", ratio("sparse-save", last, first, "seconds"),
              1.3, 1.1, False),
        Claim("load, a little in much memory: time to that of the data alone", ratio("sparse-load", last, first, "seconds"),
              1.3, 1.1, False),
        Claim("save, largest to smallest memory: rate", ratio("flat-save", largest, smallest), 0.9, 1),
        Claim("load into memory that is there, largest to smallest: rate", ratio("flat-there-load", largest, smallest), 0.9, 1),
        Claim("load into fresh memory, largest to smallest: rate", ratio("flat-load", largest, smallest), 0.9, 1),
    ],
    "QEMU": [
        Claim("save, rate to QEMU's best way", ratio("qemu-save", OURS, best_qemu), 1, 1.25),
        Claim("save, CPU time to that way's", ratio("qemu-save", OURS, best_qemu, CPU), 0.8, 0.5, False),
        Claim("load, rate to QEMU's best way", ratio("qemu-load", OURS, best_qemu), 1, 1.1),
        Claim("load, CPU time to that way's", ratio("qemu-load", OURS, best_qemu, CPU), 0.8, 0.6, False),
        Claim("save, of fio's rate", ratio("qemu-save", OURS, FIO), None, 0.95),
        Claim("load, of fio's rate", ratio("qemu-load", OURS, FIO), None, 0.95),
        Claim("save, rate to the legacy stream through libvirt_iohelper", ratio("qemu-save", OURS, LEGACY), 1.5, 2),
        Claim("load, rate to the legacy stream through libvirt_iohelper", ratio("qemu-load", OURS, LEGACY), 1.5, 2),
    ],
    "Ingest": [
        Claim("the stream, rate to saving it raw by the drop-in", ratio("ingest-save", INGEST, DROP_IN), 0.7, 0.85),
        Claim("4 multifd channels, rate to saving the stream raw by libvirt_iohelper", ratio("ingest-save", MULTIFD, RAW),
              1.2, 1.5),
    ],
    "Convert": [
        Claim(f"{name}, rate to dd's with O_DIRECT", ratio("convert", name, f"{name}: dd"), 0.7, 0.9) for name in CONVERSIONS
    ],
    "The drop-in": [
        Claim("O_DIRECT save, rate to libvirt_iohelper's", ratio("stream-direct-save", OURS, STOCK), 1.3, 1.5),
        Claim("O_DIRECT save, CPU time to its", ratio("stream-direct-save", OURS, STOCK, CPU), 0.75, 0.5, False),
        Claim("O_DIRECT load, rate to libvirt_iohelper's", ratio("stream-direct-load", OURS, STOCK), 1.15, 1.15),
        Claim("O_DIRECT load, CPU time to its", ratio("stream-direct-load", OURS, STOCK, CPU), 0.75, 0.5, False),
        Claim("buffered save, rate to libvirt_iohelper's", ratio("stream-buffered-save", OURS, STOCK), 2, 4),
        Claim("buffered save, CPU time to its", ratio("stream-buffered-save", OURS, STOCK, CPU), 0.75, 0.5, False),
        Claim("buffered save, page cache left, MiB", figure("stream-buffered-save", OURS, "cached_bytes", MIB), 64, 64, False),
        Claim("buffered save kept in the page cache, rate to libvirt_iohelper's",
              ratio("stream-buffered-save", KEPT, STOCK), 1.5, 2),
        Claim("memory of its own (RssAnon), at most, MiB", most(["stream-direct-save", "stream-direct-load"], "own_kib", 1024),
              24, 24, False),
    ],
    "CPU time, s/GiB": [
        Claim(f"save, {SMALL}", figure("cpu-save", SMALL, CPU), 0.20, 0.15, False),
        Claim(f"save, {SMALL}{BARE}", figure("cpu-save", SMALL + BARE, CPU), 0.07, 0.04, False),
        Claim(f"save, {THP}", figure("cpu-save", THP, CPU), 0.15, 0.11, False),
        Claim(f"save, {THP}{BARE}", figure("cpu-save", THP + BARE, CPU), 0.07, 0.04, False),
        Claim(f"save, {HUGETLB}", figure("cpu-save", HUGETLB, CPU), 0.15, 0.11, False),
        Claim(f"save, {HUGETLB}{BARE}", figure("cpu-save", HUGETLB + BARE, CPU), 0.07, 0.04, False),
    ],
    "Engines": [
        Claim(f"{verb}, {engine}, of io_uring's rate", ratio(f"engine-{verb}", engine, "io_uring"), 0.8, 0.9)
        for verb in ("save", "load") for engine in ("libaio", "sync")
    ],
    # More than a tenth better, and the defaults would have to adapt.
    "The defaults": [
        Claim(f"{verb}, 1 MiB × {shape}, of the best combination's rate",
              ratio(f"matrix-{verb}", f"1024 KiB × {shape}", best_of_all), 0.91, 0.91)
        for verb, shape in (("save", "16, 1 worker"), ("load", "4, 2 workers"))
    ],
    "What it takes": [
        Claim("memory of its own (RssAnon + VmPTE), at most, MiB", most(OUR_MEMORY, "own_kib", 1024), 32, 24, False),
        # Head, tables, bitmaps and checksums go through the page cache: less than a thousandth.
        Claim("page cache left by a save, at most, MiB", figure_most("memory-save", OURS, "cached_bytes", MIB), 4, 4, False),
        Claim("page cache left by a load, at most, MiB", figure_most("memory-load", OURS, "cached_bytes", MIB), 4, 4, False),
    ],
}

# Experiments whose tables also tell of I/Os and of the image's size; of the CPU time of the program beside QEMU.
SHAPES = ("zero", "holes", "sparse", "scattered")
BESIDE_QEMU = ("qemu", "cold", "ingest")

# ---- remarks -----------------------------------------------------------------------------------------------------------

REMARKS = {
    "memory-save": "dd and qemu-img make no checksums. fio is the best of a sweep, one for saves and one for loads: 4 and "
                   "16 in flight, blocks of 1 and 4 MiB, buffers in pages of 4 KiB and, where there are huge pages, of "
                   "2 MiB. Its command below says which it is.",
    "memory-load": "A disk may be faster with huge pages than with small ones. The guest's memory here has pages of 4 KiB, "
                   "and so have dd's and qemu-img's buffers; fio's have what serves it best, and in a line of their own "
                   "4 KiB. Memory of other pages has tables of its own below. fio reads into buffers that are there; the "
                   "pages of fresh memory have to be made, by one thread at a time: the kernel locks the file. *memory "
                   "allocated before* is a guest's with prealloc=on; *no disk* does nothing but make the pages.",
    "stream-buffered-load": "As libvirt restores without `--bypass-cache`: the file was just written. What the page cache "
                            "still has of it makes the difference.",
    "qemu-save": "Without multifd, QEMU's parameter direct-io has no effect on the pages. CPU time is QEMU's and the "
                 "helper's together.",
    "cold-save": "Without prealloc=on, and the memory filled from outside: QEMU finds each page while it saves. This table and "
                 "the next one count neither in the summary nor in a claim.",
    "cold-load": "The pages are made while they are loaded; after diohelper's loads QEMU has yet to find each of them, when its "
                 "guest uses it.",
    "ingest-save": "*raw*: the stream as it is; the drop-in is diohelper in the place of libvirt_iohelper. *ingest*: a "
                   "mapped-ram image. CPU time is QEMU's and the program's together. Each channel is a thread of QEMU's: "
                   "where they, its main thread and the helper are more than the machine has processors, further channels "
                   "bring nothing.",
    "ingest-load": "All by QEMU itself: the raw stream through libvirt_iohelper, the ingested image by mapped-ram, "
                   "direct-io and multifd, without diohelper.",
    "convert": "Each conversion has a dd of its own, which alternates with it. dd reads nothing but data; a conversion also "
               "looks through the image, and makes and compares checksums where a format has them.",
    "virsh-save": "MiB/s of the guest's memory. *drop-in*: diohelper in the place of libvirt_iohelper. *composed*: the guest "
                  "is suspended, its memory saved from its file and its devices' state from QEMU, and the image is in "
                  "libvirt's own format.",
    "virsh-restore": "All by libvirt itself: the composed image is restored by an unchanged libvirt and QEMU. libvirt starts "
                     "no helper for a restore without bypass-cache, so there *drop-in* differs only by who has written the "
                     "file.",
    "holes-save": "The claim above about the memory's growth is about this one.",
    "matrix-save": "By `diohelper bench`. The defaults are 1024 KiB × 16 and 1 worker for saves, × 4 and 2 workers "
                   "for loads.",
    "sizing": "By fio, so that each way can be tried on each file system.",
}
