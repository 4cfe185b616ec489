# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real guest under QEMU, driven over QMP, for tests that look at what QEMU itself reads and writes.

Its disk is the boot sector of examples/guest, which checks its memory for ever and counts on the serial port. Its
memory is private to QEMU, or memfds of ours.
"""
import base64
import json
import os
import re
import socket
import subprocess
import time

BUILD = os.environ.get("BUILD", "build")
QEMU = os.environ.get("QEMU", "qemu-system-x86_64")
PATIENCE = 120 * int(os.environ.get("TIMEOUT_FACTOR", "1"))


class QmpError(Exception):
    """QEMU answered a command with an error."""


def backend_id(block):
    """QEMU puts a device's place in front of it: 0000:00:05.0/id."""
    return block.rpartition("/")[2]


class Memory:
    """A memfd that a guest's memory backend opens by its name in /proc. `name`: what QEMU calls the RAM block."""

    def __init__(self, size, name):
        self.size = size
        self.name = name
        self.fd = os.memfd_create(name)
        os.truncate(self.fd, size)

    def backend(self):
        # The last one, which libvirt sets too: machine types up to 3.1 would call the RAM block by the backend's path,
        # but that of a private backend by its name: a QEMU with the one could not go on where one with the other was.
        return (f"memory-backend-file,id={backend_id(self.name)},size={self.size},mem-path=/proc/self/fd/{self.fd},share=on,"
                "x-use-canonical-path-for-ramblock-id=off")

    def read(self, offset, count):
        return os.pread(self.fd, count, offset)

    def close(self):
        os.close(self.fd)


class PrivateMemory:
    """A memory backend that is QEMU's alone."""

    fd = None

    def __init__(self, size, name):
        self.size = size
        self.name = name

    def backend(self):
        return f"memory-backend-ram,id={backend_id(self.name)},size={self.size}"

    def close(self):
        pass


