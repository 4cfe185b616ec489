#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# timeout: 120
#
# The contract of libvirt_iohelper, over ours and, where it is installed, over libvirt's own, from one table: a difference
# shows, and those that are meant stand in the table with their reason. Ours runs once more with io_uring forbidden.

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

sys.dont_write_bytecode = True  # no __pycache__ in the source tree
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import dropin  # noqa: E402 (the path had to be set first)
from dropin import Case, KIB, MIB, Outcome, Says, Text, Where  # noqa: E402
from dropin import content, end, load, open_image, put, save, start  # noqa: E402

SIZES = [0, 1, 511, 512, 513, 4095, 4096, 4097, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 777]
OFFSETS = [1, 512, 4096, 0x11921]
SIZES_AT_OFFSETS = [0, 1, 513, 4097, 64 * KIB + 1, 3 * MIB + 777]
DATA = dropin.random_bytes(3 * MIB + 777)
OLD = dropin.random_bytes(4 * MIB + 999, 2)

directory = dropin.temporary_directory()


def path(name="image"):
    return os.path.join(directory.name, name)


def fresh(data=b"", name="image"):
    """A file with this content, and nothing of an earlier case."""
    put(path(name), data)
    return path(name)


OK = {"status": 0, "error": ""}
ANY = Where("any", lambda _: True)


def failing(pattern, **more):
    return {"status": 1, "error": Says(pattern), **more}


# ---- sizes and offsets ------------------------------------------------------------------------------------------------

NEEDS_EMPTY = "libvirt's refuses O_DIRECT at an offset or into a file that is not empty; ours serves it"
POSITION_BEHIND_PADDING = "libvirt's pads the tail of a direct save, and its position stays behind the padding"


