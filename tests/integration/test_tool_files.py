#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# timeout: 180
#
# What `ingest` and `convert` must not write over: a stream that is the image itself, whatever stands at the name of
# something partial, what another run is at, an OUT that an interrupted --consume does not know. And what a `--listen` that is
# ended leaves behind: nothing.

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.dont_write_bytecode = True  # no __pycache__ in the source tree
sys.path[:0] = [os.path.join(HERE, "other_language"), HERE]

import manager  # noqa: E402 (the path had to be set first)
import qemu_stream  # noqa: E402
import test_tool_mapped_ram as images  # noqa: E402
from manager import Entry, Session  # noqa: E402
from qemu_stream import MIB  # noqa: E402
from reader import crc32c  # noqa: E402
from test_tool_mapped_ram import BUILD, HELPER, TOOL, check, check_equal, has, verify  # noqa: E402

BLOCKS = (images.RAM._replace(pages=images.RAM_PAGES), qemu_stream.with_zeros(images.VGA))
WHOLE = qemu_stream.residual_stream(BLOCKS, state=images.STATE)
FOREIGN = qemu_stream.bitmaps_stream(BLOCKS)
PATIENCE = 60


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, data, mode=0o600):
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, mode)


def tool(status, *arguments, limit=256 * MIB, **popen):
    """What it says on standard error. A stream that is fed by itself would fill the disk: files end at the limit."""
    done = subprocess.run(["prlimit", f"--fsize={limit}", TOOL, *arguments],
                          **{"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, **popen}, stderr=subprocess.PIPE,
                          text=True, timeout=PATIENCE, check=False)
    check_equal((done.returncode, arguments), (status, arguments), f"exit status ({done.stderr})")
    return done.stderr


def shell(status, redirections, *arguments):
    """With standard descriptors as Python does not hand them down."""
    done = subprocess.run(["sh", "-c", f'exec "$0" "$@" {redirections}', TOOL, *arguments], stderr=subprocess.PIPE,
                          text=True, timeout=PATIENCE, check=False)
    check_equal((done.returncode, arguments), (status, arguments), f"exit status ({done.stderr})")
    return done.stderr


# A file is read and written at once.


def test_stream_is_image(path):
    """IMAGE as its own stream, by whatever name or descriptor: refused, and not a byte of it is gone."""
    os.mkdir(path)
    image, link, symbolic = (os.path.join(path, name) for name in ("image", "link", "symbolic"))
    for stream in (WHOLE, FOREIGN):
        write(image, stream)
        os.link(image, link)
        os.symlink(image, symbolic)
        for options in ([], ["--or-raw"], ["--buffered"]):
            for name in (image, link, symbolic):
                with open(image, "rb") as file:
                    has(tool(1, "ingest", *options, name, stdin=file), "the stream is IMAGE itself")
                with open(image, "rb") as file:
                    has(tool(1, "ingest", *options, f"--fd={file.fileno()}", name, pass_fds=[file.fileno()]),
                        "the stream is IMAGE itself")
        check_equal(read(image), stream, "the stream")
        for name in (link, symbolic):
            os.unlink(name)
    os.rename(image, image + ".partial")
    with open(image + ".partial", "rb") as file:
        has(tool(1, "ingest", "--or-raw", image, stdin=file), f"the stream is {image}.partial")
    check_equal((read(image + ".partial"), os.listdir(path)), (FOREIGN, ["image.partial"]), "what there is")


def test_closed_descriptors(path):
    """What is closed is not replaced by the first file that is opened, and said to be closed."""
    write(path, WHOLE)
    has(shell(1, "<&-", "ingest", path), "descriptor 0 (standard input) is closed")
    has(shell(1, "<&-", "ingest", "--or-raw", path), "descriptor 0 (standard input) is closed")
    has(shell(1, "<&- >&-", "ingest", "--fd=1", path), "")
    has(shell(1, "3<&-", "ingest", "--fd=3", path), "descriptor 3: Bad file descriptor")
    check_equal(read(path), WHOLE, "the image")
    images.Saved(path)
    good = read(path)
    shell(1, "<&- >&-", "convert", "--stdout", path)
    has(shell(1, "<&- >&-", "inspect", path), "writing standard output failed")
    shell(1, "2>&- >&- <&-", "convert", "--stdout", path)
    shell(0, "2>&- >&- <&-", "convert", path, path + ".out")
    check_equal(read(path), good, "IN")


def test_no_stream(path):
    """What is no stream is called what its user calls it."""
    images.Saved(path)
    words, devices = "it is a character device, not a pipe, stream socket or file", os.open("/dev/null", os.O_RDWR)
    has(tool(1, "convert", "--stdout", path, stdout=devices), f"{path}: standard output: {words}")
    has(tool(1, "ingest", path + ".new", stdin=devices), f"{path}.new: standard input: {words}")
    has(tool(1, "ingest", f"--fd={devices}", path + ".new", pass_fds=[devices]), f"{path}.new: descriptor {devices}: {words}")
    os.close(devices)
    check(not os.path.exists(path + ".new"), "nothing is left")


def test_stdout_is_in(path):
    """A stream into the image that it comes from, over it or behind it."""
    images.Saved(path)
    good = read(path)
    for mode in ("r+b", "ab"):
        with open(path, mode) as file:
            has(tool(1, "convert", "--stdout", path, stdout=file), "standard output is IN itself")
    check_equal(read(path), good, "IN")


# Names of what is partial.


def in_the_way(path):
    """What an interrupted run does not leave; each is made, and a function says whether it is as it was."""
    target = path + ".target"
    write(target, b"precious")
    for make in (lambda: os.symlink(target, path), lambda: os.link(target, path), lambda: write(path, b"mine", 0o644),
                 lambda: os.mkdir(path), lambda: os.mkfifo(path, 0o600), lambda: os.symlink(path + ".nothing", path)):
        make()
        before = os.lstat(path)
        yield
        after = os.lstat(path)
        check_equal((after.st_ino, after.st_mode, after.st_size, after.st_mtime_ns, read(target)),
                    (before.st_ino, before.st_mode, before.st_size, before.st_mtime_ns, b"precious"), "what was in the way")
        check(not os.path.exists(path + ".nothing"), "nothing is made through a link")
        (os.rmdir if os.path.isdir(path) and not os.path.islink(path) else os.unlink)(path)
    os.unlink(target)


def test_partial(path):
    """What stands at the partial name is refused unless an interrupted run can have left it, and never written through."""
    out, stream = path + ".out", path + ".stream"
    images.Saved(path)
    write(stream, FOREIGN)
    for _ in in_the_way(out + ".partial"):
        has(tool(1, "convert", "--force", path, out), f"{out}.partial is in the way")
        check(not os.path.lexists(out), "OUT is not made")
    for _ in in_the_way(out + ".partial"):
        with open(stream, "rb") as file:
            has(tool(1, "ingest", "--or-raw", out, stdin=file), f"{out}.partial is in the way")
        check(not os.path.lexists(out), "IMAGE is not made")
    for leftover in (b"", bytes(30 * MIB)):
        write(out + ".partial", leftover)
        with open(out + ".partial", "rb") as old:
            tool(0, "convert", "--force", path, out)
            check_equal(len(old.read()), len(leftover), "the leftover, which somebody may still read")
        check_equal((os.path.lexists(out + ".partial"), len(read(out))), (False, len(WHOLE)), "what is left, and OUT")
        write(out + ".partial", leftover)
        with open(stream, "rb") as file:
            tool(0, "ingest", "--or-raw", out, stdin=file)
        check_equal((os.path.lexists(out + ".partial"), read(out) == FOREIGN), (False, True), "what is left, and IMAGE")


def test_another_run(path):
    """What another run writes, all three at once as each is waited for: refused, and untouched."""
    images.Saved(path)
    write(path + ".stream", WHOLE)
    outs = [path + suffix for suffix in (".a.partial", ".b", ".c")]
    for out in outs:
        write(out, b"" if out.endswith(".b") else b"of another run")
    locks = [open(out, "rb") for out in outs]
    for lock in locks:
        fcntl.flock(lock, fcntl.LOCK_EX)
    with open(path + ".stream", "rb") as stream:
        runs = [subprocess.Popen([TOOL, *arguments], stdin=stream, stderr=subprocess.PIPE, text=True)
                for arguments in (("convert", path, path + ".a"), ("convert", "--to", "container", path, outs[1]),
                                  ("ingest", outs[2]))]
    for one, out in zip(runs, outs):
        _, said = one.communicate(timeout=PATIENCE)
        check_equal(one.returncode, 1, said)
        has(said, f"{out} is in use by another run")
    check_equal([read(out) for out in outs], [b"of another run", b"", b"of another run"], "what the others write")
    check(not os.path.exists(path + ".a"), "OUT is not made")
    for lock in locks:
        lock.close()
    tool(0, "convert", path, path + ".a")
    check_equal(len(read(path + ".a")), len(WHOLE), "OUT, when the other has gone")


def test_disk_in_use(path):
    """IMAGE or OUT is the disk of a machine that runs, by the locks that QEMU holds on it: refused, and untouched."""
    images.Saved(path)
    write(path + ".stream", WHOLE)
    write(path + ".disk", b"a disk")
    with open(path + ".disk", "r+b") as disk:
        def lock(kind, place, count):
            fcntl.fcntl(disk, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, place, count, 0))

        for place in (100, 203):
            lock(fcntl.F_RDLCK, place, 1)
            for *arguments, words in (("ingest", path + ".disk", "as QEMU locks a disk"),
                                      ("ingest", "--or-raw", path + ".disk", "as QEMU locks a disk"),
                                      ("convert", "--force", "--to", "container", path, path + ".disk", "as QEMU locks a disk"),
                                      ("convert", "--to", "stream", "--force", path, path + ".disk", "as QEMU locks a disk")):
                with open(path + ".stream", "rb") as stream:
                    has(tool(1, *arguments, stdin=stream), f"{path}.disk: is locked by another program", words)
            lock(fcntl.F_UNLCK, 0, 0)
        check_equal(read(path + ".disk"), b"a disk", "the disk")
        lock(fcntl.F_WRLCK, 0, 0)  # so another run's lock shows on NFS
        tool(0, "convert", "--force", "--to", "container", path, path + ".disk")


