# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the rows of `make bench` share: where they write, how they run programs, and what machine this is.

Whatever is started or made here is gone when the run ends, also by Ctrl-C: programs run in process groups of their own,
files stand in one temporary directory, memory in memfds.
"""
import contextlib
import datetime
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.abspath(os.path.join(HERE, "../.."))
BUILD = os.path.abspath(os.environ.get("BUILD") or os.path.join(ROOT, "build"))
HELPER = os.path.abspath(os.environ.get("DIOHELPER") or os.path.join(BUILD, "diohelper"))
TOOL = os.path.abspath(os.environ.get("DIOHELPER_TOOL") or os.path.join(BUILD, "diohelper-tool"))
MEMORY = os.path.join(BUILD, "bench/memory")
MIB, GIB = 1 << 20, 1 << 30
OURS = "diohelper"
PAGE, HUGE_PAGE = 4096, 2 << 20
HUGE_POOL = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
RUN_SECONDS_MAX = 600
END_SECONDS = 15
INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Unavailable(Exception):
    """A row, or a peer in it, cannot be measured here; the sentence says why."""


class Failed(Exception):
    """A measurement went wrong."""


# ---- programs ----------------------------------------------------------------------------------------------------------


def end_group(process):
    """The process and all that it has started: asked first, so that they can clean up."""
    for number, seconds in ((signal.SIGTERM, END_SECONDS), (signal.SIGKILL, END_SECONDS)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return


@contextlib.contextmanager
def started(command, fds, errors, options):
    """The process, in a group of its own. No interruption comes between its start and the `try`, to leave it behind."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTIONS)
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
                                   pass_fds=fds, start_new_session=True,
                                   preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before), **options)
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            yield process
        except BaseException:
            end_group(process)
            raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run(command, fds=(), seconds_max=RUN_SECONDS_MAX, **options):
    """Its standard output. Raises Failed with what it said if it fails."""
    with tempfile.TemporaryFile() as errors:
        with started(command, fds, errors, options) as process:
            output, _ = process.communicate(timeout=seconds_max)
        if process.returncode:
            errors.seek(0)
            raise Failed(f"{' '.join(command)}: exit status {process.returncode}: "
                         f"{(output + errors.read()).decode(errors='replace').strip()[-800:]}")
    return output.decode()


def children_cpu_s():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def timed(command, fds=()):
    """Seconds, CPU seconds."""
    cpu, began = children_cpu_s(), time.monotonic()
    run(command, fds)
    return time.monotonic() - began, children_cpu_s() - cpu


def sample(mib, seconds, cpu_s=None, **more):
    found = {"mib_per_s": mib / seconds, "seconds": seconds, **more}
    if cpu_s is not None:
        found["cpu_s_per_gib"] = cpu_s * 1024 / mib
    return found


@contextlib.contextmanager
def scratch_directory(where):
    """Its removal is not interrupted: with large files in it that takes a while."""
    directory = tempfile.mkdtemp(prefix="diohelper-bench.", dir=where)
    try:
        yield directory
    finally:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTIONS)
        shutil.rmtree(directory)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- files and memory --------------------------------------------------------------------------------------------------