def size_cases(direct):
    mode = "direct" if direct else "buffered"
    for size in SIZES:
        data = DATA[:size]
        padded = direct and size % (64 * KIB)

        yield Case(f"save {size}, {mode}", lambda p, data=data: save(p, fresh(), [data], direct=direct),
                   {**OK, "image": data, "position": size},
                   {"position": -(-size // (64 * KIB)) * 64 * KIB} if padded else None,
                   POSITION_BEHIND_PADDING if padded else None)
        yield Case(f"load {size}, {mode}", lambda p, data=data: load(p, fresh(data), direct=direct),
                   {**OK, "output": data, "position": size})


def offset_cases(direct):
    mode = "direct" if direct else "buffered"
    stock, why = (None, None)
    if direct:
        stock, why = {"status": 1, "error": Says(""), "image": OLD, "output": b"", "position": ANY}, NEEDS_EMPTY
    for offset in OFFSETS:
        for size in SIZES_AT_OFFSETS:
            data = DATA[:size]
            tail = OLD[offset + size:]

            yield Case(f"save {size} at {offset} inside older bytes, {mode}",
                       lambda p, data=data, offset=offset: save(p, fresh(OLD), [data], offset, direct),
                       {**OK, "image": OLD[:offset] + data + tail, "position": offset + size},
                       {k: v for k, v in stock.items() if k != "output"} if stock else None, why)
        old = OLD[:offset]
        yield Case(f"save at {offset}, the end of older bytes, {mode}",
                   lambda p, old=old, offset=offset: save(p, fresh(old), [DATA], offset, direct),
                   {**OK, "image": old + DATA, "position": offset + len(DATA)},
                   {"status": 1, "error": Says(""), "image": old, "position": ANY} if stock else None, why)
        yield Case(f"load from {offset}, {mode}",
                   lambda p, offset=offset: load(p, fresh(OLD), offset, direct),
                   {**OK, "output": OLD[offset:], "position": len(OLD)},
                   {k: v for k, v in stock.items() if k != "image"} if stock else None, why)
    yield Case(f"load from behind the end, {mode}", lambda p: load(p, fresh(b"short"), 4096, direct), {**OK, "output": b""},
               {"status": 1, "error": Says("")} if direct else None, why)


def save_beyond_the_end(p):
    return save(p, fresh(b"old"), [b"new"], 10000)


# ---- descriptors ------------------------------------------------------------------------------------------------------


def read_write(p):
    image = os.open(fresh(b"old"), os.O_RDWR)
    outcome = end(start(p, [path(), "1"], None, image))
    os.close(image)
    return Outcome(outcome, image=content(path()))


def with_o_path(p):
    image = os.open(fresh(b"old"), os.O_PATH)
    outcome = end(start(p, [path(), "0"], image))
    os.close(image)
    return outcome


def a_directory(p):
    image = os.open(directory.name, os.O_RDONLY)
    outcome = end(start(p, [directory.name, "0"], image))
    os.close(image)
    return outcome


def closed_standard(number, save_it):
    def run(p):
        image = os.open(fresh(b"old"), os.O_WRONLY if save_it else os.O_RDONLY)
        outcome = end(start(p, [path(), str(image)], keep=(image,), closed=(number,)))
        os.close(image)
        return Outcome(outcome, image=content(path()))
    return run


def without_stderr(p):
    outcome = save(p, fresh(), [DATA], stderr=None, closed=(2,))
    return outcome


def append(p):
    return save(p, fresh(OLD[:5000]), [DATA], 17, flags=os.O_APPEND)


def append_and_load(p):
    return load(p, fresh(DATA), flags=os.O_APPEND)


def file_that_hides_its_size(p):
    image = os.open("/proc/version", os.O_RDONLY)
    source, sink = os.pipe()
    process = start(p, ["version", "0"], image, sink)
    os.close(sink)
    os.close(image)
    with os.fdopen(source, "rb") as output:
        read = output.read()
    return Outcome(end(process), output=read)


def save_to_dev_null(p):
    return save(p, "/dev/null", [DATA])


def load_from_dev_null(p):
    image = os.open("/dev/null", os.O_RDONLY)
    outcome = end(start(p, ["/dev/null", "0"], image))
    os.close(image)
    return outcome


def save_to_a_fifo(p):
    fifo, sink, source_end = path("fifo"), *reversed(os.pipe())
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(fifo, os.O_WRONLY)
    os.set_blocking(reading, True)
    process = start(p, [fifo, "1"], source_end, writing)
    os.close(source_end)
    os.close(writing)
    feeder, reader = dropin.Feeder(sink, [DATA]), dropin.Reader(reading)
    outcome = end(process)
    feeder.join()
    reader.join()
    os.unlink(fifo)
    return Outcome(outcome, output=bytes(reader.data))


def load_from_a_fifo(p):
    fifo = path("fifo")
    os.mkfifo(fifo)
    image = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    feeding = os.open(fifo, os.O_WRONLY)
    os.set_blocking(image, True)
    source, sink = os.pipe()
    process = start(p, [fifo, "0"], image, sink)
    os.close(image)
    os.close(sink)
    feeder, reader = dropin.Feeder(feeding, [DATA]), dropin.Reader(source)
    outcome = end(process)
    feeder.join()
    reader.join()
    os.unlink(fifo)
    return Outcome(outcome, output=bytes(reader.data))


def save_from_a_socket(p):
    ours, theirs = socket.socketpair()
    image = open_image(fresh(), os.O_WRONLY)
    process = start(p, [path(), "1"], theirs.fileno(), image)
    os.close(image)
    feeder = dropin.Feeder(ours.detach(), [DATA])
    outcome = end(process)
    feeder.join()
    blocks = os.get_blocking(theirs.fileno())  # others may have the same open file
    theirs.close()
    return Outcome(outcome, image=content(path()), blocks=blocks)


def save_from_a_file(p):
    source = os.open(fresh(DATA, "source"), os.O_RDONLY)
    os.lseek(source, 100, os.SEEK_SET)
    image = open_image(fresh(), os.O_WRONLY)
    outcome = end(start(p, [path(), "1"], source, image))
    os.close(source)
    os.close(image)
    return Outcome(outcome, image=content(path()))


def load_into_a_file(p):
    sink = os.open(fresh(b"x" * 100, "sink"), os.O_WRONLY)
    os.lseek(sink, 50, os.SEEK_SET)
    image = os.open(fresh(DATA), os.O_RDONLY)
    outcome = end(start(p, [path(), "0"], image, sink))
    os.close(sink)
    os.close(image)
    return Outcome(outcome, output=content(path("sink")))


def pipe_that_does_not_block(p):
    source, sink = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(sink, True)
    image = open_image(fresh(), os.O_WRONLY)
    process = start(p, [path(), "1"], source, image)
    with contextlib.suppress(subprocess.TimeoutExpired):  # libvirt's does not wait for the first byte
        process.wait(1)
    feeder = dropin.Feeder(sink, [DATA])
    outcome = end(process)
    blocks = os.get_blocking(source)
    os.close(source)
    os.close(image)
    feeder.join()
    return Outcome(outcome, image=content(path()), blocks=blocks)


def memory_file(p):
    """On tmpfs, which a memfd is too; by number, and with the position where the manager left it."""
    memfd = os.memfd_create("image")
    os.write(memfd, b"header")
    image = os.open(f"/proc/self/fd/{memfd}", os.O_WRONLY)
    os.lseek(image, 6, os.SEEK_SET)
    source, sink = os.pipe()
    process = start(p, ["memory", str(image)], source, keep=(image,))
    os.close(source)
    feeder = dropin.Feeder(sink, [DATA])
    outcome = end(process)
    feeder.join()
    with os.fdopen(memfd, "rb") as file:
        file.seek(0)
        outcome["image"] = file.read()
    os.close(image)
    return outcome


# ---- writers and readers ----------------------------------------------------------------------------------------------


def slowly(pieces, pause_s):
    for piece in pieces:
        time.sleep(pause_s)
        yield piece


def tiny_writes(p):
    return save(p, fresh(), [DATA[i:i + 7] for i in range(0, 20003, 7)], direct=direct_works)


def slow_writes(p):
    cuts = [0, 1, 4096, 4097, 70000, MIB, MIB + 1, len(DATA)]
    return save(p, fresh(), slowly([DATA[a:b] for a, b in zip(cuts, cuts[1:])], 0.02), direct=direct_works)


def writer_that_dies(p):
    image = open_image(fresh(), os.O_WRONLY)
    script = "import os, time; os.write(1, b'x' * 50000); os.write(2, b'.'); time.sleep(60)"
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = start(p, [path(), "1"], writer.stdout.fileno(), image)
    writer.stdout.close()
    writer.stderr.read(1)
    writer.kill()
    writer.wait()
    writer.stderr.close()
    outcome = end(process)
    os.close(image)
    return Outcome(outcome, image=content(path()))


def pending(fd):
    import array
    import fcntl
    import termios
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


def vanishing_reader(after):
    def run(p):
        image = os.open(fresh(DATA), os.O_RDONLY)
        source, sink = os.pipe()
        process = start(p, [path(), "0"], image, sink)
        os.close(sink)
        os.close(image)
        if after:
            os.read(source, after)
        os.close(source)
        return end(process)
    return run


def reader_that_never_was(p):
    source, sink = os.pipe()
    os.close(source)
    image = os.open(fresh(DATA), os.O_RDONLY)
    outcome = end(start(p, [path(), "0"], image, sink))
    os.close(sink)
    os.close(image)
    return outcome


# ---- signals and limits -------------------------------------------------------------------------------------------------


def caught(pid):
    """Whether it is past its start: what it does with signals is settled."""
    return int(dropin.status_of(pid)["SigCgt"], 16) & 1 << signal.SIGTERM - 1


def signal_while_saving(number, direct=False):
    def run(p):
        image = open_image(fresh(), os.O_WRONLY, direct=direct)
        source, sink = os.pipe()
        process = start(p, [path(), "1"], source, image)
        os.close(source)
        os.write(sink, DATA[:50000])
        dropin.wait_until(lambda: not pending(sink), "it to read")
        if not p.stock:
            dropin.wait_until(lambda: caught(process.pid), "its signal handlers")
        process.send_signal(number)
        if number == signal.SIGPIPE and not p.stock:
            os.write(sink, DATA[50000:60000])
            os.close(sink)
            outcome = end(process)
        else:
            outcome = end(process)
            os.close(sink)
        os.close(image)
        return Outcome(outcome, image=content(path()))
    return run


def signal_that_is_ignored(p):
    """As nohup(1) leaves it."""
    image = open_image(fresh(), os.O_WRONLY)
    source, sink = os.pipe()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    process = start(p, [path(), "1"], source, image)
    signal.signal(signal.SIGHUP, before)
    os.close(source)
    os.close(image)
    os.write(sink, DATA[:50000])
    dropin.wait_until(lambda: not pending(sink), "it to read")
    if not p.stock:
        dropin.wait_until(lambda: caught(process.pid), "its signal handlers")
    process.send_signal(signal.SIGHUP)
    feeder = dropin.Feeder(sink, [DATA[50000:]])
    outcome = end(process)
    feeder.join()
    return Outcome(outcome, image=content(path()))


def signal_while_loading(p):
    image = os.open(fresh(DATA), os.O_RDONLY)
    source, sink = os.pipe()
    process = start(p, [path(), "0"], image, sink)
    os.close(sink)
    os.close(image)
    os.read(source, 1)  # it is under way, and soon stands before a full pipe
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    outcome = end(process)
    os.close(source)
    return outcome


def signal_while_copying(p):
    """To a pipe, which it does plainly, and never waits."""
    source, sink = os.pipe()
    with open("/dev/zero", "rb") as zeros, subprocess.Popen(["cat"], stdin=source, stdout=subprocess.DEVNULL):
        process = start(p, ["pipe", "1"], zeros.fileno(), sink)
        os.close(source)
        os.close(sink)
        if not p.stock:
            dropin.wait_until(lambda: caught(process.pid), "its signal handlers")
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        return end(process)


def file_size_limit(limit, direct=False):
    import resource
    return lambda p: save(p, fresh(), [DATA], direct=direct, limits=[(resource.RLIMIT_FSIZE, limit)])


# ---- the page cache, the seal -------------------------------------------------------------------------------------------

CACHE_TEST_BYTES = 96 * MIB


def save_and_look_at_the_cache(keep):
    def run(p):
        os.environ.pop("DIOHELPER_KEEP_CACHE", None)
        if keep is not None:
            os.environ["DIOHELPER_KEEP_CACHE"] = keep
        image = open_image(fresh(), os.O_WRONLY)
        source, sink = os.pipe()
        process = start(p, [path(), "1"], source, image)
        os.environ.pop("DIOHELPER_KEEP_CACHE", None)
        os.close(source)
        os.close(image)
        feeder = dropin.Feeder(sink, [DATA[:MIB]] * (CACHE_TEST_BYTES // MIB))
        outcome = end(process)
        feeder.join()
        outcome["cached"] = dropin.cached_bytes(path())
        fresh()
        return outcome
    return run


def filters_of(status):
    """How many system call filters a thread has: one more than the process that started it, behind the seal."""
    return int(status["Seccomp_filters"])


def sealed(pid):
    return filters_of(dropin.status_of(pid)) > filters_of(dropin.status_of("self"))


def seal_of(status):
    seal = {name: status[name] for name in ("NoNewPrivs", "Seccomp", "CapInh", "CapPrm", "CapEff", "CapAmb", "Uid")}
    return {**seal, "filters": filters_of(status) - filters_of(dropin.status_of("self"))}


def seal_while_it_waits(direct):
    """It waits for the first byte, and is sealed: all of its threads are, and they are those that then do the work."""
    def run(p):
        image = open_image(fresh(), os.O_WRONLY, direct=direct)
        source, sink = os.pipe()
        process = start(p, [path(), "1"], source, image)
        os.close(source)
        os.close(image)
        dropin.wait_until(lambda: sealed(process.pid) and len(os.listdir(f"/proc/{process.pid}/task")) >= 3, "its threads")
        tasks = os.listdir(f"/proc/{process.pid}/task")
        statuses = [dropin.status_of(process.pid, task) for task in tasks]
        rings = dropin.rings_of(process.pid)
        if os.geteuid() == 0:
            bounding = {status["CapBnd"].strip("0") for status in statuses}
        else:
            bounding = {""}  # it takes a privilege to clear it, and NO_NEW_PRIVS makes it worthless
        feeder = dropin.Feeder(sink, [DATA])
        outcome = end(process)
        feeder.join()
        return Outcome(outcome, seals=[seal_of(status) for status in statuses], bounding=bounding, rings=rings,
                       image=content(path()))
    return run


def all_sealed(seals):
    uids = "\t".join(str(os.geteuid()) for _ in range(4))
    none = "0" * 16
    wanted = {"NoNewPrivs": "1", "Seccomp": "2", "filters": 1, "CapInh": none, "CapPrm": none, "CapEff": none,
              "CapAmb": none, "Uid": uids}
    return len(seals) >= 3 and all(seal == wanted for seal in seals)


# ---- arguments ----------------------------------------------------------------------------------------------------------


def arguments(*words, **more):
    def run(p):
        source, sink = os.pipe()
        process = start(p, list(words), None, sink, **more)
        os.close(sink)
        reader = dropin.Reader(source)
        outcome = end(process)
        reader.join()
        return Outcome(outcome, output=bytes(reader.data).replace(p.path.encode(), b"PROG"))
    return run


def by_its_own_name(words):
    """`diohelper FILENAME FD` is the drop-in too; anything else is for its own command line."""
    def run(_p):
        own = dropin.Program("ours", dropin.HELPER)
        if words is None:
            return save(own, fresh(), [DATA])
        return arguments(*words)(own)
    return run


def is_our_message(text):
    return text.startswith(("diohelper: ", "diohelper-tool: "))


HINT = {"status": 1, "error": Text("PROG: try --help for more details"), "output": b""}
DIES = "a signal ends libvirt's without a word"


def other_cases():
    yield Case("descriptor of another number, save", lambda p: save(p, fresh(), [DATA], number=None), {**OK, "image": DATA})
    yield Case("descriptor of another number, load", lambda p: load(p, fresh(DATA), number=None), {**OK, "output": DATA})
    yield Case("save beyond the end", save_beyond_the_end, {**OK, "image": b"old" + bytes(9997) + b"new"})
    yield Case("read-write", read_write, failing("Unable to process file with flags 2", image=b"old"))
    yield Case("O_PATH", with_o_path, failing("O_PATH"))
    yield Case("directory", a_directory, failing("is a directory"))
    yield Case("O_APPEND", append, {**OK, "image": OLD[:5000] + DATA, "position": 5000 + len(DATA),
                                   "flags": os.O_WRONLY | os.O_APPEND})
    yield Case("O_APPEND, load", append_and_load, {**OK, "output": DATA})
    yield Case("file that hides its size", file_that_hides_its_size, {**OK, "output": content("/proc/version")})
    yield Case("/dev/null, save", save_to_dev_null, OK)
    yield Case("/dev/null, load", load_from_dev_null, OK)
    yield Case("FIFO, save", save_to_a_fifo, {**OK, "output": DATA})
    yield Case("FIFO, load", load_from_a_fifo, {**OK, "output": DATA})
    yield Case("socket as standard input", save_from_a_socket, {**OK, "image": DATA, "blocks": True})
    yield Case("file as standard input", save_from_a_file, {**OK, "image": DATA[100:]})
    yield Case("file as standard output", load_into_a_file, {**OK, "output": b"x" * 50 + DATA})
    yield Case("standard input that does not block", pipe_that_does_not_block,
               {**OK, "image": DATA, "blocks": False}, {"status": 1, "error": Says(""), "image": b"", "blocks": False},
               "libvirt's takes an empty pipe with O_NONBLOCK for an error")
    yield Case("tmpfs, behind a header", memory_file, {**OK, "image": b"header" + DATA})
    yield Case("standard input closed", closed_standard(0, True),
               failing("standard input is not open.*Bad file descriptor", image=b"old"))
    yield Case("standard output closed", closed_standard(1, False),
               failing("standard output is not open.*Bad file descriptor"))
    yield Case("standard error closed", without_stderr, {"status": 0, "image": DATA})

    yield Case("tiny writes", tiny_writes, {**OK, "image": DATA[:20006]})
    yield Case("slow writes", slow_writes, {**OK, "image": DATA})
    yield Case("writer that dies", writer_that_dies, {**OK, "image": b"x" * 50000})
    for name, function in (("reader that goes", vanishing_reader(5000)), ("reader that reads nothing", vanishing_reader(0)),
                           ("reader that never was", reader_that_never_was)):
        yield Case(name, function, failing("reader has gone after \\d+ bytes"),
                   {"status": -signal.SIGPIPE, "error": ""}, DIES)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        yield Case(f"{dropin.signal_name(number)} while saving", signal_while_saving(number),
                   failing(f"ended by signal {int(number)} \\({dropin.signal_name(number)[3:]}\\) after 50000 bytes",
                           image=Where("no longer than what came", lambda image: len(image) <= 50000)),
                   {"status": -number, "error": ""}, DIES)
    yield Case("SIGHUP that is ignored", signal_that_is_ignored, {**OK, "image": DATA})
    yield Case("SIGTERM while loading", signal_while_loading, failing("ended by signal 15 \\(TERM\\) after \\d+ bytes"),
               {"status": -signal.SIGTERM, "error": ""}, DIES)
    yield Case("SIGTERM while copying to a pipe", signal_while_copying, failing("ended by signal TERM"),
               {"status": -signal.SIGTERM, "error": ""}, DIES)
    yield Case("SIGPIPE from outside", signal_while_saving(signal.SIGPIPE), {**OK, "image": DATA[:60000]},
               {"status": -signal.SIGPIPE, "error": "", "image": ANY}, DIES)
    for mode in (False, True):
        if mode and not direct_works:
            continue
        yield Case(f"RLIMIT_FSIZE, {'direct' if mode else 'buffered'}", file_size_limit(2 * MIB, mode),
                   failing("write of \\d+ bytes at \\d+ failed: File too large",
                           image=Where("no longer than the limit", lambda image: len(image) <= 2 * MIB)),
                   {"status": -signal.SIGXFSZ, "error": ""}, DIES)
        yield Case(f"RLIMIT_FSIZE that is just enough, {'direct' if mode else 'buffered'}",
                   file_size_limit(len(DATA), mode), {**OK, "image": DATA},
                   {"status": 1, "error": Says(""), "image": ANY} if mode else None,
                   "libvirt's pads beyond the limit" if mode else None)

    ignored = "libvirt's knows no such variable, and leaves everything in the page cache"
    for value in (None, "0", ""):
        yield Case(f"page cache after a save, {value!r}", save_and_look_at_the_cache(value),
                   {**OK, "cached": Where("64 MiB at most", lambda cached: cached <= 64 * MIB)},
                   {"cached": ANY}, ignored)
    yield Case("page cache after a save that is to keep it", save_and_look_at_the_cache("1"),
               {**OK, "cached": Where("nearly all", lambda cached: cached >= CACHE_TEST_BYTES * 0.9)},
               {"cached": ANY}, ignored)
    for mode in (False, True):
        if mode and not direct_works:
            continue
        yield Case(f"sealed before the first byte, {'direct' if mode else 'buffered'}", seal_while_it_waits(mode),
                   {**OK, "seals": Where("all sealed", all_sealed), "bounding": {""}, "image": DATA,
                    "rings": Where("none where io_uring is forbidden", lambda rings: not (rings and io_uring_forbidden))},
                   False,
                   "libvirt's keeps the daemon's privileges")

    yield Case("no arguments", arguments(), HINT)
    yield Case("one argument", arguments("x"), HINT)
    yield Case("three arguments", arguments("a", "1", "c"), HINT)
    yield Case("four arguments", arguments("a", "1", "c", "d"), HINT)
    yield Case("--help", arguments("--help"), {**OK, "output": b"Usage: PROG FILENAME FD"})
    for word in ("y", "3x", "", "99999999999"):
        yield Case(f"malformed descriptor {word!r}", arguments("x", word),
                   {"status": 1, "error": Text(f"PROG: malformed fd {word}"), "output": b""},
                   {"error": Text("PROG: malformed fd (null)")}, "libvirt's names the wrong argument")
    yield Case("closed descriptor", arguments("x", "77"),
               failing("failure with x: descriptor 77 .*Bad file descriptor", output=b""))
    yield Case("negative descriptor", arguments("x", "-1"),
               failing("failure with x: descriptor -1 .*Bad file descriptor", output=b""))

    own = "this is our own command line"
    yield Case("diohelper FILENAME FD", by_its_own_name(None), {**OK, "image": DATA}, False, own)
    for words in ([], ["x"], ["x", "-1"], ["x", "1", "y"]):
        yield Case(f"diohelper {' '.join(words)}", by_its_own_name(words),
                   {"status": 2, "error": Where("a message", is_our_message), "output": b""},
                   False, own)


def without_io_uring(cases, program):
    """In a child, since a filter cannot be taken off again."""
    global io_uring_forbidden
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        failed = 1
        try:
            dropin.forbid_io_uring()
            io_uring_forbidden = True
            program.name = "ours without io_uring"
            failed = dropin.run_cases(cases, [program])
        finally:
            sys.stdout.flush()
            os._exit(1 if failed else 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


io_uring_forbidden = False
direct_works = dropin.supports_direct(directory.name)


def main():
    if sys.version_info < (3, 9):
        dropin.skip("Python 3.9 is needed (random.randbytes)")
    programs = dropin.programs_to_test(directory.name)
    cases = [*size_cases(False), *offset_cases(False)]
    if direct_works:
        cases += [*size_cases(True), *offset_cases(True)]
    else:
        print(f"the direct half is skipped: {directory.name} stands on a file system without O_DIRECT")
    cases += other_cases()
    if len(sys.argv) > 1:
        cases = [case for case in cases if sys.argv[1] in case.name]
    failed = dropin.run_cases(cases, programs)
    failed += without_io_uring(cases, programs[0])
    directory.cleanup()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