def test_name_not_durable(path):
    """The directory cannot be synced: what is said is so, and OUT is there, whole."""
    images.Saved(path)
    out = path + ".out"
    done = subprocess.run([os.path.join(BUILD, "tests/integration/faulty_tool"), "convert", f"--helper={HELPER}", path, out],
                          env={**os.environ, "DIOH_FAULT": "0"}, capture_output=True, text=True, timeout=PATIENCE, check=False)
    check_equal(done.returncode, 1, done.stderr)
    has(done.stderr, f"{out}: is complete, but its name could not be made durable: Input/output error")
    check_equal((len(read(out)), os.path.exists(out + ".partial")), (len(WHOLE), False), "OUT, and whether it is partial")


def test_children_ignored(path):
    """Started by somebody who ignores SIGCHLD: how a helper ended is known all the same, and what is whole is kept."""
    def ignore():
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    images.Saved(path)
    for verb in ("inspect", "verify"):
        check_equal(tool(0, verb, path, preexec_fn=ignore), "", verb)
    tool(0, "convert", path, path + ".out", preexec_fn=ignore)
    check_equal(len(read(path + ".out")), len(WHOLE), "OUT")
    write(path + ".stream", FOREIGN)
    with open(path + ".stream", "rb") as file:
        has(tool(0, "ingest", "--or-raw", path + ".kept", stdin=file, preexec_fn=ignore), "kept verbatim as raw")
    check_equal(read(path + ".kept"), FOREIGN, "the stream that was kept")


