# SPDX-License-Identifier: LGPL-2.1-or-later
"""Does it stay as fast? 1, 4 and 16 GiB, per GiB. Loads into fresh memory, and into memory that is there already."""
import harness
from harness import GIB, MIB, Experiment, Memory

LARGEST_GIB = (16, 12, 8) # the first that fits; a load goes into the same memory


def largest(bench):
    for gib in LARGEST_GIB:
        if harness.memory_available() > (gib + 2) * GIB:
            return bench.size(gib * 1024)
    raise harness.Unavailable(f"this takes {LARGEST_GIB[-1] + 2} GiB of memory")


def name_of(mib):
    return f"{mib // 1024} GiB" if mib % 1024 == 0 else f"{mib} MiB"


def measure(bench):
    most = largest(bench)
    sizes = [bench.size(1024), bench.size(4096), most]
    note = "" if most == bench.size(LARGEST_GIB[0] * 1024) else f"; {LARGEST_GIB[0]} GiB did not fit into this machine"
    save = Experiment(f"Save of incompressible memory, small to large{note}", sizes_mib=sizes)
    load = Experiment(f"Load of incompressible memory, small to large{note}", sizes_mib=sizes)
    there = Experiment(f"Load into memory that is there already, small to large{note}", sizes_mib=sizes)
    path = bench.path("image")
    with Memory(most * MIB) as memory:
        def turn(mib):
            save.add(name_of(mib), memory.save(path, mib * MIB))
            load.add(name_of(mib), memory.load(path, mib * MIB))
            there.add(name_of(mib), memory.load(path, mib * MIB, options=["--allocated"]))
        bench.repeat([lambda m=mib: turn(m) for mib in sizes])
    return {"flat-save": save, "flat-load": load, "flat-there-load": there}
