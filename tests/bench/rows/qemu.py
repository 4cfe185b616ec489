# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest of a stock QEMU saved and loaded: by QEMU in all its ways, and as a mapped-ram image by diohelper.

The guest is paused from the start, its memory a memfd full of incompressible data. Every measurement has a QEMU of its
own, whose memory is prefaulted (prealloc=on) before the clock starts. A save ends when the file is durable: QEMU's with
the fdatasync that QEMU leaves out, diohelper's with its FINISH, libvirt_iohelper's with its own. The helper is started
inside the clock. A load ends when QEMU says so; the file is not in the page cache. CPU is QEMU's during the measurement,
and all of the helper's, ours or libvirt's.
"""
import contextlib
import fcntl
import functools
import os
import random
import subprocess
import sys
import time

import harness
from harness import OURS, Experiment, Fio
from rows import stream

sys.path[:0] = [os.path.join(harness.HERE, "../integration"),
                os.path.join(harness.HERE, "../integration/other_language")]
import manager  # noqa: E402  (their places are known only now)
import qemu_guest  # noqa: E402

MIB_DEFAULT = 2048
MAPPED_RAM_FEATURE, MAPPED_RAM = 0x80, 3
BLOCK = "pc.ram"
TICK = os.sysconf("SC_CLK_TCK")
PAGES_COMPARED = 64
VERBS = {"save": "migrate", "load": "migrate-incoming"}
F_SETPIPE_SZ = 1031  # Python has its name since 3.10
LEGACY = "QEMU, legacy stream, libvirt_iohelper"
MODES = { # capabilities, parameters
    "QEMU, mapped-ram": (("mapped-ram",), {}),
    "QEMU, mapped-ram, direct-io": (("mapped-ram",), {"direct_io": True}),
    **{f"QEMU, mapped-ram, direct-io, multifd {channels}":
       (("mapped-ram", "multifd"), {"direct_io": True, "multifd_channels": channels}) for channels in (1, 2, 8)},
}


class Prefaulted(qemu_guest.Memory):
    """QEMU's page tables are full when it is ready."""

    def backend(self):
        return super().backend() + ",prealloc=on"


class Clock:
    """Seconds and CPU seconds: of this guest's QEMU, and of children that have ended meanwhile (the helper)."""

    def __init__(self, guest):
        self.pid = guest.process.pid
        self.seconds = self.qemu = self.helper = 0

    def add(self, sign):
        with open(f"/proc/{self.pid}/stat", encoding="ascii") as stat:
            fields = stat.read().rpartition(")")[2].split()
        self.seconds += sign * time.monotonic()
        self.qemu += sign * (int(fields[11]) + int(fields[12])) / TICK
        self.helper += sign * harness.children_cpu_s()

    def __enter__(self):
        self.add(-1)
        return self

    def __exit__(self, *_):
        self.add(1)

    def sample(self, mib):
        return harness.sample(mib, self.seconds, self.qemu + self.helper, helper_cpu_s_per_gib=self.helper * 1024 / mib)


class Turns:
    """One save or load each, by name. `kind` of memory guests have; `source`: the one that is saved."""

    def __init__(self, bench, mib, save, load, kind=Prefaulted):
        self.bench, self.mib, self.kind = bench, mib, kind
        self.experiments = {"save": save, "load": load}
        self.source = kind(mib << 20, BLOCK)
        harness.fill(self.source.fd, self.source.size)

    def path(self, name):
        return self.bench.path("".join(c if c.isalnum() else "-" for c in name))

    def guest(self, memory, incoming=False):
        return qemu_guest.Guest(self.bench.directory, self.mib, [memory], incoming=incoming)

    def run(self, direction, name, work, prepare):
        """`work(guest, path, memory)` inside the clock, in a QEMU that `prepare` has made ready."""
        path = self.path(name)
        saves = direction == "save"
        (harness.remove if saves else harness.uncache)(path)
        memory = self.source if saves else self.kind(self.mib << 20, BLOCK)
        with self.guest(memory, incoming=not saves) as guest:
            prepare(guest)
            with Clock(guest) as clock:
                work(guest, path, memory)
        self.experiments[direction].add(name, clock.sample(self.mib))
        if not saves:
            self.check(memory)

    def check(self, memory):
        """Some pages of what was loaded, so that nobody is fast by doing nothing; and the end of `memory`."""
        for _ in range(PAGES_COMPARED):
            at = random.randrange(0, self.mib << 20, 4096)
            if memory.read(at, 4096) != self.source.read(at, 4096):
                raise harness.Failed(f"page {at:#x} is not what it was before the save")
        memory.close()


