# SPDX-License-Identifier: LGPL-2.1-or-later
"""`diohelper ingest` of a stock QEMU's stream and multifd channels, against saving the same stream raw.

The guests, the clock and what durable means are those of the row `qemu`, and the whole stream comes from QEMU here: nothing
of the memory is shared. Programs are started inside the clock, and have ended when it stops. Stock QEMUs restore: the raw
stream through libvirt's program, the ingested image by mapped-ram.
"""
import contextlib
import functools
import os
import subprocess
import time

import harness
from harness import Experiment
from rows import qemu, stream

MIB_DEFAULT = 2048
RAW, DROP_IN, INGEST = "raw, libvirt_iohelper", "raw, drop-in", "ingest"
CHANNELS = (1, 2, 4, 8)
RESTORE_CHANNELS = 4
SOCKET_SECONDS_MAX = 30


def multifd_name(channels):
    return f"ingest, multifd {channels}"


@contextlib.contextmanager
def ingest(path, *options, source=subprocess.DEVNULL):
    """Runs inside, and has made the image durable after it."""
    program = subprocess.Popen([harness.TOOL, "ingest", "--quiet", *options, path], stdin=source)
    try:
        yield program
        qemu.must_end(program)
    finally:
        if program.poll() is None:
            program.terminate()
            program.wait()


def ingest_save(guest, path, _):
    source, qemus = qemu.pipe()
    with ingest(path, source=source):
        os.close(source)
        guest.migrate_to_fd(qemus)
        os.close(qemus)
        qemu.wait_completed(guest)


def wait_listening(program, socket):
    deadline = time.monotonic() + SOCKET_SECONDS_MAX
    while not os.path.exists(socket):
        if program.poll() is not None or time.monotonic() > deadline:
            raise harness.Failed(f"{' '.join(program.args)}: it does not listen")
        time.sleep(0.001)


def multifd_save(channels, guest, path, _):
    socket = path + ".socket"
    with ingest(path, f"--listen=unix:{socket}", f"--multifd={channels}") as program:
        wait_listening(program, socket)
        guest.command("migrate", uri=f"unix:{socket}")
        qemu.wait_completed(guest)


def prepare_multifd(channels, guest):
    guest.capabilities("multifd")
    guest.parameters(max_bandwidth=0, multifd_channels=channels)


def prepare_restore(guest):
    guest.capabilities("mapped-ram", "multifd")
    guest.parameters(max_bandwidth=0, direct_io=True, multifd_channels=RESTORE_CHANNELS)


def turn_lists(turns):
    save, load = (functools.partial(turns.run, direction) for direction in ("save", "load"))
    drop_in = functools.partial(qemu.legacy_save, program=harness.HELPER)
    saves = [functools.partial(save, RAW, qemu.legacy_save, qemu.unlimited),
             functools.partial(save, DROP_IN, drop_in, qemu.unlimited),
             functools.partial(save, INGEST, ingest_save, qemu.unlimited)]
    saves += [functools.partial(save, multifd_name(channels), functools.partial(multifd_save, channels),
                                functools.partial(prepare_multifd, channels)) for channels in CHANNELS]
    return saves, [functools.partial(load, RAW, qemu.legacy_load, qemu.unlimited),
                   functools.partial(load, INGEST, qemu.qemu_load, prepare_restore)]


def commands(save, load):
    piped = "migrate fd: (a pipe of 1 MiB) |"
    save.command(RAW, f"{piped} {stream.STOCK} $DIR/image 1 (O_DIRECT)")
    save.command(DROP_IN, f"{piped} diohelper $DIR/image 1 (O_DIRECT)")
    save.command(INGEST, f"{piped} diohelper ingest $DIR/image")
    for channels in CHANNELS:
        save.command(multifd_name(channels), f"diohelper ingest --listen=unix:$DIR/socket --multifd={channels} $DIR/image; "
                     f"migrate unix:$DIR/socket; multifd, multifd-channels={channels}")
    load.command(RAW, f"{stream.STOCK} $DIR/image 0 (O_DIRECT) | migrate-incoming fd: (a pipe of 1 MiB)")
    load.command(INGEST, "migrate-incoming file:$DIR/image; mapped-ram, multifd, direct-io=true, "
                 f"multifd-channels={RESTORE_CHANNELS}")


def measure(bench):
    mib = bench.size(MIB_DEFAULT)
    name = qemu.require(mib)
    save = Experiment(f"Save of a paused {mib} MiB guest of {name} by its stream, its memory incompressible", mib=mib)
    load = Experiment(f"Load of that guest into a new {name}", mib=mib)
    commands(save, load)
    turns = qemu.Turns(bench, mib, save, load)
    with contextlib.closing(turns.source):
        bench.repeat(*turn_lists(turns))
    return {"ingest-save": save, "ingest-load": load}