def remove(path):
    """Its blocks are given back before the next clock runs."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        directory = os.open(os.path.dirname(path), os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)


def uncache(path):
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def helper_environment():
    return dict(os.environ, DIOHELPER=HELPER)


def fill(fd, size):
    """With incompressible data."""
    run([MEMORY, "fill", str(fd), str(size), str(MIB), str(MIB), "hole"], [fd], env=helper_environment())


class Memory:
    """A memfd of some shape: `unit` bytes of data at each multiple of `stride`, between them holes or zero pages."""

    def __init__(self, size, unit=MIB, stride=MIB, between="hole", pages="4k"):
        self.size, self.unit, self.stride, self.between, self.pages = size, unit, stride, between, pages
        # A load brings back neither zero pages nor, for certain, huge ones.
        self.brittle, self.loaded = between == "zero" or pages == "thp", False
        flags = os.MFD_CLOEXEC | (os.MFD_HUGETLB | os.MFD_HUGE_2MB if pages == "hugetlb" else 0)
        self.fd = os.memfd_create("bench", flags)
        try:
            self.fill()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        os.close(self.fd)

    def fill(self):
        os.truncate(self.fd, 0)
        os.truncate(self.fd, self.size)
        self.call("fill", self.size, str(self.unit), str(self.stride), self.between)

    def call(self, verb, size, *words):
        huge = ["--hugepages"] if self.pages == "thp" else []
        return run([MEMORY, verb, str(self.fd), str(size), *words, *huge], [self.fd], env=helper_environment())

    def _sample(self, verb, size, words, counted):
        seen = json.loads(self.call(verb, size, *words))
        return sample((counted or size) / MIB, **seen)

    def save(self, path, size=None, options=(), counted=None):
        """`counted`: the bytes that the rates are about, if not all."""
        remove(path)
        if self.brittle and self.loaded:
            self.fill()
        return self._sample("save", size or self.size, [path, *options], counted)

    def load(self, path, size=None, options=(), counted=None):
        uncache(path)
        self.loaded = True
        return self._sample("load", size or self.size, [path, str(self.unit), str(self.stride), *options], counted)


def memory_available():
    with open("/proc/meminfo", encoding="ascii") as file:
        return int(re.search(r"MemAvailable: +(\d+)", file.read())[1]) << 10


def require_memory(size):
    if memory_available() < size + GIB:
        raise Unavailable(f"this takes {size / GIB:.0f} GiB of memory, and there are {memory_available() / GIB:.1f} GiB")


class Setting:
    """A file of /sys with another value for a while. Needs root."""

    def __init__(self, path, value):
        self.path, self.value = path, value
        with open(path, encoding="ascii") as file:
            text = file.read().strip()
        chosen = re.search(r"\[(\w+)\]", text)
        self.before = chosen[1] if chosen else text

    def write(self, value):
        with open(self.path, "w", encoding="ascii") as file:
            file.write(value)

    def __enter__(self):
        self.write(self.value)
        return self

    def __exit__(self, *_):
        self.write(self.before)


def huge_pages_reserved():
    with open(HUGE_POOL, encoding="ascii") as file:
        return int(file.read())


@contextlib.contextmanager
def huge_pages(size):
    """So many bytes of them more than there were. Needs root."""
    wanted = huge_pages_reserved() + size // HUGE_PAGE
    with Setting(HUGE_POOL, str(wanted)):
        if huge_pages_reserved() < wanted:
            raise Unavailable("the kernel has not so many free huge pages")
        yield


# ---- fio ---------------------------------------------------------------------------------------------------------------


class FioShape(NamedTuple):
    depth: int
    block: str
    huge: bool = False # its buffers are in huge pages


class Fio:
    """Its best of a sweep, found once for each direction.

    Inside a `with`, buffers in huge pages are in the sweep, too: there are disks that read into small pages slowly.
    """

    SWEEP_MIB = 1024
    SHAPES = [FioShape(depth, block) for depth in (4, 16) for block in ("1M", "4M")]
    HUGE_OPTIONS = ["--iomem=shmhuge", "--hugepage-size=2M"]
    HUGE_BYTES = (16 * 4 + 8) * MIB # the largest shape's buffers, and what fio adds to them

    def __init__(self, path, mib, sweep=None, sizing="truncate"):
        self.path, self.mib, self.sweep, self.sizing = path, mib, sweep or self.SHAPES, sizing
        self.shapes, self.pool, self.not_huge = {}, contextlib.ExitStack(), None

    def __enter__(self):
        try:
            self.pool.enter_context(huge_pages(self.HUGE_BYTES))
            self.sweep = [*self.sweep, *(shape._replace(huge=True) for shape in self.sweep)]
        except (Unavailable, OSError) as why:
            self.not_huge = str(why)
        return self

    def __exit__(self, *_):
        self.pool.close()

    def describe(self, experiment, mode, name="fio"):
        experiment.command(name, self.command("$DIR/fio", self.mib, mode, self.shape(mode), self.sizing))
        if self.not_huge:
            experiment.missing("fio, buffers in huge pages", self.not_huge)

    @classmethod
    def command(cls, path, mib, mode, shape, sizing="truncate"):
        return ["fio", "--name=peer", f"--filename={path}", f"--size={mib}M", f"--rw={mode}", f"--iodepth={shape.depth}",
                f"--bs={shape.block}", "--direct=1", "--ioengine=io_uring", f"--fallocate={sizing}", "--end_fsync=1",
                *(cls.HUGE_OPTIONS if shape.huge else []), "--output-format=json"]

    @classmethod
    def measure(cls, path, mib, mode, shape, sizing="truncate"):
        if "write" in mode:
            remove(path)
        said = run(cls.command(path, mib, mode, shape, sizing))
        job = json.loads(said[said.index("{"):])["jobs"][0]
        part = job["write" if "write" in mode else "read"]
        # fio's clock leaves fsync out of bandwidth; its job's time has it.
        seconds = max(job["job_runtime"], part["runtime"]) / 1000
        cpu_s = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1000
        return sample(part["io_bytes"] / MIB, seconds, cpu_s)

    def shape(self, mode):
        if mode not in self.shapes:
            mib = min(self.mib, self.SWEEP_MIB)
            rates = {shape: self.measure(self.path, mib, mode, shape, self.sizing)["mib_per_s"] for shape in self.sweep}
            self.shapes[mode] = max(rates, key=rates.get)
        return self.shapes[mode]

    def turn(self, mode):
        return self.measure(self.path, self.mib, mode, self.shape(mode), self.sizing)


# ---- results -----------------------------------------------------------------------------------------------------------


class Experiment:
    """Alternatives that are measured side by side. What `as_json` gives is what the page is made of."""

    def __init__(self, title, **about):
        self.title, self.about, self.peers, self.absent = title, about, {}, {}

    def add(self, name, found):
        self.peers.setdefault(name, {"samples": []})["samples"].append(found)

    def command(self, name, words):
        """As a person would type it; `words`: a list, or a sentence."""
        self.peers.setdefault(name, {"samples": []})["command"] = words if isinstance(words, str) else " ".join(words)

    def missing(self, name, why):
        self.absent[name] = why

    def as_json(self):
        return {"title": self.title, **self.about, "peers": self.peers, "missing": self.absent}


def in_turn(number, turns):
    """Another order each round: what was written last may still be in some cache below us."""
    at = number % len(turns)
    order = turns[at:] + turns[:at]
    return order[::-1] if number // len(turns) % 2 else order


class Bench:
    """One run: how often, how much, where."""

    def __init__(self, rounds, quick, directory):
        self.rounds, self.quick, self.directory = rounds, quick, directory

    def size(self, mib):
        """A trial moves a sixteenth, and says so in its results."""
        return max(64, mib // 16) if self.quick else mib

    def path(self, name):
        return os.path.join(self.directory, name)

    def repeat(self, *groups):
        """Groups of functions, each called once a round, a group after the other. Progress goes to standard error."""
        for number in range(self.rounds):
            for group in groups:
                for turn in in_turn(number, group):
                    turn()
            print(".", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)


# ---- the machine -------------------------------------------------------------------------------------------------------


def _first_line(*command):
    try:
        said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False).stdout.decode()
    except OSError:
        return None
    return said.strip().partition("\n")[0] or None


def _cpu():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        text = file.read()
    model = re.search(r"^(?:model name|Model)\s*: *(.*)$", text, re.M)
    virtual = " in a virtual machine" if re.search(r"^flags.*\bhypervisor\b", text, re.M) else ""
    return f"{model[1] if model else platform.machine()}, {os.cpu_count()} CPUs{virtual}"


def _memory_gib():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def _disk(directory):
    source = _first_line("findmnt", "-no", "SOURCE", "-T", directory) or "unknown"
    name = os.path.basename(os.path.realpath(source.partition("[")[0]))
    words = (_first_line("lsblk", "-dno", "MODEL", source) or "").strip()
    if not words:
        words = "virtio block device" if name.startswith("vd") else name
    size = _first_line("lsblk", "-dno", "SIZE", source)
    sector = _first_line("lsblk", "-dno", "LOG-SEC", source)
    return f"{words}, {(size or '?').strip()}, {(sector or '?').strip()}-byte sectors"


def file_system(directory):
    return _first_line("findmnt", "-no", "FSTYPE,OPTIONS", "-T", directory) or "unknown"


def machine(directory):
    with open("/sys/kernel/mm/transparent_hugepage/shmem_enabled", encoding="ascii") as file:
        huge = re.search(r"\[(\w+)\]", file.read())[1]
    return {"CPU": _cpu(), "Memory": f"{_memory_gib():.1f} GiB, huge pages of shared memory: {huge}",
            "Kernel": f"Linux {platform.release()} {platform.machine()}", "Disk": _disk(directory),
            "File system": " ".join(file_system(directory).split())}


def versions():
    commit = _first_line("git", "-C", ROOT, "describe", "--always", "--dirty", "--exclude=*")
    ours = _first_line(HELPER, "--version")
    found = {"diohelper": f"{ours}, commit {commit}" if commit and "fatal" not in commit else ours,
             "fio": _first_line("fio", "--version"), "dd": _first_line("dd", "--version"),
             "qemu-img": _first_line("qemu-img", "--version"),
             "QEMU": _first_line("qemu-system-x86_64", "--version"), "libvirt": _first_line("virsh", "--version"),
             "gnuplot": _first_line("gnuplot", "--version")}
    return {name: version for name, version in found.items() if version}


def today():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def has(program):
    return shutil.which(program) is not None