def test_helper_ends_badly(path):
    """FINISH has said that all is durable, and then something befalls the helper: no stream is thrown away for that."""
    write(path + ".helper", b'#!/bin/sh\n"$DIOHELPER" "$@"\nexit 3\n', 0o755)
    for stream, options in ((WHOLE, []), (FOREIGN, ["--or-raw"])):
        write(path + ".stream", stream)
        with open(path + ".stream", "rb") as file:
            said = tool(0, "ingest", f"--helper={path}.helper", *options, path, stdin=file,
                        env={**os.environ, "DIOHELPER": HELPER})
        has(said, f"{path}: note: it is complete and durable, but the helper ended with status 3")
        check_equal(read(path) == FOREIGN if options else verify(0, path)[0]["result"], True if options else "ok", "IMAGE")
        os.unlink(path)


def test_directory_unreadable(path):
    """IMAGE's directory cannot be opened to be synced: its name is made durable with all else, or that is an error."""
    os.mkdir(path)
    image, faulty = os.path.join(path, "image"), os.path.join(BUILD, "tests/integration/faulty_tool")
    write(path + ".stream", WHOLE)
    os.chmod(path, 0o300)
    lower = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    for fault, status, words in (("0", 1, "is complete, but its name could not be made durable: Input/output error"),
                                 ("1", 0, "")):
        with open(path + ".stream", "rb") as file:
            done = subprocess.run([*lower, faulty, "ingest", f"--helper={HELPER}", image], stdin=file, capture_output=True,
                                  env={**os.environ, "DIOH_FAULT": fault}, text=True, timeout=PATIENCE, check=False)
        check_equal((done.returncode, words in done.stderr), (status, True), done.stderr)
        check_equal(verify(0, image)[0]["result"], "ok", "IMAGE")
        os.unlink(image)
    os.chmod(path, 0o700)


