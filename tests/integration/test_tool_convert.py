#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# timeout: 300
#
# diohelper-tool convert and map: every pair of formats, read back and compared; what is refused and what is left of it;
# --stdout; --consume, killed anywhere and run again; the map against what was saved. No QEMU is needed: qemu_stream.py
# makes what it would write. (test-libvirt-convert.sh has the real ones.)

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.dont_write_bytecode = True  # no __pycache__ in the source tree
sys.path[:0] = [os.path.join(HERE, "other_language"), HERE]

import manager  # noqa: E402 (the path had to be set first)
import qemu_stream  # noqa: E402
import test_tool_mapped_ram as images  # noqa: E402
from manager import Entry, Session  # noqa: E402
from qemu_stream import MIB, PAGE  # noqa: E402
from test_tool_mapped_ram import HELPER, TOOL, check, check_equal, flip, has, inspect, run, verify  # noqa: E402

RAM, VGA, STATE = images.RAM._replace(pages=images.RAM_PAGES), images.VGA, images.STATE
WHOLE = qemu_stream.residual_stream((RAM, VGA), state=STATE)  # the machine as a plain stream
EMPTY_PART = qemu_stream.section(2) + qemu_stream.SECTION_END
ZERO_PAGE = re.compile(rb"(?:\x28|\x08([\x06\x08][a-z.]+))\0{%d}" % PAGE)  # the end of its header, a block's name, its bytes
HEADER = qemu_stream.libvirt_header("sparse", memory=8 * MIB)
RAW_HEADER = qemu_stream.libvirt_header("raw", memory=8 * MIB)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


def convert(status, *arguments):
    return run(status, "convert", *arguments)[1]


def plain(stream):
    """Without the parts of the RAM section that bring nothing, of which each conversion may leave one, and with zero pages
    marked as such, even if an image had their bytes."""
    return ZERO_PAGE.sub(lambda page: b"\x02" + page[1] + b"\0" if page[1] else b"\x22\0", stream.replace(EMPTY_PART, b""))


def as_stream(path, *options):
    """What is in an image, as the plain stream that a QEMU without mapped-ram would load."""
    done = subprocess.run([TOOL, "convert", "--stdout", "--quiet", *options, path], stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=60, check=False)
    check_equal((done.returncode, done.stderr), (0, b""), f"{path} as a stream")
    return plain(done.stdout)


def is_whole(path, what):
    check(as_stream(path) == plain(WHOLE), f"{what} holds the machine")


# The tests.


def test_streams(path):
    """A stream and libvirt's raw images become mapped-ram, and these become the same bytes again."""
    write(path, WHOLE)
    write(path + ".raw", RAW_HEADER + WHOLE)
    mapped, sparse = path + ".mapped", path + ".sparse"
    check_equal(convert(0, path, mapped), "", "nothing is said")
    check_equal(verify(0, mapped)[0]["result"], "ok", "the verdict")
    is_whole(mapped, "mapped-ram of a stream")
    convert(0, path + ".raw", sparse)
    check_equal(verify(0, sparse)[0]["result"], "ok", "the verdict")
    told, _ = inspect(sparse)
    check_equal((told["libvirt"]["format"], told["libvirt"]["complete"], told["header_bytes"]), ("sparse", True, len(HEADER)),
                "libvirt's header")
    check(read(sparse).startswith(HEADER), "all else in the header is as it was")
    convert(0, mapped, path + ".again")
    convert(0, sparse, path + ".raw-again")
    check_equal(plain(read(path + ".again")), plain(WHOLE), "the stream")
    check_equal(plain(read(path + ".raw-again")), RAW_HEADER + plain(WHOLE), "the raw image")
    check(not os.path.exists(path + ".again.partial"), "nothing else is left")
    check_equal(os.stat(mapped).st_mode & 0o777, 0o600, "the mode of an image of a guest's memory")


def test_qemus_own(path):
    """QEMU's own mapped-ram image and libvirt's sparse one, to every format they can have."""
    for header, name in ((b"", "own"), (HEADER, "sparse")):
        images.write_qemus(path, header)
        for target in ("stream", "mapped-ram", "container") + (("libvirt-raw", "libvirt-sparse") if header else ()):
            out = f"{path}.{name}.{target}"
            convert(0, "--to", target, path, out)
            if target == "stream":
                check_equal(plain(read(out)), plain(WHOLE), target)
            else:
                is_whole(out, f"{name} to {target}")
            if target != "stream" and target != "libvirt-raw":
                check_equal(verify(0, out)[0]["result"], "ok", target)


