# SPDX-License-Identifier: LGPL-2.1-or-later
"""`diohelper convert` against dd with direct I/O, which copies as many bytes from disk to disk.

One guest's memory, half of it data that cannot be compressed and half holes, stands there in each format. A conversion and
its dd follow each other, both from the program's start to its end, with the new file durable and the old one not in the
page cache. Rates are in bytes of data.
"""
import os
import shutil
import threading

import harness
from harness import MIB, Experiment, Memory
from rows import qemu # knows the place of the next two, too

import manager
import qemu_stream

MIB_DEFAULT = 1024
RUN = 16 * MIB
FORMATS = ("mapped-ram", "container", "stream", "libvirt-raw", "libvirt-sparse")
CONVERSIONS = (("mapped-ram", "container"), ("container", "mapped-ram"), ("mapped-ram", "stream"),
               ("stream", "mapped-ram"), ("libvirt-raw", "libvirt-sparse"), ("libvirt-sparse", "libvirt-raw"))


def names(source, target):
    """Of the conversion, and of its dd."""
    return f"{source} to {target}", f"{source} to {target}: dd"


def convert_words(source, target, out):
    return ["convert", "--to", target, source, out]


def dd_words(source, out, mib):
    return ["dd", f"if={source}", f"of={out}", "bs=1M", f"count={mib}", "iflag=direct", "oflag=direct", "conv=fdatasync"]


# ---- the images --------------------------------------------------------------------------------------------------------


def feed(fd, data):
    with open(fd, "wb") as pipe:
        pipe.write(data)


def compose(path, size):
    """A mapped-ram image as diohelper makes it, of a guest whose memory is shared."""
    state, source = os.pipe()
    device_state = qemu_stream.stream((qemu_stream.Block(qemu.BLOCK, size),))
    feeder = threading.Thread(target=feed, args=(source, device_state), daemon=True)
    feeder.start()
    with Memory(size, RUN, 2 * RUN) as memory, qemu.session(manager.SAVE, path, memory, state) as helper:
        qemu.compose(helper, memory, feeder.join)


def convert(source, target, out):
    return harness.timed([harness.TOOL, *convert_words(source, target, out)])


def wrap_in_libvirt_header(stream, path):
    with open(path, "wb") as file, open(stream, "rb") as source:
        file.write(qemu_stream.libvirt_header("raw"))
        shutil.copyfileobj(source, file, MIB)


def make_images(bench, mib):
    paths = {name: bench.path(name) for name in FORMATS}
    compose(paths["mapped-ram"], 2 * mib * MIB)
    convert(paths["mapped-ram"], "container", paths["container"])
    convert(paths["mapped-ram"], "stream", paths["stream"])
    wrap_in_libvirt_header(paths["stream"], paths["libvirt-raw"])
    convert(paths["libvirt-raw"], "libvirt-sparse", paths["libvirt-sparse"])
    return paths


# ---- turns -------------------------------------------------------------------------------------------------------------


class Turns:
    def __init__(self, bench, mib, experiment):
        self.mib, self.experiment = mib, experiment
        self.paths, self.out = make_images(bench, mib), bench.path("out")

    def timed(self, name, source, command):
        harness.remove(self.out)
        harness.uncache(source)
        self.experiment.add(name, harness.sample(self.mib, *harness.timed(command)))

    def pair(self, source, target):
        """dd reads the stream, which is all data."""
        ours, dd = names(source, target)
        path, dense = self.paths[source], self.paths["stream"]
        return [lambda: self.timed(ours, path, [harness.TOOL, *convert_words(path, target, self.out)]),
                lambda: self.timed(dd, dense, dd_words(dense, self.out, self.mib))]


def measure(bench):
    mib = bench.size(MIB_DEFAULT)
    experiment = Experiment(f"Conversion of an image of {2 * mib} MiB of memory, half of it holes, and dd of the data's bytes",
                            mib=mib, setup_command="each dd: " + " ".join(dd_words("$DIR/stream", "$DIR/out", mib)))
    turns = Turns(bench, mib, experiment)
    bench.repeat(*(turns.pair(*conversion) for conversion in CONVERSIONS))
    for source, target in CONVERSIONS:
        experiment.command(names(source, target)[0], ["diohelper", *convert_words(f"$DIR/{source}", target, "$DIR/out")])
    return {"convert": experiment}
