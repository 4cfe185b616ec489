# SPDX-License-Identifier: LGPL-2.1-or-later
"""The drop-in against libvirt's own libvirt_iohelper: a stream into and out of a file, O_DIRECT and buffered."""
import os

import harness
from harness import OURS, Experiment

MIB_DEFAULT = 2048
STREAM = os.path.join(harness.BUILD, "bench/stream")
STOCK, KEPT = "libvirt_iohelper", f"{OURS}, DIOHELPER_KEEP_CACHE=1"
PLACES = ["/usr/lib/libvirt/libvirt_iohelper", "/usr/libexec/libvirt_iohelper", "/usr/lib64/libvirt/libvirt_iohelper"]


def stock_program():
    for place in [os.environ.get("STOCK")] + PLACES:
        if place and os.access(place, os.X_OK):
            return place
    raise harness.Unavailable("there is no libvirt_iohelper here; STOCK may name one")


def turn(path, verb, how, program, mib, environment=None):
    if verb == "save":
        harness.remove(path)
    said = harness.run([STREAM, verb, how, program, path, str(mib)], env=dict(os.environ, **(environment or {})))
    rate, cpu_s_per_gib, rss_kib, cached_kib, exit_ms = map(float, said.split())
    return {"mib_per_s": rate, "seconds": mib / rate, "cpu_s_per_gib": cpu_s_per_gib, "own_kib": rss_kib,
            "cached_bytes": cached_kib * 1024, "exit_ms": exit_ms}


class Pairs:
    def __init__(self, bench, mib, peers):
        self.bench, self.mib, self.peers = bench, mib, peers
        self.experiments = {}

    def both(self, how, name):
        """A save and, right behind it, the load of what it has written."""
        program, environment = self.peers[name]
        path = self.bench.path("stream")
        for verb in ("save", "load"):
            experiment = self.experiments[f"stream-{how}-{verb}"]
            experiment.add(name, turn(path, verb, how, program, self.mib, environment))

    def open(self, how, verb, names):
        what = "O_DIRECT" if how == "direct" else "buffered"
        experiment = Experiment(f"Stream of {self.mib} MiB, {what} {verb}", mib=self.mib)
        for name in names:
            prefix = " ".join(f"{key}={value}" for key, value in (self.peers[name][1] or {}).items())
            experiment.command(name, f"{prefix} build/bench/stream {verb} {how} "
                               f"{'build/diohelper' if name != STOCK else STOCK} $DIR/stream {self.mib}".strip())
        self.experiments[f"stream-{how}-{verb}"] = experiment


def measure(bench):
    peers = {STOCK: (stock_program(), None), OURS: (harness.HELPER, None),
             KEPT: (harness.HELPER, {"DIOHELPER_KEEP_CACHE": "1"})}
    pairs = Pairs(bench, bench.size(MIB_DEFAULT), peers)
    names = {"direct": (STOCK, OURS), "buffered": (STOCK, OURS, KEPT)}
    for how, those in names.items():
        for verb in ("save", "load"):
            pairs.open(how, verb, those)
    bench.repeat(*([lambda h=how, n=name: pairs.both(h, n) for name in those] for how, those in names.items()))
    return pairs.experiments