def load(path, regions, bytes_each):
    """The pages of regions of an image, and its stream."""
    memory = os.memfd_create("loaded")
    os.truncate(memory, sum(bytes_each))
    read_end, write_end = os.pipe()
    got = []
    reader = threading.Thread(target=lambda: got.append(open(read_end, "rb").read()))
    reader.start()
    fd = os.open(path, os.O_RDONLY)
    with Session(HELPER) as session:
        session.hello(offered=0xFF)
        session.attach_image(manager.LOAD, fd)
        session.attach_memory(0, memory)
        session.attach_stream(0, write_end)
        os.close(write_end)
        session.seal()
        session.open_image()
        at = 0
        for number, size in zip(regions, bytes_each):
            session.complete(session.load_memory(0, number, size, memory_offset=at))
            at += size
        session.complete(session.load_stream(0, 0))
    reader.join()
    data = os.pread(memory, sum(bytes_each), 0)
    for mine in (fd, memory):
        os.close(mine)
    return data, got[0]


def test_container(path):
    """A composed image to a container and back: memory, device state, addresses and names are the same byte for byte."""
    images.Saved(path)
    before = load(path, [7], [RAM.bytes])
    container, back = path + ".container", path + ".back"
    convert(0, "--to", "container", path, container)
    check_equal(verify(0, container)[0]["result"], "ok", "the container")
    check(load(container, [7], [RAM.bytes]) == before, "the container holds the same")
    told, _ = inspect(container)
    check_equal([(entry["number"], entry["name"], entry["guest_address"]) for entry in told["regions"]],
                [(7, "pc.ram", "0x0")], "its regions")
    convert(0, container, back)
    check_equal(verify(0, back)[0]["result"], "ok", "the image")
    memory, stream = load(back, [7], [RAM.bytes])
    check((memory, plain(stream)) == (before[0], plain(before[1])), "the image holds the same")
    is_whole(back, "the image that came back")
    has(convert(1, "--to", "stream", container, path + ".none"), "convert it --to mapped-ram, and that --to stream")
    check(not os.path.exists(path + ".none"), "nothing is left")


def test_headers(path):
    """A header of somebody else's goes along, and a mark in it comes last; libvirt's XML is left out where it can't go."""
    mine = b'{"name": "guest"}'.ljust(4096)
    images.Saved(path, mine)
    container, back = path + ".container", path + ".back"
    convert(0, "--header-bytes=4096", "--to", "container", path, container)
    check_equal(inspect(container)[0]["header_text"].rstrip(), mine.decode().rstrip(), "the header in the container")
    has(convert(0, container, back), "OUT has IN's header of 4096 bytes in front", "offset=4096")
    check(read(back)[:4096] == mine, "the header in front of the image")
    check(as_stream(back, "--header-bytes=4K") == plain(WHOLE), "the machine")
    images.write_qemus(path, HEADER)
    has(convert(0, "--to", "mapped-ram", path, back + "2"), "(4096 bytes, with the domain's XML): it is left out")
    has(convert(1, "--to", "libvirt-raw", back + "2", path + ".none"), "has no header of libvirt's")


