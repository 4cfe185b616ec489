# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory that cannot be compressed, saved and loaded: against fio, dd and qemu-img. Checksums on, the sync counted."""
import os

import harness
from harness import OURS, Experiment, Fio, Memory

MIB_DEFAULT = 4096
ALLOCATED = "diohelper, memory allocated before"
FIO_SMALL = "fio, buffers in 4 KiB pages"
NO_DISK = "dd from /dev/zero, no disk"
FD = "/proc/self/fd/{}"


def dd(source, target, *more):
    return ["dd", f"if={source}", f"of={target}", "bs=1M", *more]


def qemu_img(source, target, source_cache, target_cache, *more):
    return ["qemu-img", "convert", "-f", "raw", "-O", "raw", "-m", "16", "-W", "-T", source_cache, "-t", target_cache,
            *more, source, target]


def dd_save(memory, image):
    return dd(memory, image, "iflag=fullblock", "oflag=direct", "conv=fsync")


def dd_load(image, memory):
    return dd(image, memory, "iflag=direct", "conv=notrunc")


def zeros(memory, mib):
    """How fast pages can be made at all."""
    return ["dd", "if=/dev/zero", f"of={memory}", "bs=1M", f"count={mib}", "conv=notrunc"]


def qemu_img_save(memory, image):
    return qemu_img(memory, image, "writeback", "none")


def qemu_img_load(image, memory):
    return qemu_img(image, memory, "none", "writeback", "-n")


class Copier:
    """A program that copies between memory and a file: its turns of an experiment."""

    def __init__(self, bench, memory, name, save_words, load_words):
        self.memory, self.name, self.path = memory, name, bench.path(name)
        self.save_words, self.load_words = save_words, load_words
        self.fd = FD.format(memory.fd)

    def save(self):
        harness.remove(self.path)
        return sample(self.memory.size, self.save_words(self.fd, self.path), self.memory.fd)

    def load(self):
        harness.uncache(self.path)
        os.truncate(self.memory.fd, 0)
        os.truncate(self.memory.fd, self.memory.size)
        return sample(self.memory.size, self.load_words(self.path, self.fd), self.memory.fd)


def sample(size, words, fd):
    return harness.sample(size / harness.MIB, *harness.timed(words, [fd]))


def make_pages(size):
    """Of a memory of its own: the one that is saved and loaded keeps its bytes."""
    fd = os.memfd_create("pages")
    try:
        os.truncate(fd, size)
        return sample(size, zeros(FD.format(fd), size >> 20), fd)
    finally:
        os.close(fd)


def copiers(bench, memory, experiments):
    found = [Copier(bench, memory, "dd", dd_save, dd_load)]
    if harness.has("qemu-img"):
        found.append(Copier(bench, memory, "qemu-img", qemu_img_save, qemu_img_load))
    else:
        for experiment in experiments:
            experiment.missing("qemu-img", "it is not installed")
    return found


def turns(bench, memory, fios, save, load):
    image = bench.path("image")
    programs = copiers(bench, memory, (save, load))
    for program in programs:
        save.command(program.name, program.save_words("MEMORY", f"$DIR/{program.name}"))
        load.command(program.name, program.load_words(f"$DIR/{program.name}", "MEMORY"))
    load.command(NO_DISK, zeros("MEMORY", memory.size >> 20))
    saves = [lambda: save.add(OURS, memory.save(image))]
    loads = [lambda: load.add(OURS, memory.load(image)),
             lambda: load.add(ALLOCATED, memory.load(image, options=["--allocated"])),
             lambda: load.add(NO_DISK, make_pages(memory.size))]
    for name, fio in fios.items():
        fio.describe(save, "write", name)
        fio.describe(load, "read", name)
        saves.append(lambda n=name, f=fio: save.add(n, f.turn("write")))
        loads.append(lambda n=name, f=fio: load.add(n, f.turn("read")))
    saves += [lambda p=program: save.add(p.name, p.save()) for program in programs]
    loads += [lambda p=program: load.add(p.name, p.load()) for program in programs]
    return saves, loads


def in_huge_pages(bench, mib, fio):
    """What 4 KiB pages cost falls away: diohelper against the disk."""
    save = Experiment(f"Save of {mib} MiB of incompressible memory in huge pages", mib=mib)
    load = Experiment(f"Load of {mib} MiB of incompressible memory in huge pages", mib=mib)
    image = bench.path("image")
    fio.describe(save, "write")
    fio.describe(load, "read")
    try:
        with harness.huge_pages(mib << 20), Memory(mib << 20, pages="hugetlb") as memory:
            bench.repeat([lambda: save.add(OURS, memory.save(image)), lambda: save.add("fio", fio.turn("write"))],
                         [lambda: load.add(OURS, memory.load(image)), lambda: load.add("fio", fio.turn("read"))])
    except (harness.Unavailable, OSError) as why:
        save.missing(OURS, str(why))
        load.missing(OURS, str(why))
    return {"huge-save": save, "huge-load": load}


def measure(bench):
    mib = bench.size(MIB_DEFAULT)
    size = mib << 20
    harness.require_memory(size)
    save = Experiment(f"Save of {mib} MiB of incompressible memory", mib=mib)
    load = Experiment(f"Load of {mib} MiB of incompressible memory", mib=mib)
    save.command(OURS, f"build/bench/memory save FD {size} $DIR/image")
    load.command(OURS, f"build/bench/memory load FD {size} $DIR/image {harness.MIB} {harness.MIB}")
    load.command(ALLOCATED, f"build/bench/memory load FD {size} $DIR/image {harness.MIB} {harness.MIB} --allocated")
    with Fio(bench.path("fio"), mib) as fio:
        fios = {"fio": fio} if fio.not_huge else {"fio": fio, FIO_SMALL: Fio(fio.path, mib)}
        with Memory(size) as memory:
            bench.repeat(*turns(bench, memory, fios, save, load))
        return {"memory-save": save, "memory-load": load, **in_huge_pages(bench, mib, fio)}
