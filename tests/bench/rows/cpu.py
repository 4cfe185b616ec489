# SPDX-License-Identifier: LGPL-2.1-or-later
"""CPU time by kind of page, with and without scan and checksums; and the three engines."""
import contextlib
import re

import harness
from harness import MIB, Experiment, Memory, Setting

MIB_DEFAULT = 2048
BARE = ["--no-scan", "--no-checksum"]
ENGINES = {"io_uring": 1, "libaio": 2, "sync": 3}
SHMEM_HUGE = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
SMALL, THP, HUGETLB = "4 KiB pages", "2 MiB pages (transparent)", "2 MiB pages (hugetlb)"


def shmem_huge_bytes():
    with open("/proc/meminfo", encoding="ascii") as file:
        return int(re.search(r"ShmemHugePages: +(\d+)", file.read())[1]) << 10


def transparent(stack, size):
    """A memfd that really has huge pages; the machine's setting is put back in the end."""
    with open(SHMEM_HUGE, encoding="ascii") as file:
        if re.search(r"\[(never|deny)\]", file.read()):
            stack.enter_context(Setting(SHMEM_HUGE, "advise"))
    before = shmem_huge_bytes()
    memory = stack.enter_context(Memory(size, pages="thp"))
    if shmem_huge_bytes() - before < size * 9 // 10:
        raise harness.Unavailable("the kernel gave the memory few huge pages")
    return memory


def hugetlb(stack, size):
    stack.enter_context(harness.huge_pages(size))
    return stack.enter_context(Memory(size, pages="hugetlb"))


def kinds(stack, size, experiments):
    found = {SMALL: stack.enter_context(Memory(size))}
    for name, make in ((THP, transparent), (HUGETLB, hugetlb)):
        try:
            found[name] = make(stack, size)
        except (harness.Unavailable, OSError) as why:
            for experiment in experiments:
                experiment.missing(name, str(why))
    return found


def pages(bench, stack, size):
    mib = size // MIB
    save = Experiment(f"Save of {mib} MiB, by kind of page", mib=mib)
    load = Experiment(f"Load of {mib} MiB, by kind of page", mib=mib)
    path = bench.path("image")

    def turn(name, memory, options):
        save.add(name, memory.save(path, options=options))
        load.add(name, memory.load(path, options=options[1:]))

    turns = []
    for name, memory in kinds(stack, size, (save, load)).items():
        turns.append(lambda n=name, m=memory: turn(n, m, []))
        turns.append(lambda n=name, m=memory: turn(f"{n}, no scan, no checksums", m, BARE))
    bench.repeat(turns)
    return {"cpu-save": save, "cpu-load": load}


def engines(bench, size):
    mib = size // MIB
    save, load = Experiment(f"Save of {mib} MiB, by engine", mib=mib), Experiment(f"Load of {mib} MiB, by engine", mib=mib)
    path = bench.path("image")

    def turn(name, memory):
        options = [f"--engine={ENGINES[name]}"]
        save.add(name, memory.save(path, options=options))
        load.add(name, memory.load(path, options=options))

    with Memory(size) as memory:
        bench.repeat([lambda n=name: turn(n, memory) for name in ENGINES])
    return {"engine-save": save, "engine-load": load}


def measure(bench):
    size = bench.size(MIB_DEFAULT) * MIB
    harness.require_memory(3 * size)
    with contextlib.ExitStack() as stack:
        found = pages(bench, stack, size)
    return {**found, **engines(bench, size)}