def wait_completed(guest):
    while (answer := guest.command("query-migrate")).get("status") != "completed":
        if answer.get("status") in ("failed", "cancelled"):
            raise harness.Failed(f"QEMU: {answer.get('error-desc', answer['status'])}")
        time.sleep(0.002)


# ---- QEMU by itself ----------------------------------------------------------------------------------------------------


def prepare_mode(mode, guest):
    capabilities, parameters = MODES[mode]
    guest.capabilities(*capabilities)
    guest.parameters(max_bandwidth=0, **parameters)


def qemu_save(guest, path, _):
    guest.command("migrate", uri=f"file:{path}")
    wait_completed(guest)
    with open(path, "rb") as file:
        os.fdatasync(file.fileno())


def qemu_load(guest, path, _):
    guest.command("migrate-incoming", uri=f"file:{path}")
    wait_completed(guest)


# ---- the legacy stream, as libvirt has it ------------------------------------------------------------------------------


def unlimited(guest):
    guest.parameters(max_bandwidth=0)


def iohelper(path, flags, program=None, **ends):
    """libvirt's program, or one that stands in for it, on its pipe's one end, and on the image at the other."""
    image = os.open(path, flags | os.O_DIRECT, 0o600)
    try:
        slot = "stdin" if "stdout" in ends else "stdout"
        return subprocess.Popen([program or stream.stock_program(), path, str(0 if slot == "stdin" else 1)],
                                **{slot: image}, **ends)
    finally:
        os.close(image)


def pipe():
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, F_SETPIPE_SZ, harness.MIB)  # as libvirt does
    return read_end, write_end


def must_end(helper):
    if helper.wait(harness.RUN_SECONDS_MAX):
        raise harness.Failed(f"{' '.join(helper.args)}: exit status {helper.returncode}")


def legacy_save(guest, path, _, program=None):
    helpers, qemus = pipe()
    helper = iohelper(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, program, stdin=helpers)
    os.close(helpers)
    guest.migrate_to_fd(qemus)
    os.close(qemus)
    wait_completed(guest)
    must_end(helper)


def legacy_load(guest, path, _):
    qemus, helpers = pipe()
    helper = iohelper(path, os.O_RDONLY, stdout=helpers)
    os.close(helpers)
    guest.migrate_from_fd(qemus)
    os.close(qemus)
    wait_completed(guest)
    must_end(helper)


# ---- diohelper ---------------------------------------------------------------------------------------------------------


def ignore_shared(guest):
    guest.capabilities("x-ignore-shared")


def session(direction, path, memory, state):
    flags = os.O_RDWR | os.O_CREAT if direction == manager.SAVE else os.O_RDONLY
    found = manager.Session(harness.HELPER, patience=120)
    found.hello(required=MAPPED_RAM_FEATURE)
    buffered, direct = os.open(path, flags, 0o600), os.open(path, flags | os.O_DIRECT)
    found.attach_image(direction, buffered=buffered, direct=direct)
    found.attach_memory(0, memory.fd)
    found.attach_stream(0, state)
    for fd in (buffered, direct, state):
        os.close(fd)
    found.seal()
    return found