def version():
    """QEMU's, as (major, minor); None if there is no QEMU."""
    try:
        said = subprocess.run([QEMU, "--version"], stdout=subprocess.PIPE, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"version (\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else None


class Guest:
    """One QEMU, stopped (-S). `memories`: Memory and PrivateMemory objects; else `mib` of private memory called pc.ram.

    poke: memory can be written from outside, by poke(). devices: Memory and PrivateMemory objects that are not the
    machine's memory, but of a device among the options.
    """

    def __init__(self, directory, mib, memories=(), machine="q35", incoming=False, options=(), poke=False, devices=()):
        self.serial = os.path.join(directory, "serial.log")
        self.complaints = os.path.join(directory, "qemu.log")
        self.shared = {memory.name: memory for memory in [*memories, *devices] if memory.fd is not None}
        ours, theirs = socket.socketpair()
        fds = [theirs.fileno()] + [memory.fd for memory in self.shared.values()]
        command = [QEMU, "-nodefaults", "-no-user-config", "-S", "-display", "none", "-accel", "tcg", "-m", f"{mib}M",
                   "-machine", machine + self._placed(memories),
                   "-drive", f"if=virtio,format=raw,readonly=on,file={BUILD}/guest/boot.img",
                   "-chardev", f"file,id=serial,append=on,path={self.serial}", "-serial", "chardev:serial",
                   "-chardev", f"socket,id=monitor,fd={theirs.fileno()}", "-mon", "chardev=monitor,mode=control"]
        for backend in self._backends(mib, memories) + [memory.backend() for memory in devices]:
            command += ["-object", backend]
        if len(memories) > 1:
            for node, memory in enumerate(memories):
                command += ["-numa", f"node,nodeid={node},memdev={memory.name}"]
        command += list(options) + (["-incoming", "defer"] if incoming else [])
        self.poker, theirs_poked = socket.socketpair()
        if poke:
            command += ["-chardev", f"socket,id=poke,fd={theirs_poked.fileno()}", "-qtest", "chardev:poke",
                        "-qtest-log", "none"]
            fds.append(theirs_poked.fileno())
        with open(self.complaints, "ab") as complaints:
            self.process = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL, stderr=complaints)
        theirs.close()
        theirs_poked.close()
        self.socket = ours
        self.lines = ours.makefile("r")
        self._read()
        self.command("qmp_capabilities")

    @staticmethod
    def _placed(memories):
        return "" if len(memories) > 1 else f",memory-backend={memories[0].name if memories else 'pc.ram'}"

    @staticmethod
    def _backends(mib, memories):
        return [memory.backend() for memory in memories] or [f"memory-backend-ram,id=pc.ram,size={mib}M"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.lines.close()
        self.socket.close()
        self.poker.close()

    def _read(self):
        try:
            line = self.lines.readline()
        except ConnectionResetError:
            line = ""
        if not line:
            raise QmpError(f"QEMU has gone, status {self.process.wait()}: {self.complaint()}")
        return json.loads(line)

    def complaint(self):
        with open(self.complaints, encoding="utf-8", errors="replace") as complaints:
            return complaints.read().strip()

    def command(self, name, /, fd=None, **arguments):
        message = json.dumps({"execute": name, "arguments": {key.replace("_", "-"): value
                                                             for key, value in arguments.items()}}).encode()
        try:
            if fd is None:
                self.socket.sendall(message)
            else:
                socket.send_fds(self.socket, [message], [fd])
        except BrokenPipeError:
            pass  # reading will say so
        while True:
            answer = self._read()
            if "error" in answer:
                raise QmpError(f"{name}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    # Migration.

    def capabilities(self, *names):
        self.command("migrate-set-capabilities", capabilities=[{"capability": name, "state": True} for name in names])

    def parameters(self, **values):
        self.command("migrate-set-parameters", **values)

    def migrate_to_fd(self, fd):
        self.command("getfd", fd=fd, fdname="out")
        self.command("migrate", uri="fd:out")

    def migrate_from_fd(self, fd):
        self.command("getfd", fd=fd, fdname="in")
        self.command("migrate-incoming", uri="fd:in")

    def wait_migrated(self):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            answer = self.command("query-migrate")
            status = answer.get("status")
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                raise QmpError(f"migration {status}: {answer.get('error-desc', 'no reason given')}")
            time.sleep(0.02)
        raise QmpError("migration did not end")

    # The guest itself.

    def passes(self):
        """The last pass that the guest has counted; an AssertionError if it finds its memory damaged."""
        with open(self.serial, encoding="ascii", errors="replace") as log:
            text = log.read()
        assert "DAMAGED" not in text and "DISAGREE" not in text, text[-400:]
        found = re.findall(r"^guest: pass (\d+) memory ok$", text, re.M)
        return int(found[-1]) if found else 0

    def wait_pass(self, count):
        deadline = time.monotonic() + PATIENCE
        while self.passes() < count:
            assert time.monotonic() < deadline, f"the guest has not counted to {count} in {PATIENCE} s"
            assert self.process.poll() is None, "QEMU has gone"
            time.sleep(0.05)

    def run_to_pass(self, count):
        self.command("cont")
        self.wait_pass(count)

    def check_log(self):
        """One start, and each pass once and in order: the guest has always gone on where it was."""
        self.passes()
        with open(self.serial, encoding="ascii", errors="replace") as log:
            lines = log.read().split("\n")[:-1]  # behind the last newline: a line cut short
        assert lines and re.fullmatch(r"guest: started with \d+ MiB", lines[0]), lines[:3]
        for count, line in enumerate(lines[1:], 1):
            assert line == f"guest: pass {count} memory ok", f"line {count + 1} is {line!r}"

    # Its memory, from outside.

    def qtest(self, line):
        """What a command of QEMU's qtest answers."""
        self.poker.sendall(f"{line}\n".encode())
        answer = ""
        while not answer.endswith("\n"):
            answer += self.poker.recv(65536).decode()
        assert answer.startswith("OK"), f"{line[:80]}: {answer}"
        return answer[2:].strip()

    def poke(self, address, data):
        """Writes physical memory, whatever stands there: a video memory, say."""
        self.qtest(f"b64write {address:#x} {len(data):#x} {base64.b64encode(data).decode()}")

    def peek(self, address, count):
        return base64.b64decode(self.qtest(f"b64read {address:#x} {count:#x}"))

    def blocks(self):
        """QEMU's RAM blocks: a function (offset, count) -> bytes, and how many there are, by name.

        Read where QEMU has them mapped; a shared memory from its descriptor, so that its holes stay holes."""
        said = self.command("human-monitor-command", command_line="info ramblock")
        found = {}
        for line in said.splitlines():
            words = re.fullmatch(r"\s*(\S.*?)\s+\d+ \w+((?:\s+0x[0-9a-f]+){4})\s+r[wo]\s*", line)
            if words:
                _, used, _, where = (int(word, 16) for word in words[2].split())
                memory = self.shared.get(words[1])
                found[words[1]] = (memory.read if memory else self._reader(where), used)
        assert found, said
        return found

    def _reader(self, where):
        def read(offset, count):
            with open(f"/proc/{self.process.pid}/mem", "rb", buffering=0) as memory:
                memory.seek(where + offset)
                data = memory.read(count)
            assert len(data) == count, f"QEMU's memory at {where + offset:#x} can't be read"
            return data
        return read

    def dump_memory(self, path, size):
        """Physical memory below the PCI hole, as QEMU has it."""
        self.command("pmemsave", val=0, size=size, filename=path)