def test_long_name(path):
    """A name that is not UTF-8, however long, is the whole name in JSON."""
    name = os.fsencode(path) + b"/none" * 1000 + b"/\xff\\"
    done = subprocess.run([TOOL, "inspect", "--json", name], capture_output=True, timeout=PATIENCE, check=False)
    check_equal(json.loads(done.stdout)["image"], path + "/none" * 1000 + "/\\xff\\x5c", "the name")


def test_helper_killed(path):
    """The helper goes while a stream is kept: of one of which it had read all nobody knows whether it had written all."""
    partial = path + ".partial"
    write(path + ".helper", f'#!/bin/sh\necho $$ >{path}.pid\nexec {HELPER} "$@"\n'.encode(), 0o755)
    for all_came in (False, True):
        sink = subprocess.Popen([TOOL, "ingest", f"--helper={path}.helper", "--or-raw", path], stdin=subprocess.PIPE,
                                stderr=subprocess.PIPE)
        sink.stdin.write(FOREIGN if all_came else FOREIGN[:3])
        sink.stdin.flush()
        deadline = time.monotonic() + PATIENCE
        while not is_empty(sink.stdin) or (all_came and not (os.path.exists(partial) and read(partial)[:MIB] == FOREIGN[:MIB])):
            check(time.monotonic() < deadline, "the helper reads what there is")
            time.sleep(0.01)
        os.kill(int(read(path + ".pid")), signal.SIGKILL)
        has(sink.communicate(timeout=PATIENCE)[1].decode(), "the helper was killed by signal 9")
        check_equal((sink.returncode, os.path.exists(path), os.path.exists(partial)), (1, False, all_came), "what is left")
    check_equal(read(partial)[:MIB], FOREIGN[:MIB], "what was written")


def is_empty(pipe):
    return fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)) == bytes(4)


def test_out_helper_ends_badly(path):
    """The same of an OUT, which would have to be made anew: the third helper is the one that makes it."""
    images.Saved(path)
    write(path + ".helper", f'#!/bin/sh\nread n 2>/dev/null <{path}.count\necho $((n + 1)) >{path}.count\n'
          f'{HELPER} "$@"\nexit $((n == 2 ? 3 : $?))\n'.encode(), 0o755)
    has(tool(0, "convert", f"--helper={path}.helper", path, path + ".out"),
        "note: OUT is complete and durable, but the helper ended with status 3")
    check_equal(len(read(path + ".out")), len(WHOLE), "OUT")


# --consume.


def test_consume_another_out(path):
    """OUT is not the file that OUT.consume names: it is somebody's, even if it has got the number of its inode."""
    out, arguments = path + ".out", ("convert", "--consume", "--to", "container", path, path + ".out")
    images.Saved(path)
    images.kill_at_once(path, out)
    os.rename(out, out + ".first")
    write(out, b"another machine")
    has(tool(1, *arguments), "exists; --force overwrites it")
    os.unlink(out)
    os.unlink(out + ".first")
    write(out, b"another machine")  # in many a file system with the inode that has just become free
    state = json.loads(read(out + ".consume"))
    if state["out_born_ns"] == 0:
        print("skipped: this file system does not tell when a file was made")
    else:
        write(out + ".consume", json.dumps({**state, "out_inode": os.stat(out).st_ino}).encode())
        has(tool(1, *arguments), "exists; --force overwrites it")
    check_equal(read(out), b"another machine", "OUT")
    os.unlink(out)
    tool(0, *arguments)
    check_equal((verify(0, out)[0]["result"], os.path.exists(out + ".consume")), ("ok", False), "OUT, and the state")


def test_consume_goes_on(path):
    """The OUT that OUT.consume names needs no --force."""
    images.Saved(path)
    images.kill_at_once(path, path + ".out")
    write(path + ".out", b"partial")
    tool(0, "convert", "--consume", "--to", "container", path, path + ".out")
    check_equal(verify(0, path + ".out")[0]["result"], "ok", "the verdict")