def compose(helper, memory, wait_for_source):
    """A mapped-ram image of the stream, and of the memory when the stream's source is done."""
    helper.create_image(MAPPED_RAM, 1, 1, 0)
    helper.put_table([manager.Entry(manager.REGION, 0, BLOCK.encode(), memory.size),
                      manager.Entry(manager.STREAM_ENTRY, 0, b"state")])
    helper.complete(helper.save_stream(0, 0))
    wait_for_source()
    helper.complete(helper.save_memory(0, 0, memory.size))
    helper.complete(helper.finish())


def our_save(guest, path, memory):
    state, qemus = os.pipe()
    with session(manager.SAVE, path, memory, state) as helper:
        guest.migrate_to_fd(qemus)
        os.close(qemus)
        compose(helper, memory, lambda: wait_completed(guest))


def our_load(guest, path, memory):
    qemus, state = os.pipe()
    with session(manager.LOAD, path, memory, state) as helper:
        helper.open_image()
        helper.complete(helper.load_memory(0, 0, memory.size, flags=manager.FRESH))
        guest.migrate_from_fd(qemus)
        os.close(qemus)
        helper.complete(helper.load_stream(0, 0))
        wait_completed(guest)


# ---- all ---------------------------------------------------------------------------------------------------------------


def command_ours(experiment, direction):
    experiment.command(OURS, "x-ignore-shared, migrate to a pipe; diohelper serve: SAVE_STREAM, SAVE_MEMORY, FINISH"
                       if direction == "save" else
                       "diohelper serve: LOAD_MEMORY; x-ignore-shared, migrate-incoming from a pipe, LOAD_STREAM")


def command_mode(experiment, direction, name):
    capabilities, parameters = MODES[name]
    settings = [f"{key.replace('_', '-')}={str(value).lower()}" for key, value in parameters.items()]
    experiment.command(name, f"{VERBS[direction]} file:$DIR/image; "
                       f"{', '.join([*capabilities, *settings, 'max-bandwidth=0'])}" +
                       ("; then fdatasync" if direction == "save" else ""))


def commands(experiment, direction, fio, mode):
    command_ours(experiment, direction)
    experiment.command(LEGACY, f"{VERBS[direction]} fd: (a pipe of 1 MiB) | libvirt_iohelper $DIR/image " +
                       ("1 (O_DIRECT)" if direction == "save" else "0 (O_DIRECT)"))
    for name in MODES:
        command_mode(experiment, direction, name)
    fio.describe(experiment, mode)


def turn_lists(turns, fio):
    fio_modes = {"save": "write", "load": "read"}
    works = {"save": (our_save, legacy_save, qemu_save), "load": (our_load, legacy_load, qemu_load)}
    for direction, (ours, legacy, qemu) in works.items():
        run = functools.partial(turns.run, direction)
        found = [functools.partial(run, OURS, ours, ignore_shared), functools.partial(run, LEGACY, legacy, unlimited)]
        found += [functools.partial(run, mode, qemu, functools.partial(prepare_mode, mode)) for mode in MODES]
        experiment, mode = turns.experiments[direction], fio_modes[direction]
        found.append(lambda e=experiment, m=mode: e.add("fio", fio.turn(m)))
        commands(experiment, direction, fio, mode)
        yield found


def require_qemu(mib):
    """What it is called."""
    version = qemu_guest.version()
    if not version or version < (9, 1):
        raise harness.Unavailable("this needs QEMU 9.1: mapped-ram with direct-io")
    harness.require_memory(3 * mib << 20)
    return f"QEMU {version[0]}.{version[1]}"


def require(mib):
    """As require_qemu(), and libvirt's program."""
    stream.stock_program()
    return require_qemu(mib)


def measure(bench):
    mib = bench.size(MIB_DEFAULT)
    name = require(mib)
    save = Experiment(f"Save of a paused {mib} MiB guest of {name}, its memory incompressible", mib=mib)
    load = Experiment(f"Load of that guest into a new {name}", mib=mib)
    turns = Turns(bench, mib, save, load)
    with contextlib.closing(turns.source), Fio(bench.path("fio"), mib) as fio:
        bench.repeat(*turn_lists(turns, fio))
    return {"qemu-save": save, "qemu-load": load}