def test_stdout(path):
    """A stream into a pipe, a file, and a reader that goes away."""
    images.Saved(path)
    is_whole(path, "what a pipe has got")
    with open(path + ".out", "wb") as file:
        subprocess.run([TOOL, "convert", "--stdout", path], stdout=file, timeout=60, check=True)
    check_equal(plain(read(path + ".out")), plain(WHOLE), "a file")
    with subprocess.Popen([TOOL, "convert", "--stdout", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as tool:
        tool.stdout.read(10)
        tool.stdout.close()
        check("its reader has gone" in tool.stderr.read().decode(), "why it ends is said")
        check_equal(tool.wait(30), 1, "the status")


def test_options(path):
    """Wrong command lines."""
    images.Saved(path)
    for words, *arguments in (("IN OUT is missing",), ("OUT is missing", path), ("c: IN OUT only", "a", "b", "c"),
                              ("--to: vmdk is none of", "--to=vmdk", "a", "b"), ("the name is empty", "a", ""),
                              ("with --stdout there is no OUT", "--stdout", "a", "b"),
                              ("--to: what --stdout writes is a stream", "--stdout", "--to=container", "a"),
                              ("--consume: not with --stdout", "--stdout", "--consume", "a"),
                              ("--force: not with --stdout", "--stdout", "--force", "a"),
                              ("not a multiple of 4096", "--base-offset=5", "a", "b"),
                              ("--header-bytes: 17825792 is more", "--header-bytes=17M", "a", "b")):
        has(run(2, "convert", *arguments)[1], words)
    has(run(2, "map")[1], "IMAGE is missing")


def test_refusals(path):
    """IN that cannot be had, OUT that must not be had: nothing is changed, nothing is left."""
    images.Saved(path)
    out, whole = path + ".out", read(path)
    os.link(path, path + ".link")
    os.symlink(path, path + ".symlink")
    for mine in (path, path + ".link", path + ".symlink"):
        has(convert(1, "--force", path, mine), "is IN itself")
        has(convert(1, "--force", "--to", "mapped-ram", path, mine), "is IN itself")
    os.rename(path, path + ".partial")
    has(convert(1, path + ".partial", path), "is IN itself")
    os.rename(path + ".partial", path)
    write(out, b"something")
    has(convert(1, path, out), "exists; --force overwrites it")
    has(convert(1, path, "/dev/null"), "neither a regular file nor a block device")
    has(convert(1, path, path + "/none"), "Not a directory")
    has(convert(1, path + ".missing", out), "cannot be opened")
    for target in (out + ".target", path + ".missing"):
        write(out + ".target", b"")
        os.symlink(target, out + ".to")
        for options in ((), ("--force",)):
            has(convert(1, *options, path, out + ".to"), "is a symbolic link, whose place a stream would take")
        check(os.path.islink(out + ".to"), "the link is there")
        os.unlink(out + ".to")
    check(not os.path.exists(path + ".missing"), "nothing is made through a link")
    check_equal((read(path), read(out)), (whole, b"something"), "IN and OUT")
    convert(0, "--force", path, out)
    check_equal(plain(read(out)), plain(WHOLE), "an OUT that was overwritten")
    write(path + ".stream", WHOLE)
    has(convert(1, "--to", "stream", path + ".stream", out + "2"), "is in format stream already")
    has(convert(1, "--consume", path + ".stream", out + "2"), "has to be read from its start again")
    has(convert(1, "--consume", "--to", "stream", path, out + "2"), "has to be read from its start again")
    for form in qemu_stream.FORMATS[1:-1]:
        write(path + ".packed", qemu_stream.libvirt_header(form) + b"packed")
        has(convert(1, path + ".packed", out + "2"), f"is compressed (format {form})", "head -c 28 \"$IN\"")
    check(not os.path.exists(out + "2"), "nothing is left")


def test_broken(path):
    """Damage anywhere in IN: refused with its place, and OUT is not complete."""
    saved, out = images.Saved(path), path + ".out"
    ram = inspect(path)[0]["regions"][0]["image_offset"]
    flip(path, ram + 5 * PAGE)
    for target in ("mapped-ram", "container", "stream"):
        has(convert(1, "--to", target, path, out), f"{path}: region 7 \"pc.ram\": ", "damaged")
        check(not os.path.exists(out) and not os.path.exists(out + ".partial"), "nothing is left")
    write(out, WHOLE)
    convert(1, "--force", "--to", "mapped-ram", path, out)
    check(inspect_state(out) != "complete", "what was overwritten is not complete")
    images.Saved(path, finish=False)
    has(convert(1, "--force", path, out), "is partial")
    os.unlink(out)
    for cut in (3, 1000, len(WHOLE) // 2, len(WHOLE) - 1):
        write(path, WHOLE[:cut])
        convert(1, path, out)
        write(path, RAW_HEADER + WHOLE[:cut])
        convert(1, path, out)
        check(not os.path.exists(out), "nothing is left")
    check(saved is not None, "the image was there")


def write_container(path, size, stream):
    """A container of an empty region and a stream."""
    memory, (read_end, write_end) = os.memfd_create("memory"), os.pipe()
    os.truncate(memory, size)
    threading.Thread(target=images.feed, args=(write_end, stream), daemon=True).start()
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with Session(HELPER) as session:
        session.hello(offered=0xFF)
        session.attach_image(manager.SAVE, fd)
        session.attach_memory(0, memory)
        session.attach_stream(0, read_end)
        os.close(read_end)
        session.seal()
        session.create_image(manager.CONTAINER, 1, 1, 0)
        session.put_table([Entry(manager.REGION, 7, b"pc.ram", size), Entry(manager.STREAM_ENTRY, 0, b"state")])
        session.complete(session.save_stream(0, 0))
        session.complete(session.save_memory(0, 7, size))
        session.complete(session.finish())
    os.close(fd)
    os.close(memory)


def test_state_is_not_qemus(path):
    """A container whose device state is not QEMU's, and more than a pipe holds: OUT refuses it while IN still writes."""
    write_container(path, MIB, b"no stream of QEMU's".ljust(8 * MIB))
    has(convert(1, "--to", "mapped-ram", path, path + ".out"), "QEMU stream: ")
    check(not os.path.exists(path + ".out"), "nothing is left")


def inspect_state(path):
    done = subprocess.run([TOOL, "inspect", "--json", path], capture_output=True, timeout=60, check=False)
    return json.loads(done.stdout).get("state")


def test_no_room(path):
    """OUT's file system is full, or its file may not grow: said so, of OUT, and nothing is left."""
    os.close(make_big(path))
    out = path + ".out"
    for target in ("stream", "mapped-ram", "container"):
        done = subprocess.run(["prlimit", f"--fsize={200 * MIB}", TOOL, "convert", "--to", target, path, out],
                              capture_output=True, text=True, timeout=60, check=False)
        check_equal(done.returncode, 1, "the status")
        has(done.stderr, "File too large", out)
        check(not os.path.exists(out) and not os.path.exists(out + ".partial"), "nothing is left")


def test_no_room_to_overwrite(path):
    """An OUT that would be lost for nothing is not touched; a stream takes the place of OUT only in the end."""
    images.Saved(path)
    out, stream = path + ".out", path + ".stream"
    convert(0, "--to", "mapped-ram", path, out)
    kept, good = stamp(out), read(out)
    room = os.statvfs(out).f_bavail * os.statvfs(out).f_frsize
    for header, target in ((b"", "container"), (RAW_HEADER, "libvirt-sparse")):
        write(stream, header + WHOLE)
        os.truncate(stream, room + (1 << 40))
        has(convert(1, "--force", "--to", target, stream, out), f"{out}: IN has ", "nothing was written")
        check_equal((stamp(out), read(out) == good), (kept, True), "OUT")
    os.truncate(stream, len(RAW_HEADER + WHOLE))
    convert(0, "--force", stream, out)
    is_whole(out, "an OUT for which there is room")


def test_file_size_limit(path):
    """A limit on the size of files that memory does not fit under: a sentence of every verb, and nothing is left."""
    images.Saved(path)
    good, out = read(path), path + ".d"
    os.mkdir(out)
    for arguments in (("verify", path), ("convert", path, out + "/out"), ("convert", "--to", "mapped-ram", path, out + "/out"),
                      ("convert", "--consume", "--to", "container", path, out + "/out"), ("bench", "--size=65M", out)):
        done = subprocess.run(["prlimit", f"--fsize={64 * MIB}", TOOL, *arguments], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=60, check=False)
        check_equal((done.returncode, done.stdout), (1, ""), f"status and output of {arguments} ({done.stderr})")
        has(done.stderr, "File too large", "ulimit -f")
        check_equal((done.stderr.count("\n"), os.listdir(out)), (1, []), "lines, and what is left")
    check_equal(read(path), good, "IN")


# Freeing IN.

BIG_BYTES = 640 * MIB
BIG_RUN = 3 * MIB


def make_big(path):
    """A composed image of a memory large enough to be freed in several steps: runs of data and holes."""
    memory, noise = os.memfd_create("big"), os.urandom(BIG_RUN)
    os.truncate(memory, BIG_BYTES)
    for at in range(0, BIG_BYTES, 2 * BIG_RUN):
        os.pwrite(memory, at.to_bytes(8, "little") + noise[8:][:min(BIG_RUN, BIG_BYTES - at) - 8], at)
    block = RAM._replace(bytes=BIG_BYTES, pages=None)
    fd, (read_end, write_end) = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), os.pipe()
    data = qemu_stream.stream((block, VGA), state=STATE)
    threading.Thread(target=images.feed, args=(write_end, data), daemon=True).start()
    with Session(HELPER) as session:
        session.hello(offered=0xFF)
        session.attach_image(manager.SAVE, fd, os.open(path, os.O_RDWR | os.O_DIRECT))
        session.attach_memory(0, memory)
        session.attach_stream(0, read_end)
        os.close(read_end)
        session.seal()
        session.create_image(manager.MAPPED_RAM, 1, 1, 0, 0)
        session.put_table([Entry(manager.REGION, 7, b"pc.ram", BIG_BYTES), Entry(manager.STREAM_ENTRY, 0, b"state")])
        session.complete(session.save_stream(0, 0))
        session.complete(session.save_memory(0, 7, BIG_BYTES))
        session.complete(session.finish())
    os.close(fd)
    return memory


def is_big(path, memory):
    check_equal(verify(0, path)[0]["result"], "ok", path)
    copy = os.memfd_create("copy")
    os.truncate(copy, BIG_BYTES)
    fd = os.open(path, os.O_RDONLY)
    with Session(HELPER) as session:
        session.hello(offered=0xFF)
        session.attach_image(manager.LOAD, fd)
        session.attach_memory(0, copy)
        session.seal()
        session.open_image()
        session.complete(session.load_memory(0, 7, BIG_BYTES, flags=manager.FRESH))
    same = all(os.pread(copy, 16 * MIB, at) == os.pread(memory, 16 * MIB, at) for at in range(0, BIG_BYTES, 16 * MIB))
    check(same, f"{path} has all memory")
    for mine in (fd, copy):
        os.close(mine)


def allocated(path):
    return os.stat(path).st_blocks * 512


def test_consume(path):
    """IN is freed behind the work, there and back, and its OUT is as good as another."""
    memory = make_big(path)
    before = allocated(path)
    if before > BIG_BYTES * 3 // 4:
        print("skipped: this file system keeps no holes")
        return
    container, back = path + ".container", path + ".back"
    convert(0, "--consume", "--to", "container", path, container)
    check(allocated(path) < before * 2 // 3, f"IN was freed: {allocated(path)} bytes of {before}")
    is_consumed(path, container)
    is_big(container, memory)
    convert(0, "--consume", container, back)
    is_consumed(container, back)
    is_big(back, memory)
    os.close(memory)


def is_consumed(path, out, header_bytes=0):
    """IN is nobody's image any more, wherever one looks for its beginning."""
    check(not os.path.exists(out + ".consume"), "the state is gone")
    with open(path, "rb") as file:
        for place in (0, header_bytes):
            file.seek(place)
            check_equal(file.read(512), bytes(512), f"IN's mark at {place}")
    check(inspect_state(path) != "complete", "IN does not say that it is complete")


def interrupt(arguments, seconds):
    """Starts a conversion and kills it and its helpers; whether it was still at it."""
    with subprocess.Popen([TOOL, "convert", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, start_new_session=True) as tool:
        try:
            tool.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(tool.pid, signal.SIGKILL)
            tool.wait()
            return True
        check_equal(tool.returncode, 0, "a run that was not interrupted")
        return False


def test_consume_killed(path):
    """SIGKILL at any moment, several times in one conversion: the next run goes on, and the last one's OUT is whole."""
    seed = int(os.environ.get("DIOH_SEED") or time.time_ns() % 1000000)
    print(f"seed: DIOH_SEED={seed}")
    chance = random.Random(seed)
    memory, source = make_big(path), path
    begun = time.monotonic()
    convert(0, "--to", "container", path, path + ".measure")
    verify(0, path)  # which comes first
    length = time.monotonic() - begun
    os.unlink(path + ".measure")
    for target in ("container", "mapped-ram", "container"):
        out, kills, resumed = f"{source[:200]}.{target}", 0, 0
        arguments = ("--consume", "--to", target, source, out)
        while kills < 6 and interrupt(arguments, chance.uniform(0.01, length)):
            kills += 1
            resumed += os.path.exists(out + ".consume") and json.loads(read(out + ".consume"))["offset"] > 0
            if not os.path.exists(out + ".consume") and os.path.exists(out) and inspect_state(out) == "complete":
                break  # it was killed behind its last step: is_big() sees whether that was so
        if os.path.exists(out + ".consume") or inspect_state(out) != "complete":
            convert(0, *arguments)
        print(f"{target}: killed {kills} times, {resumed} times with a part of IN freed")
        is_big(out, memory)
        os.unlink(source)
        source = out
    os.close(memory)


def test_consume_state(path):
    """A state that is another's, or none: refused before anything is touched."""
    images.Saved(path)
    out, good = path + ".out", read(path)
    arguments = ("--consume", "--to", "container", path, out)
    for text in ("", "{", "[]", "{}", '{"version": 3}'):
        write(out + ".consume", text.encode())
        has(convert(1, *arguments), "which an earlier --consume has left, cannot be understood")
    os.unlink(out + ".consume")
    state = {**images.kill_at_once(path, out), "offset": MIB}
    for key, value, words in (("in_identity", 1, "is of another image"), ("format", "mapped-ram", "or another format"),
                              ("in_bytes", 5, "is of another IN"), ("offset", 5, "cannot be understood"),
                              ("region", -1, "cannot be understood"), ("header_bytes", -1, "cannot be understood"),
                              ("version", 2, "cannot be understood"), ("out_inode", 2, "in another OUT already"),
                              ("out_born_ns", 1, "in another OUT already")):
        write(out + ".consume", json.dumps({**state, key: value}).encode())
        has(convert(1, *arguments), words)
    write(out, b"no image".ljust(4096))  # it is the same file
    write(out + ".consume", json.dumps(state).encode())
    has(convert(1, *arguments), "it cannot be continued")
    os.unlink(out)
    has(convert(1, *arguments), "in another OUT already")
    check(not os.path.exists(out), "there is no OUT that nothing comes of")
    check_equal(read(path), good, "IN")


def interrupted(path, out, target="container"):
    """A conversion that cannot say any more that it has come to its second step; how far it came."""
    done = subprocess.run([os.path.join(images.BUILD, "tests/integration/faulty_tool"), "convert", "--consume",
                           f"--helper={HELPER}", "--to", target, path, out], env={**os.environ, "DIOH_FAULT": "2"},
                          capture_output=True, text=True, timeout=60, check=False)
    check_equal(done.returncode, 1, done.stderr)
    has(done.stderr, f"{out}.consume cannot be written: Input/output error")
    state = json.loads(read(out + ".consume"))
    check(state["offset"] > 0, f"a part of IN was freed: {state}")
    return state


def stamp(path):
    st = os.stat(path)
    return st.st_ino, st.st_size, st.st_mtime_ns


def test_consume_damaged(path):
    """Damage far behind the first step is found before the first page is freed: IN is as it was, and there is no OUT."""
    os.close(make_big(path))
    out, arguments = path + ".out", ("--consume", "--to", "container", path, path + ".out")
    last = inspect(path)[0]["regions"][0]["image_offset"] + BIG_BYTES // (2 * BIG_RUN) * 2 * BIG_RUN
    for places, words in (([last], "is damaged: its checksum is"), ([last, os.stat(path).st_size - 1], "in 2 places")):
        for place in places:
            flip(path, place)
        before = stamp(path), allocated(path)
        has(convert(1, *arguments), f"{path}: region 7 \"pc.ram\": ", words, "this run has freed nothing of it")
        check_equal((stamp(path), allocated(path)), before, "IN")
        check_equal([name for name in os.listdir(os.path.dirname(path)) if name.startswith(os.path.basename(out))], [],
                    "what is left")
        for place in places:
            flip(path, place)
    check_equal(verify(0, path)[0]["result"], "ok", "IN")


def test_consume_fails_early(path):
    """A run that fails before it has freed anything leaves IN as it was, and neither OUT nor a state."""
    os.mkdir(path)
    mine, out = os.path.join(path, "in"), os.path.join(path, "out")
    images.Saved(mine)
    good = read(mine)
    images.write_executable(path + ".helper", f'#!/bin/sh\nread n 2>/dev/null <{path}.count\necho $((n + 1)) >{path}.count\n'
                            f'[ "$n" != 3 ] || exit 1\nexec {HELPER} "$@"\n')
    for helper, words in ((HELPER, "out.consume cannot be written: Input/output error"), (path + ".helper", "status 1")):
        done = subprocess.run([os.path.join(images.BUILD, "tests/integration/faulty_tool"), "convert", "--consume",
                               f"--helper={helper}", "--to", "container", mine, out],
                              env={**os.environ, "DIOH_FAULT": "0" if helper == HELPER else "9"}, capture_output=True,
                              text=True, timeout=60, check=False)
        check_equal(done.returncode, 1, done.stderr)
        has(done.stderr, words)
        check_equal((read(mine) == good, os.listdir(path)), (True, ["in"]), "IN is as it was, and what there is")


def test_consume_refused(path):
    """A device state that OUT refuses in its last byte: nothing of IN was freed by then."""
    block, out = RAM._replace(bytes=BIG_BYTES, pages=None), path + ".out"
    write_container(path, BIG_BYTES, qemu_stream.stream((block, VGA), state=os.urandom(64 * MIB))[:-1])
    before = stamp(path)
    has(convert(1, "--consume", "--to", "mapped-ram", path, out), f"{out}: QEMU stream: it ends too early")
    check_equal((stamp(path), os.path.exists(out), os.path.exists(out + ".consume")), (before, False, False),
                "IN, and what is left")


def test_consume_another_save(path):
    """Another machine was saved into IN's file after an interruption: what was freed of the first is not made part of it."""
    os.close(make_big(path))
    out, inode = path + ".out", os.stat(path).st_ino
    interrupted(path, out)
    memory, before, kept = make_big(path), allocated(path), stamp(out)
    check_equal(os.stat(path).st_ino, inode, "it is the same file")
    has(convert(1, "--consume", "--to", "container", path, out), "is of another image than the one that is in IN now")
    check_equal(allocated(path), before, "nothing of IN was freed")
    check_equal(stamp(out), kept, "OUT")
    is_big(path, memory)
    os.unlink(out + ".consume")
    convert(0, "--consume", "--force", "--to", "container", path, out)
    is_big(out, memory)
    os.close(memory)


def test_consume_elsewhere(path):
    """After a reboot devices may have other numbers, and a copy of IN is as good: the run goes on."""
    memory = make_big(path)
    out = path + ".out"
    state = interrupted(path, out)
    check_equal([key for key in state if "device" in key], [], "devices' numbers in the state")
    subprocess.run(["cp", "--sparse=always", path, path + ".copy"], check=True)
    os.rename(path + ".copy", path)
    convert(0, "--consume", "--to", "container", path, out)
    is_big(out, memory)
    os.close(memory)


def test_consume_guards_out(path):
    """What was freed of IN is in OUT alone: nobody else overwrites that, nor is IN taken for damaged without a word."""
    memory = make_big(path)
    out, other = path + ".out", path + ".other"
    state, size = interrupted(path, out), allocated(path)
    images.Saved(other)
    kept = stamp(out)
    for arguments in (("--to", "container", path), ("--force", "--to", "container", path), ("--force", "--to", "stream", path),
                      ("--force", "--to", "mapped-ram", other), ("--to", "stream", other)):
        has(convert(1, *arguments, out), f"{out}: {out}.consume, which an earlier --consume has left, says that what it has")
    has(convert(1, "--consume", "--force", "--to", "container", other, out), "is of another IN")
    has(convert(1, "--consume", "--to", "container", path, other + ".out"), "this run has freed nothing of it",
        "if an earlier one into another OUT has")
    check_equal((stamp(out), json.loads(read(out + ".consume")), allocated(path)), (kept, state, size), "OUT, state and IN")
    check_equal([name for name in os.listdir(os.path.dirname(path)) if name.startswith(os.path.basename(other) + ".out")], [],
                "what is left")
    convert(0, "--consume", "--to", "container", path, out)
    convert(0, "--force", "--to", "container", other, other + ".out")
    is_big(out, memory)
    os.rename(out, out + ".moved")
    write(out, b"not what the state speaks of")
    write(out + ".consume", json.dumps(state).encode())
    convert(0, "--force", "--to", "container", other, out)
    os.close(memory)


def test_consume_frees_again(path):
    """Holes that an interrupted run did not come to make, or that a power cut has undone, are made by the next one."""
    memory = make_big(path)
    out, place = path + ".out", inspect(path)[0]["regions"][0]["image_offset"]
    check(interrupted(path, out)["offset"] >= 16 * MIB, "so much was freed")
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"x" * 16 * MIB, place)
    convert(0, "--consume", "--to", "container", path, out)
    check_equal(os.pread(fd, 16 * MIB, place), bytes(16 * MIB), "what had been freed before")
    is_big(out, memory)
    os.close(fd)
    os.close(memory)


def test_consume_end(path):
    """A run that was interrupted when OUT was complete: what is left is done, and nothing else."""
    memory = make_big(path)
    out, arguments = path + ".out", ("--consume", "--to", "container", path, path + ".out")
    done = json.dumps({**interrupted(path, out), "done": True}).encode()
    convert(0, *arguments)
    good = stamp(out)
    write(out + ".consume", done)
    write(path + ".new", b"no image")
    os.rename(out, path + ".kept")
    os.rename(path + ".new", out)
    convert(1, *arguments)  # that OUT is not the one that is complete
    os.rename(path + ".kept", out)
    has(convert(0, *arguments), "note: an earlier run has made OUT complete")
    is_consumed(path, out)
    check_equal(stamp(out), good, "OUT")
    convert(1, *arguments)
    is_big(out, memory)
    os.close(memory)


def test_consume_needs(path):
    """Regions without checksums are refused, and behind libvirt's header QEMU's mark goes with libvirt's."""
    images.Saved(path, flags=images.NO_CHECKSUM)
    good = read(path)
    has(convert(1, "--consume", "--to", "container", path, path + ".out"), "region 7 has no checksums")
    check_equal((read(path), os.path.exists(path + ".out")), (good, False), "IN, and whether there is an OUT")
    convert(0, "--to", "container", path, path + ".out")
    partial = qemu_stream.libvirt_header(complete=False, memory=8 * MIB)
    images.Saved(path, partial, HEADER[:16])
    convert(0, "--consume", "--to", "mapped-ram", path, path + ".mapped")
    is_whole(path + ".mapped", "mapped-ram of libvirt's")
    is_consumed(path, path + ".mapped", len(HEADER))


# The map.


def runs_of(pages, count):
    """(first page, length, present) of all runs."""
    runs = []
    for number in range(count):
        present = number in pages
        if runs and runs[-1][2] == present:
            runs[-1][1] += 1
        else:
            runs.append([number, 1, present])
    return [tuple(one) for one in runs]


def check_map(told, region, block):
    place = region["image_offset"]
    expected = [{"start": first * PAGE, "length": count * PAGE, "depth": 0, "present": present, "zero": not present,
                 "data": present, **({"offset": place + first * PAGE} if present else {})}
                for first, count, present in runs_of(block.pages, block.bytes // PAGE)]
    check_equal(told, {"number": region["number"], "name": block.name, "bytes": block.bytes, "map": expected}, block.name)


def test_map(path):
    """The map is what was saved, in ours, QEMU's own and a container, and its offsets are where the pages are."""
    saved = images.Saved
    for make, vga in ((saved, qemu_stream.with_zeros(VGA)), (images.write_qemus, VGA)):
        make(path)
        told, regions = json.loads(run(0, "map", "--json", path)[0]), inspect(path)[0]["regions"]
        for one, region, block in zip(told, regions, (RAM, vga)):
            check_map(one, region, block)
            place = next(item for item in one["map"] if item["data"])
            with open(path, "rb") as file:
                file.seek(place["offset"])
                check_equal(file.read(PAGE), block.pages[place["start"] // PAGE], "the page there")
    text, _ = run(0, "map", path)
    has(text, 'region 0 "pc.ram", 8388608 bytes\n', "Offset             Length             Mapped to\n")
    convert(0, "--to", "container", path, path + ".container")
    check_equal(json.loads(run(0, "map", "--json", path + ".container")[0]), [], "a container without regions")
    write(path, WHOLE)
    has(run(1, "map", path)[1], "is a stream: its memory has no places in it")
    images.Saved(path, finish=False)
    has(run(1, "map", "--json", path)[1], "is partial")


def test_map_of_a_large_region(path):
    """A bitmap that takes several messages; nearly all of it hole."""
    pages = {number: b"x" * PAGE for number in (0, 1, 524287, 524288, 1048575, 1310719)}
    block = RAM._replace(bytes=5 << 30, pages=pages)
    pieces, _ = qemu_stream.image((block,), b"", 0, STATE)
    qemu_stream.write_pieces(path, pieces)
    told, region = json.loads(run(0, "map", "--json", path)[0]), inspect(path)[0]["regions"][0]
    check_map(told[0], region, block)


TESTS = (test_streams, test_qemus_own, test_container, test_headers, test_stdout, test_options, test_refusals, test_broken,
         test_state_is_not_qemus, test_no_room, test_no_room_to_overwrite,
         test_file_size_limit, test_consume, test_consume_killed, test_consume_state,
         test_consume_damaged, test_consume_fails_early, test_consume_refused, test_consume_another_save,
         test_consume_elsewhere, test_consume_guards_out, test_consume_frees_again, test_consume_end, test_consume_needs,
         test_map, test_map_of_a_large_region)


if __name__ == "__main__":
    sys.exit(images.main(TESTS))