def container(path, regions, streams, header=b""):
    """A container of empty regions of so many bytes each, and of streams."""
    memory, fd = os.memfd_create("memory"), os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.truncate(memory, max(regions))
    with Session(HELPER) as session:
        session.hello(offered=0xFF)
        session.attach_image(manager.SAVE, fd)
        session.attach_memory(0, memory)
        for number, stream in enumerate(streams):
            read_end, write_end = os.pipe()
            threading.Thread(target=images.feed, args=(write_end, stream), daemon=True).start()
            session.attach_stream(number, read_end)
            os.close(read_end)
        session.seal()
        session.create_image(manager.CONTAINER, len(regions), len(streams), len(header))
        session.put_table([Entry(manager.REGION, number, b"region %d" % number, size) for number, size in enumerate(regions)] +
                          [Entry(manager.STREAM_ENTRY, number, b"stream %d" % number) for number in range(len(streams))])
        if header:
            session.write_header(0, header)
        for number in range(len(streams)):
            session.complete(session.save_stream(number, number))
        for number, size in enumerate(regions):
            session.complete(session.save_memory(0, number, size))
        session.complete(session.finish())
    os.close(fd)
    os.close(memory)


def test_consume_region_end(path):
    """Regions that are no whole number of chunks: where one ends a run may be interrupted, and the next one can go on."""
    out, arguments = path + ".out", ("convert", "--consume", "--to", "container", path, path + ".out")
    container(path, [96 * MIB + 4096] * 5, [b"state"])  # four windows each, the last one of a page
    done = subprocess.run([os.path.join(BUILD, "tests/integration/faulty_tool"), *arguments, f"--helper={HELPER}"],
                          env={**os.environ, "DIOH_FAULT": "2", "DIOH_LATE": "300"}, capture_output=True, text=True,
                          timeout=PATIENCE, check=False)
    check_equal(done.returncode, 1, done.stderr)
    has(done.stderr, f"{out}.consume cannot be written: Input/output error")
    state = json.loads(read(out + ".consume"))
    check((state["region"], state["offset"]) > (0, 0), f"a part of IN was freed: {state}")
    tool(0, *arguments, limit=1024 * MIB)
    check_equal((verify(0, out)[0]["result"], os.path.exists(out + ".consume")), ("ok", False), "OUT, and the state")


def test_consume_features(path):
    """IN has a feature that is not known here: who only reads it may ignore that, but nothing of it is freed."""
    container(path, [MIB], [b"state"])
    whole = bytearray(read(path))
    struct.pack_into("<Q", whole, 32, 1 << 40)
    struct.pack_into("<I", whole, 4092, crc32c(whole[:4092]))
    write(path, whole)
    has(tool(1, "convert", "--consume", "--to", "container", path, path + ".out"), "it has features that are not known here")
    check_equal((read(path), os.path.exists(path + ".out")), (bytes(whole), False), "IN, and OUT")
    tool(0, "convert", "--to", "container", path, path + ".out")


def test_saved_over_between(path):
    """An image gets another region between the look at it and its load: no half of it is converted, or called ok."""
    container(path + ".one", [MIB], [])
    container(path + ".other", [MIB, MIB], [])
    write(path + ".helper", f'#!/bin/sh\n[ ! -e {path}.looked ] || cat {path}.other >{path}\n: >{path}.looked\n'
          f'exec {HELPER} "$@"\n'.encode(), 0o755)
    for verb, *out in (("verify",), ("convert", "--to", "container", path + ".out")):
        write(path, read(path + ".one"))
        has(tool(1, verb, f"--helper={path}.helper", *out[:-1], path, *out[-1:]), f"{path}: was saved over meanwhile")
        os.unlink(path + ".looked")
    container(path, [MIB], [], b"one machine")
    container(path + ".other", [MIB], [], b"and another")
    has(tool(1, "convert", f"--helper={path}.helper", "--to", "container", path, path + ".out"), "was saved over meanwhile")
    check(not os.path.exists(path + ".out"), "OUT is not made")


def test_many_streams(path):
    """As many streams as there are transfers at once, none of which fits into its pipe: regions wait until some have ended."""
    container(path, [200 * MIB], [b"%d" % number + bytes(2 * MIB) for number in range(64)])
    tool(0, "convert", "--to", "container", path, path + ".out", limit=1024 * MIB)
    told, _ = verify(0, path + ".out")
    check_equal((told["result"], len(told["streams"])), ("ok", 64), "OUT")


