# SPDX-License-Identifier: LGPL-2.1-or-later
"""dropin.py - for test_dropin.py and test_root_dropin.py: running an I/O helper (libvirt's or ours, both have the same
command line), what came of it, and a table of cases with what is to come of each.

A case says what is to come; where libvirt's program is known to do otherwise, it says what that does, and why ours does
not. Whatever else differs between the two, or has changed on either side, fails the case."""

import ctypes
import fcntl
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
HELPER = os.path.abspath(os.environ.get("DIOHELPER") or os.path.join(HERE, "../../build/diohelper"))
STOCK_PATHS = ("/usr/lib/libvirt/libvirt_iohelper", "/usr/libexec/libvirt_iohelper")
STOCK = next((path for path in STOCK_PATHS if os.access(path, os.X_OK)), None)
LIMIT_S = 20  # of one run: what takes longer hangs

KIB = 1 << 10
MIB = 1 << 20


def skip(reason):
    print(f"skip: {reason}")
    sys.exit(77)


class Program:
    def __init__(self, name, path, stock=False):
        self.name, self.path, self.stock = name, path, stock


class Outcome(dict):
    """What came of a run. Kept: status, error (standard error), output (standard output, where that is no image), image
    (its bytes), position (of the image's descriptor), and what a case adds."""


def temporary_directory():
    return tempfile.TemporaryDirectory(prefix="dioh-dropin.", dir=os.environ.get("TMPDIR") or "/var/tmp")


def random_bytes(count, seed=1):
    import random
    return random.Random(seed).randbytes(count)


# ---- running ----------------------------------------------------------------------------------------------------------


def start(program, arguments, stdin=None, stdout=None, stderr=subprocess.PIPE, keep=(), closed=(), argv0=None, limits=()):
    """Starts it with these standard descriptors (numbers; None: /dev/null), and those of `keep` as they are."""

    def before_exec():
        for what, value in limits:
            resource.setrlimit(what, (value, value))
        for fd in closed:
            os.close(fd)

    return subprocess.Popen([argv0 or program.path, *arguments], executable=program.path, pass_fds=keep,
                            stdin=subprocess.DEVNULL if stdin is None else stdin,
                            stdout=subprocess.DEVNULL if stdout is None else stdout, stderr=stderr,
                            preexec_fn=before_exec if limits or closed else None)


def end(process):
    """Waits for its end. What hangs is killed, and says so."""
    try:
        _, error = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Outcome(status="hangs", error="")
    return Outcome(status=process.returncode, error=(error or b"").decode(errors="replace"))


class Feeder(threading.Thread):
    """Writes pieces into a descriptor and closes it; a reader that has gone is none of its business."""

    def __init__(self, fd, pieces):
        super().__init__(daemon=True)
        self.fd, self.pieces = fd, pieces
        self.start()

    def run(self):
        try:
            for piece in self.pieces:
                view = memoryview(piece)
                while view:
                    view = view[os.write(self.fd, view):]
        except BrokenPipeError:
            pass
        os.close(self.fd)


class Reader(threading.Thread):
    def __init__(self, fd):
        super().__init__(daemon=True)
        self.fd, self.data = fd, bytearray()
        self.start()

    def run(self):
        while True:
            piece = os.read(self.fd, MIB)
            if not piece:
                break
            self.data += piece
        os.close(self.fd)


def open_image(path, flags, position=0, direct=False):
    fd = os.open(path, flags | (os.O_DIRECT if direct else 0), 0o600)
    os.lseek(fd, position, os.SEEK_SET)
    return fd


def content(path):
    with open(path, "rb") as file:
        return file.read()


def put(path, data):
    with open(path, "wb") as file:
        file.write(data)


def save(program, path, pieces, position=0, direct=False, number=1, flags=0, **more):
    """Feeds pieces through a pipe into the file at this position, by descriptor `number` (None: whichever it is)."""
    image = open_image(path, os.O_WRONLY | os.O_CREAT | flags, position, direct)
    source, sink = os.pipe()
    if number == 1:
        process = start(program, [path, "1"], source, image, **more)
    else:
        process = start(program, [path, str(image)], source, keep=(image,), **more)
    os.close(source)
    feeder = Feeder(sink, pieces)
    outcome = end(process)
    feeder.join()
    outcome["position"] = os.lseek(image, 0, os.SEEK_CUR)
    outcome["flags"] = fcntl.fcntl(image, fcntl.F_GETFL) & ~0o100000  # O_LARGEFILE
    os.close(image)
    if stat.S_ISREG(os.stat(path).st_mode):
        outcome["image"] = content(path)
    return outcome


def load(program, path, position=0, direct=False, number=0, flags=0, **more):
    image = open_image(path, os.O_RDONLY | flags, position, direct)
    source, sink = os.pipe()
    if number == 0:
        process = start(program, [path, "0"], image, sink, **more)
    else:
        process = start(program, [path, str(image)], None, sink, keep=(image,), **more)
    os.close(sink)
    reader = Reader(source)
    outcome = end(process)
    reader.join()
    outcome["output"] = bytes(reader.data)
    outcome["position"] = os.lseek(image, 0, os.SEEK_CUR)
    os.close(image)
    return outcome


# ---- cases ------------------------------------------------------------------------------------------------------------


class Says:
    """A failure's text: one sentence on one line, begun as libvirt's begins, with what, where and why."""

    def __init__(self, pattern):
        self.pattern = pattern

    def holds(self, text, program):
        prefix = f"{program.path}: failure with "
        if program.stock:
            return prefix in text  # its logging may come before; its words are its own
        return text.startswith(prefix) and "\n" not in text.rstrip("\n") and re.search(self.pattern, text) is not None

    def __repr__(self):
        return f"says {self.pattern!r}"


