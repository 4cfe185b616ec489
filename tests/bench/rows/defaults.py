# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why the defaults are what they are: block size, depth, workers; how the file is sized, by file system."""
import contextlib
import json
import os

import harness
from harness import Experiment, Fio, FioShape

MATRIX_MIB, SIZING_MIB = 1024, 1024
BLOCKS, DEPTHS, WORKERS = ("256K", "1M", "4M"), (4, 16, 32), (1, 2)
SIZINGS = {"extended by its writes": "none", "ftruncate": "truncate", "fallocate": "native"}
SIZING_SHAPE = FioShape(16, "1M")
LOOP_FILE_SYSTEMS = {"xfs": ["mkfs.xfs", "-q"], "btrfs": ["mkfs.btrfs", "-q"]}
LOOP_TIMES = 4 # so much larger than the file in it is the file system


def bench_words(path, mib, rounds):
    return ["bench", "--json", f"--size={mib}M", f"--repeat={rounds}", "--engine=io_uring", f"--block={','.join(BLOCKS)}",
            f"--depth={','.join(map(str, DEPTHS))}", f"--workers={','.join(map(str, WORKERS))}", path]


def matrix(bench):
    mib = bench.size(MATRIX_MIB)
    said = json.loads(harness.run([harness.TOOL, *bench_words(bench.directory, mib, bench.rounds)], seconds_max=3600))
    found = {verb: Experiment(f"{verb.title()} of {mib} MiB by block size, depth and workers", mib=mib,
                              setup_command="diohelper " + " ".join(bench_words("$DIR", mib, bench.rounds)))
             for verb in ("save", "load")}
    for run in said["runs"]:
        name = f"{run['block_bytes'] >> 10} KiB × {run['in_flight']}, {run['workers']} worker" + "s" * (run["workers"] > 1)
        for rate in run["mib_per_s_all"]:
            found[run["operation"]].add(name, {"mib_per_s": rate})
        found[run["operation"]].peers[name]["cpu_s_per_gib"] = run["cpu_s_per_gib"]
    return {f"matrix-{verb}": experiment for verb, experiment in found.items()}


# ---- how the file is sized ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def loop_file_system(bench, kind, mib):
    """A directory on a file system of that kind in a file."""
    image, where = bench.path(f"{kind}.img"), bench.path(kind)
    with open(image, "wb") as file:
        file.truncate(mib * LOOP_TIMES << 20)
    harness.run([*LOOP_FILE_SYSTEMS[kind], image])
    os.mkdir(where)
    device = harness.run(["losetup", "--find", "--show", "--direct-io=on", image]).strip()
    try:
        harness.run(["mount", device, where])
        try:
            yield where
        finally:
            harness.run(["umount", where])
    finally:
        harness.run(["losetup", "-d", device])
        os.unlink(image)


def sizing_turns(directory, kind, mib, experiment):
    path = os.path.join(directory, "sized")

    def turn(name):
        experiment.add(f"{kind}: {name}",
                       Fio.measure(path, mib, "write", SIZING_SHAPE, SIZINGS[name]))
        harness.remove(path)

    return [lambda n=name: turn(n) for name in SIZINGS]


def sizing(bench):
    """By fio, because the helper has no other way than the one that it takes."""
    mib = bench.size(SIZING_MIB)
    own = harness.file_system(bench.directory).split()[0]
    found = Experiment(f"Write of {mib} MiB by fio, blocks of 1 MiB, 16 in flight, by how the file gets its size", mib=mib)
    with contextlib.ExitStack() as stack:
        groups = [sizing_turns(bench.directory, own, mib, found)]
        for kind, (program, *_) in LOOP_FILE_SYSTEMS.items():
            if os.geteuid() != 0 or not harness.has(program):
                found.missing(f"{kind} on a loop device", f"this needs root and {program}")
                continue
            where = stack.enter_context(loop_file_system(bench, kind, max(mib, 256)))
            groups.append(sizing_turns(where, f"{kind} on a loop device", mib, found))
        bench.repeat(*groups)
    for name, how in SIZINGS.items():
        words = Fio.command("FILE", mib, "write", SIZING_SHAPE, how)
        for kind in [own, *(f"{kind} on a loop device" for kind in LOOP_FILE_SYSTEMS)]:
            if f"{kind}: {name}" in found.peers:
                found.command(f"{kind}: {name}", words)
    return {"sizing": found}


def measure(bench):
    return {**matrix(bench), **sizing(bench)}
