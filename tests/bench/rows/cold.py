# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest of a stock QEMU whose page tables are empty, saved and loaded: by QEMU in its fastest ways, and by diohelper.

All is as in the row `qemu`, but that nothing is prefaulted: the memory that is saved was filled from outside, so QEMU finds
each page while it saves; the memory that is loaded into has no pages yet. It is a row of its own because how fast QEMU finds
and makes pages is not what its ways to save are judged by: no claim is about it.
"""
import contextlib
import functools
import re

import harness
from harness import OURS, Experiment
from rows import qemu

MODES = [name for name, (capabilities, _) in qemu.MODES.items() if "multifd" in capabilities]
MAPPED_KIB_MAX = 8 << 10  # what a QEMU that has not run its guest may have touched: firmware, tables


def must_be_cold(guest):
    """Else this would be the row `qemu` once more."""
    with open(f"/proc/{guest.process.pid}/status", encoding="ascii") as status:
        mapped_kib = int(re.search(r"^RssShmem:\s*(\d+) kB$", status.read(), re.M)[1])
    if mapped_kib > MAPPED_KIB_MAX:
        raise harness.Failed(f"QEMU's page tables are not empty: they have {mapped_kib} KiB of its guest's memory")


def prepare(ways, guest):
    ways(guest)
    must_be_cold(guest)


def turn_list(turns, direction, ours, theirs):
    run, experiment = functools.partial(turns.run, direction), turns.experiments[direction]
    qemu.command_ours(experiment, direction)
    found = [functools.partial(run, OURS, ours, functools.partial(prepare, qemu.ignore_shared))]
    for mode in MODES:
        qemu.command_mode(experiment, direction, mode)
        ways = functools.partial(qemu.prepare_mode, mode)
        found.append(functools.partial(run, mode, theirs, functools.partial(prepare, ways)))
    return found


def measure(bench):
    mib = bench.size(qemu.MIB_DEFAULT)
    name = qemu.require_qemu(mib)
    save = Experiment(f"Save of a paused {mib} MiB guest of {name} whose page tables are empty", mib=mib)
    load = Experiment(f"Load of that guest into a new {name} whose memory has no pages yet", mib=mib)
    turns = qemu.Turns(bench, mib, save, load, kind=qemu.qemu_guest.Memory)
    with contextlib.closing(turns.source):
        bench.repeat(turn_list(turns, "save", qemu.our_save, qemu.qemu_save),
                     turn_list(turns, "load", qemu.our_load, qemu.qemu_load))
    return {"cold-save": save, "cold-load": load}