class Text:
    """A text that both give to the letter, PROG being how the program was called."""

    def __init__(self, text):
        self.text = text

    def holds(self, text, program):
        return text == self.text.replace("PROG", program.path)

    def __repr__(self):
        return repr(self.text)


class Where:
    """Any value for which the function is true."""

    def __init__(self, words, function):
        self.words, self.function = words, function

    def holds(self, value, _program):
        return self.function(value)

    def __repr__(self):
        return self.words


def brief(value):
    if isinstance(value, (bytes, bytearray)) and len(value) > 40:
        return f"{len(value)} bytes {bytes(value[:16])!r}..."
    return repr(value)


def difference(wanted, got):
    if isinstance(wanted, (bytes, bytearray)) and isinstance(got, (bytes, bytearray)):
        at = next((i for i, (a, b) in enumerate(zip(wanted, got)) if a != b), min(len(wanted), len(got)))
        return f"{brief(got)}, not {brief(wanted)}; they differ from byte {at} on"
    return f"{brief(got)}, not {brief(wanted)}"


class Case:
    def __init__(self, name, function, wanted, stock=None, why=None):
        """`stock`: in what libvirt's differs (a dictionary; False: nothing is asked of it), and `why`."""
        assert (stock is None) == (why is None), name
        self.name, self.function, self.wanted, self.stock, self.why = name, function, wanted, stock, why

    def wanted_of(self, program):
        return {**self.wanted, **self.stock} if program.stock and self.stock else self.wanted

    def failures(self, program):
        try:
            outcome = self.function(program)
        except Exception as error:  # the other cases are still worth running
            return [f"{type(error).__name__}: {error}"]
        found = []
        for field, wanted in self.wanted_of(program).items():
            got = outcome.get(field)
            holds = wanted.holds(got, program) if hasattr(wanted, "holds") else got == wanted
            if not holds:
                found.append(f"{field}: {difference(wanted, got)}")
        if found and outcome.get("error"):
            found.append(f"it said: {outcome['error']}")
        return found


def run_cases(cases, programs):
    """Runs all cases over all programs; the number of failures."""
    failed = 0
    differing = []
    for program in programs:
        began, ran = time.monotonic(), 0
        for case in cases:
            if program.stock and case.stock is False:
                continue
            ran += 1
            found = case.failures(program)
            if found:
                failed += 1
                print(f"FAIL: {program.name}: {case.name}")
                for line in found:
                    print(f"    {line}")
        print(f"{program.name}: {ran} cases in {time.monotonic() - began:.1f} s")
    if any(program.stock for program in programs):
        differing = [case for case in cases if case.stock is not None]
        reasons = {}
        for case in differing:
            reasons.setdefault(case.why, []).append(case.name)
        for why, names in reasons.items():
            print(f"differs as expected: {why}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}")
    return failed


def programs_to_test(directory):
    """Ours as a copy under libvirt's name, and libvirt's if there is one."""
    if not os.access(HELPER, os.X_OK):
        skip(f"there is no helper at {HELPER}")
    copy = os.path.join(directory, "libvirt_iohelper")
    with open(HELPER, "rb") as file:
        put(copy, file.read())
    os.chmod(copy, 0o755)
    programs = [Program("ours", copy)]
    if STOCK:
        programs.append(Program("libvirt's", STOCK, stock=True))
    else:
        print("libvirt's half is skipped: no libvirt_iohelper is installed here")
    return programs


# ---- what a file system and a process show ------------------------------------------------------------------------------


def supports_direct(directory):
    path = os.path.join(directory, "probe")
    put(path, b"")
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
        return True
    except OSError:
        return False
    finally:
        os.unlink(path)


def cached_bytes(path):
    """How much of a file stands in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    size = os.path.getsize(path)
    fd = os.open(path, os.O_RDONLY)
    address = libc.mmap(None, size, 1, 1, fd, 0)
    os.close(fd)
    pages = ctypes.create_string_buffer((size + 4095) // 4096)
    failed = libc.mincore(address, size, pages)
    libc.munmap(address, size)
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return sum(byte & 1 for byte in pages.raw) * 4096


def status_of(pid, task=None):
    path = f"/proc/{pid}/status" if task is None else f"/proc/{pid}/task/{task}/status"
    with open(path, encoding="ascii") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def rings_of(pid):
    """How many io_uring instances it has open; None: that takes root, since it cannot be looked into."""
    try:
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except PermissionError:
        return None
    return sum("io_uring" in link for link in links)


def forbid_io_uring():
    """For this process and its children, as a container's filter does: io_uring_setup(2) answers EPERM."""
    class Program_(ctypes.Structure):
        _fields_ = [("count", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

    def instruction(code, true, false, value):
        return code.to_bytes(2, sys.byteorder) + bytes([true, false]) + value.to_bytes(4, sys.byteorder)

    io_uring_setup = 425  # on every machine
    allow, refuse = 0x7FFF0000, 0x00050000 | 1
    code = (instruction(0x20, 0, 0, 0) + instruction(0x15, 0, 1, io_uring_setup) + instruction(0x06, 0, 0, refuse) +
            instruction(0x06, 0, 0, allow))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    filter_ = Program_(4, code)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.addressof(filter_), 0, 0):
        raise OSError(ctypes.get_errno(), "no system call filter can be set here")


def wait_until(condition, what, limit_s=10):
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {limit_s} s for {what}")
        time.sleep(0.005)


def signal_name(number):
    return signal.Signals(number).name
