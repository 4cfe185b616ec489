#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# timeout: 120
#
# diohelper-tool on mapped-ram images, ours and QEMU's own, and on what libvirt saves: what `inspect` shows, what `verify`
# finds, and what both say of images that are partial, damaged, swollen or of a kind that cannot be checked. No QEMU is
# needed: qemu_stream.py makes what it would write.

import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
BUILD = os.environ.get("BUILD") or os.path.join(HERE, "../../build")
TOOL = os.environ.get("DIOHELPER_TOOL") or os.path.join(BUILD, "diohelper-tool")
HELPER = os.environ["DIOHELPER"] = os.environ.get("DIOHELPER") or os.path.join(BUILD, "diohelper")

sys.dont_write_bytecode = True  # no __pycache__ in the source tree
sys.path[:0] = [os.path.join(HERE, "other_language"), HERE]

import manager  # noqa: E402 (the path had to be set first)
import qemu_stream  # noqa: E402
from manager import Entry, Session  # noqa: E402
from qemu_stream import MIB, PAGE, Block  # noqa: E402

NO_CHECKSUM = 8
# In runs, with holes between them that are too long to be written along.
RAM_PAGES = {number: bytes([number % 255 + 1]) * PAGE for number in range(8 * 256) if number // 64 % 5 == 0}
VGA_PAGES = {number: b"vga " * (PAGE // 4) for number in range(100)}
RAM = Block("pc.ram", 8 * MIB, None, 0)
VGA = Block("vga.vram", MIB, VGA_PAGES, 0xFD000000)
STATE = bytes(range(256)) * 9000  # more than two chunks
UUID = "c7a5fdbd-edaf-9455-926a-d65c16db1809"


def check(condition, what):
    if not condition:
        raise AssertionError(f"not so: {what}")


def check_equal(got, expected, what):
    if got != expected:
        raise AssertionError(f"{what}: {got!r:.500} instead of {expected!r:.500}")


# Images.


class Saved:
    """A composed image of the two blocks, behind a header or none."""

    def __init__(self, path, header=b"", patch=b"", base=0, mode=0, flags=0, finish=True):
        self.path, self._header, self._patch = path, header, patch
        memory = os.memfd_create("memory")
        os.truncate(memory, RAM.bytes)
        for number, data in RAM_PAGES.items():
            os.pwrite(memory, data, number * PAGE)
        with Session(HELPER) as session:
            self._attach(session, memory, base)
            self._save(session, flags)
            self.table = session.get_table()
            if finish:
                session.complete(session.finish(mode, patch))
        os.close(memory)

    def _attach(self, session, memory, base):
        fd, (read_end, write_end) = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), os.pipe()
        threading.Thread(target=feed, args=(write_end, qemu_stream.stream((RAM, VGA), state=STATE)), daemon=True).start()
        session.hello(offered=0xFF)
        session.attach_image(manager.SAVE, fd, base_offset=base)
        session.attach_memory(0, memory)
        session.attach_stream(0, read_end)
        for mine in (fd, read_end):
            os.close(mine)
        session.seal()

    def _save(self, session, flags):
        session.create_image(manager.MAPPED_RAM, 1, 1, len(self._header), 0)
        session.put_table([Entry(manager.REGION, 7, b"pc.ram", RAM.bytes), Entry(manager.STREAM_ENTRY, 0, b"state")])
        if self._header:
            session.write_header(0, self._header)
        session.complete(session.save_stream(0, 0, flags))
        session.complete(session.save_memory(0, 7, RAM.bytes, flags=flags))


def feed(fd, data):
    with open(fd, "wb", buffering=0) as pipe:
        rest = memoryview(data)
        while rest:
            rest = rest[pipe.write(rest):]


def write_qemus(path, header=b"", base=0):
    pieces, size = qemu_stream.image((RAM._replace(pages=RAM_PAGES), VGA), header, base, STATE)
    qemu_stream.write_pieces(path, pieces)
    return size


def flip(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


# The tool.


def kill_at_once(path, out):
    """A --consume that is killed before it has freed anything: by the fourth helper, which is to save OUT."""
    write_executable(path + ".helper", f'#!/bin/sh\nread n 2>/dev/null <{path}.count\necho $((n + 1)) >{path}.count\n'
                     f'[ "$n" != 3 ] || kill -9 $PPID\nexec {HELPER} "$@"\n')
    done = subprocess.run([TOOL, "convert", "--consume", f"--helper={path}.helper", "--to", "container", path, out],
                          capture_output=True, timeout=60, check=False)
    check_equal((done.returncode, done.stderr), (-9, b""), "how it ended")
    with open(out + ".consume", encoding="utf-8") as file:
        state = json.load(file)
    check_equal((state["region"], state["offset"]), (0, 0), "how far it came")
    return state


def write_executable(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, 0o755)


def run(status, *arguments):
    """Standard output and error, the exit status being as wanted."""
    done = subprocess.run([TOOL, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "LC_ALL": "C"}, check=False)
    check_equal((done.returncode, " ".join(arguments)), (status, " ".join(arguments)), f"exit status ({done.stderr})")
    return done.stdout, done.stderr


def inspect(path, *arguments):
    text, _ = run(0, "inspect", *arguments, path)
    return json.loads(run(0, "inspect", "--json", *arguments, path)[0]), text


def verify(status, path, *arguments):
    out, err = run(status, "verify", *arguments, path)
    return json.loads(run(status, "verify", "--json", *arguments, path)[0]), out + err


def has(text, *sentences):
    for sentence in sentences:
        check(sentence in text, f"{sentence!r} is said, in {text}")


# The tests.


def test_ours(path):
    """A composed image, alone and behind libvirt's header: all of it is shown, and all of it is checked."""
    before, after = (qemu_stream.libvirt_header(complete=complete, memory=8 * MIB) for complete in (False, True))
    for header, patch, base in ((b"", b"", 0), (before, after[:16], 3 * MIB)):
        Saved(path, header, patch, base)
        told, text = inspect(path, f"--base-offset={base}")
        check_equal((told["layout"], told["state"], told["record"], told["base_offset"], told["holes_filled"]),
                    ("mapped-ram", "complete", True, base, False), "the image")
        check_equal(told["image_bytes"] + base, os.stat(path).st_size, "its size")
        check_regions(told["regions"], header)
        check_libvirt(told, text, header, "sparse")
        has(text, "record:  yes\n", "present  checksums  image offset  in stream\n")
        found, text = verify(0, path, f"--base-offset={base}")
        check_equal((found["result"], found["unchecked"], found["record"]), ("ok", 0, True), "the verdict")
        check_equal([entry["checked_bytes"] for entry in found["regions"]],
                    [len(RAM_PAGES) * PAGE, VGA.bytes], "what was checked of the regions")
        check(found["streams"][0]["checked_bytes"] > len(STATE), "the stream was checked")
        has(text, ": ok\n")
        check_equal(run(0, "verify", "--quiet", f"--base-offset={base}", path), ("", ""), "nothing is said")


def check_regions(regions, header):
    ram, vga = regions
    check_equal((ram["number"], ram["name"], ram["bytes"], ram["guest_address"], ram["present_bytes"], ram["checksums"],
                 ram["in_stream"]), (7, "pc.ram", RAM.bytes, "0x0", len(RAM_PAGES) * PAGE, True, False), "pc.ram")
    check_equal((vga["name"], vga["guest_address"], vga["present_bytes"], vga["checksums"], vga["in_stream"]),
                ("vga.vram", "0xfd000000", VGA.bytes, True, True), "vga.vram, a small one with its zeros")
    check(ram["image_offset"] > len(header), "the pages stand behind the header")


def check_libvirt(told, text, header, form):
    if not header:
        check_equal((told["libvirt"], told["header_bytes"]), (None, 0), "no header")
        return
    check_equal(told["libvirt"], {"format": form, "complete": True, "was_running": True, "name": "guest", "uuid": UUID,
                                  "memory_bytes": 8 * MIB}, "libvirt's header")
    check_equal(told["header_bytes"], len(header), "its size")
    has(text, f"header:  {len(header)} bytes, libvirt's, of a save image in format {form}\n",
        f'domain:  "guest", uuid {UUID}, memory 8.0 MiB, was running\n')


def test_anothers_header(path):
    """Behind a header that is not libvirt's nothing says where the image begins; with its size all is as without it."""
    mine, base = b"another manager's".ljust(5000, b"\n"), 2 * MIB
    for make, record in ((Saved, True), (write_qemus, False)):
        make(path, mine, base=base)
        place = f"--base-offset={base}"
        for verb in ("inspect", "verify", "map"):
            run(1, verb, place, path)
            has(run(2, verb, "--header-bytes=17M", path)[1], "--header-bytes: 17825792 is more than 16777216")
        told, _ = inspect(path, place, "--header-bytes=5000")
        check_equal((told["layout"], told["record"], told["header_bytes"], told["libvirt"]), ("mapped-ram", record, 5000, None),
                    "the image")
        found, _ = verify(0, path, place, "--header-bytes=5000")
        check_equal((found["result"], found["unchecked"]), ("ok", 0 if record else 3), "the verdict")
        ram = json.loads(run(0, "map", "--json", place, "--header-bytes=5000", path)[0])[0]["map"]
        first = next(piece for piece in ram if piece["present"])
        with open(path, "rb") as file:
            check_equal(os.pread(file.fileno(), PAGE, first["offset"]), RAM_PAGES[first["start"] // PAGE], "the first page")
        run(1, "inspect", place, "--header-bytes=4999", path)
        flip(path, first["offset"])
        check_equal(verify(1 if record else 0, path, place, "--header-bytes=5000")[0]["result"], "damaged" if record else "ok",
                    "a damaged page")


def test_damage(path):
    """Damaged pages, wherever they came from, the device state, and the setup, each in its place."""
    saved = Saved(path)
    told, _ = inspect(path)
    ram, vga = (entry["image_offset"] for entry in told["regions"])
    for place in (ram + 5 * PAGE, ram + 7 * MIB + 133 * PAGE, vga + 3 * PAGE, told["image_bytes"] - 1):
        flip(path, place)
    found, text = verify(1, path)
    check_equal((found["result"], [(damage["kind"], damage["number"], damage["offset"]) for damage in found["damages"]]),
                ("damaged", [("region", 7, 0), ("region", 7, 7 * MIB), ("region", 0, 0), ("stream", 0, None)]), "damages")
    has(text, 'region 7 "pc.ram": damaged at offset 7340032, 1048576 bytes: ', ": damaged in 4 places\n")
    flip(saved.path, 20)  # in the machine's name
    found, _ = verify(1, path)
    check_equal((found["result"], found["error"]["operation"]), ("unreadable", "checksum"), "a damaged setup")


def test_without_checksums(path):
    """An image whose saver wanted no checksums has a record all the same."""
    Saved(path, flags=NO_CHECKSUM)
    told, _ = inspect(path)
    check_equal((told["record"], [entry["checksums"] for entry in told["regions"] + told["streams"]]),
                (True, [False, False, False]), "record and checksums")
    found, text = verify(0, path)
    check_equal((found["result"], found["unchecked"]), ("ok", 3), "the verdict")
    has(text, 'region 7 "pc.ram": not checked', "ok, as far as it can be checked")


def test_endless_state(path):
    """A file of a few MiB on the disk that claims 20 GiB of device state: not read to its end, nor into the page cache."""
    os.truncate(path, write_qemus(path) + 20480 * MIB)
    has(verify(1, path)[1], "bytes of device state are more than 17179869184")
    has(inspect(path)[1], "layout:  mapped-ram")


def test_partial(path):
    """Saves that did not come to their end, ours and libvirt's, and one that was never synced."""
    before = qemu_stream.libvirt_header(complete=False)
    for header, finish in ((b"", False), (before, False), (before, True)):
        Saved(path, header, finish=finish)
        check_partial(path, 2)
    write_qemus(path, before)
    check_partial(path, 2)
    for length in (4096, 4100, 6000, 2 * MIB):
        os.truncate(path, length)
        check_partial(path, 0)
        has(inspect(path)[1], "header:  4096 bytes, libvirt's, of a save image in format sparse, marked partial\n")
    Saved(path, mode=1)
    check_equal(verify(1, path)[0]["result"], "written", "never synced")


def check_partial(path, regions):
    told, text = inspect(path)
    check_equal((told["state"], len(told["regions"])), ("partial", regions), "what is shown of a partial image")
    check_equal([(entry["present_bytes"], entry["checksums"]) for entry in told["regions"]], [(None, None)] * regions,
                "what cannot be known of it")
    has(text, "state:   partial: a save began and did not finish; nothing below is certain\n")
    found, text = verify(1, path)
    check_equal(found["result"], "partial", "the verdict")
    has(text, ": partial: a save began and did not finish\n")


def test_written_meanwhile(path):
    """The same machine is saved once more, without syncs, between the two looks that `verify` takes: it is not called ok."""
    Saved(path)
    Saved(path + ".written", mode=1)
    with open(path + ".helper", "w") as script:
        os.chmod(path + ".helper", 0o755)
        script.write(f'#!/bin/sh\n[ ! -e {path}.looked ] || cat {path}.written >{path}\n: >{path}.looked\nexec {HELPER} "$@"\n')
    has("".join(run(1, "verify", f"--helper={path}.helper", path)), "never synced")
    check_equal(verify(1, path)[0]["result"], "written", "the verdict of both looks")


def test_qemus(path):
    """QEMU's own images and libvirt's sparse ones: no record, nothing to compare; that they are whole can be said."""
    libvirt = qemu_stream.libvirt_header(memory=8 * MIB)
    for header, base, state in ((b"", 0, "unknown"), (libvirt, 0, "complete"), (b"", 2 * MIB, "unknown")):
        size, offset = write_qemus(path, header, base), f"--base-offset={base}"
        told, text = inspect(path, offset)
        check_equal((told["layout"], told["state"], told["record"], told["image_bytes"]), ("mapped-ram", state, False, size),
                    "the image")
        check_equal([(entry["name"], entry["present_bytes"], entry["guest_address"], entry["checksums"],
                      entry["in_stream"]) for entry in told["regions"]],
                    [("pc.ram", len(RAM_PAGES) * PAGE, None, False, True),
                     ("vga.vram", len(VGA_PAGES) * PAGE, None, False, True)], "its regions")
        check_libvirt(told, text, header, "sparse")
        has(text, "record:  no: nothing in it has checksums\n")
        found, text = verify(0, path, offset)
        check_equal((found["result"], found["record"], found["checked_bytes"], found["unchecked"]), ("ok", False, 0, 3),
                    "the verdict")
        check_equal([entry["read_bytes"] for entry in found["regions"]],
                    [len(RAM_PAGES) * PAGE, len(VGA_PAGES) * PAGE], "what was read of the regions")
        check(found["streams"][0]["read_bytes"] > len(STATE), "the stream was read")
        has(text, "it has no record, so there are no checksums to compare: its structure was checked",
            ": ok, as far as it can be checked\n", "only read: ")


def test_zeros_behind_qemus(path):
    """QEMU's own image as a copy from a volume has it, up to whole pages: it is as good as the image was."""
    size = write_qemus(path)
    os.truncate(path, size // PAGE * PAGE + 2 * PAGE)
    found, text = verify(0, path)
    check_equal(found["result"], "ok", text)
    os.truncate(path, size - 1)
    os.truncate(path, size + PAGE)
    has(verify(1, path)[1], "it ends too early, in the device state, or something stands behind its end")


def test_broken_qemus(path):
    """What makes QEMU's own image unfit to be restored is found without checksums, too."""
    size = write_qemus(path)
    header = 4 + 4 + 1 + 4 + 11 + 1 + 1 + 26 + 4 + 4 + 1 + 10 + 1 + 4 + 1 + 3 + 4 + 4 + 8 + 1 + 6 + 8  # of block pc.ram
    cases = (("truncated", "too early", lambda file: file.truncate(size - 1)),
             ("cut in its pages", "truncated", lambda file: file.truncate(5 * MIB)),
             ("a page size of 0", "pages of 0 bytes", lambda file: put(file, header + 4, bytes(8))),
             ("pages far away", "end beyond", lambda file: put(file, header + 20, b"\x3f" + bytes([255] * 5) + b"\xf0\0")),
             ("a bitmap in the wrong place", "the end of its header", lambda file: put(file, header + 12, bytes(8))))
    for what, sentence, harm in cases:
        write_qemus(path)
        with open(path, "r+b") as file:
            harm(file)
        found, text = verify(1, path)
        check_equal(found["result"], "unreadable", what)
        has(text, sentence)


def put(file, offset, data):
    file.seek(offset)
    file.write(data)


def test_libvirts_other_formats(path):
    """Of formats that are no mapped-ram the header is shown, and verify says that it cannot do its work."""
    for form in qemu_stream.FORMATS[:-1]:
        header = qemu_stream.libvirt_header(form, memory=8 * MIB)
        qemu_stream.write_pieces(path, [(0, header), (len(header), qemu_stream.stream((VGA,), None))])
        told, text = inspect(path)
        check_equal((told["layout"], told["state"], told["record"], told["regions"]), ("raw", "complete", False, []), form)
        check_equal((told["streams"][0]["bytes"], told["streams"][0]["image_offset"]),
                    (os.stat(path).st_size - len(header), len(header)), "its stream")
        check_libvirt(told, text, header, form)
        found, text = verify(1, path)
        check_equal((found["result"], found["error"]["code"]), ("unreadable", 95), "the verdict")
        has(text, f"is a save image of libvirt's in format {form}, ", "only format sparse can be verified")


def test_other_byte_order(path):
    """QEMU's bitmaps are its host's longs: of an image that says it is a big-endian host's, no page is taken for absent."""
    write_qemus(path, qemu_stream.libvirt_header())
    check_equal(verify(0, path)[0]["result"], "ok", "the verdict on our own host's")
    write_qemus(path, qemu_stream.libvirt_header(order=">"))
    found, text = verify(1, path)
    check_equal((found["result"], found["error"]["code"]), ("unreadable", 95), "the verdict")
    has(text, "saved on a host of the other byte order")
    has(run(1, "inspect", path)[1], "saved on a host of the other byte order")
    has(run(1, "convert", path, path + ".out")[1], "saved on a host of the other byte order")
    check(not os.path.exists(path + ".out"), "nothing is left")


def test_hostile_headers(path):
    """A name that means to fool a terminal; lengths and numbers that cannot be."""
    qemu_stream.write_pieces(path, [(0, qemu_stream.libvirt_header("raw", domain="a\u202eb&#27;[2J"))])
    told, text = inspect(path)
    check_equal(told["libvirt"]["name"], "a\u202eb?[2J", "the name")
    has(text, 'domain:  "a\\u{202e}b?[2J"')
    good = bytearray(qemu_stream.libvirt_header("raw"))
    for offset, value in ((16, 3), (20, 1 << 31), (20, 0), (28, 7), (32, 1 << 30)):
        bad = bytearray(good)
        struct.pack_into("<I", bad, offset, value)
        qemu_stream.write_pieces(path, [(0, bytes(bad))])
        for verb in ("inspect", "verify"):
            has(run(1, verb, path)[1], "libvirt's header: ")
    large = qemu_stream.libvirt_header("raw", size=17 * MIB)
    qemu_stream.write_pieces(path, [(0, large), (len(large), b"stream")])
    has(run(1, "inspect", path)[1], "libvirt's header has ")


def test_filled_holes(path):
    """A copy that did not mind the holes is told from one that did."""
    full, sparse = path + "-full", path + "-sparse"
    for make in (Saved, write_qemus):
        make(path)
        subprocess.run(["cp", "--sparse=never", path, full], check=True)
        subprocess.run(["cp", "--sparse=always", path, sparse], check=True)
        if os.stat(sparse).st_blocks * 512 > 6 * MIB:
            print("skipped: this file system keeps no holes")
            return
        told, text = inspect(full)
        check_equal((told["holes_filled"], told["allocated_bytes"]), (True, os.stat(full).st_blocks * 512), "a full copy")
        has(text, "warning: most of what could be holes in it takes room on the disk: ", "`fallocate --dig-holes`")
        for good in (path, sparse):
            told, text = inspect(good)
            check(not told["holes_filled"] and "warning" not in text, f"{good} has its holes")


TESTS = (test_ours, test_anothers_header, test_damage, test_without_checksums, test_endless_state, test_partial,
         test_written_meanwhile, test_qemus, test_zeros_behind_qemus, test_broken_qemus, test_libvirts_other_formats,
         test_other_byte_order, test_hostile_headers, test_filled_holes)


def main(tests=TESTS):
    """Runs those that the command line names, or all, each in a directory of this run's own. Answers the exit status."""
    if sys.version_info < (3, 9):
        print("skip: Python 3.9 is needed (socket.send_fds)")
        return 77
    directory = tempfile.mkdtemp(prefix="dioh-tool.", dir=os.environ.get("TMPDIR") or "/var/tmp")
    failed = 0
    try:
        for test in tests:
            if sys.argv[1:] and test.__name__ not in sys.argv[1:]:
                continue
            try:
                test(os.path.join(directory, test.__name__))
                print(f"ok    {test.__name__}", flush=True)
            except Exception:
                failed += 1
                print(f"FAIL  {test.__name__}: {test.__doc__}\n{traceback.format_exc()}", flush=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