def test_consume_names(path):
    """The state's own names: what stands there is not written through, and IN is not taken for it."""
    images.Saved(path)
    good = read(path)
    for _ in in_the_way(path + ".out.consume.new"):
        has(tool(1, "convert", "--consume", "--to", "container", path, path + ".out"), "out.consume.new is in the way")
    for name in (path + ".consume", path + ".consume.new"):
        os.rename(path, name)
        has(tool(1, "convert", "--consume", "--to", "container", name, path), "has the name that the state")
        os.rename(name, path)
    check_equal(read(path), good, "IN")


def test_consume_twice(path):
    """Another run frees IN's pages: two must not."""
    images.Saved(path)
    with open(path, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        has(tool(1, "convert", "--consume", "--to", "container", path, path + ".out"), f"{path} is in use by another run")
    check(not os.path.exists(path + ".out"), "OUT is not made")


# --listen.


def listening(image, name, *, ignoring=""):
    """An `ingest` that waits at that socket."""
    sink = subprocess.Popen(["sh", "-c", f'{ignoring} exec "$0" "$@"', TOOL, "ingest", f"--listen=unix:{name}", image],
                            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE
    while not os.path.exists(name):
        if sink.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"it does not listen: {sink.communicate()[1]}")
        time.sleep(0.01)
    return sink


def send(name, data):
    with socket.socket(socket.AF_UNIX) as end:
        end.settimeout(PATIENCE)
        while True:
            try:
                end.connect(name)
                break
            except ConnectionRefusedError:  # its name is there a moment before it listens
                time.sleep(0.01)
        end.sendall(data)


def test_listen_ended(path):
    """A signal while nobody has connected: neither the socket nor an image is left, and the next one can begin."""
    os.mkdir(path)
    os.chdir(path)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        sink = listening("image", "socket")
        check_equal(os.listdir(), ["socket"], "what there is while it waits")
        sink.send_signal(number)
        _, said = sink.communicate(timeout=PATIENCE)
        check_equal((sink.returncode, said), (-number, ""), "how it ends, as if it had taken no care of it")
        check_equal(os.listdir(), [], "what is left")
    sink = listening("image", "socket", ignoring="trap '' HUP;")
    sink.send_signal(signal.SIGHUP)
    send("socket", WHOLE)
    check_equal((sink.communicate(timeout=PATIENCE)[1], sink.returncode), ("", 0), "one that ignores SIGHUP, as nohup does")
    check_equal((verify(0, "image")[0]["result"], os.listdir()), ("ok", ["image"]), "the image, and what there is")


def test_listen_name(path):
    """A socket that nobody listens on any more is told from one at which another waits, who notices nothing."""
    os.mkdir(path)
    os.chdir(path)
    sink = listening("image", "socket")
    sink.kill()
    sink.communicate(timeout=PATIENCE)
    has(tool(1, "ingest", "--listen=unix:socket", "image"), "socket: nobody listens on this socket any more: remove it")
    check_equal(os.listdir(), ["socket"], "what there is")
    os.unlink("socket")
    sink = listening("image", "socket")
    has(tool(1, "ingest", "--listen=unix:socket", "other"), "socket: Address already in use")
    has(tool(1, "ingest", "--listen=unix:new", "missing/other"), "cannot be opened: No such file or directory")
    has(tool(1, "ingest", "--listen=unix:new", "."), "is neither a regular file nor a block device")
    check_equal(os.listdir(), ["socket"], "what there is")
    send("socket", WHOLE)
    check_equal((sink.communicate(timeout=PATIENCE)[1], sink.returncode), ("", 0), "the one that had waited")
    check_equal(verify(0, "image")[0]["result"], "ok", "the verdict")


TESTS = (test_stream_is_image, test_closed_descriptors, test_no_stream, test_stdout_is_in, test_partial, test_another_run,
         test_disk_in_use, test_name_not_durable, test_children_ignored, test_helper_ends_badly, test_helper_killed,
         test_out_helper_ends_badly, test_directory_unreadable, test_long_name, test_consume_another_out,
         test_consume_goes_on, test_consume_region_end, test_consume_features, test_saved_over_between, test_many_streams,
         test_consume_names, test_consume_twice, test_listen_ended, test_listen_name)


if __name__ == "__main__":
    sys.exit(images.main(TESTS))
