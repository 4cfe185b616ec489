# SPDX-License-Identifier: LGPL-2.1-or-later
"""A real guest under QEMU, driven over QMP, for tests that look at what QEMU itself reads and writes.

Its disk is the boot sector of examples/guest, which checks its memory for ever and counts on the serial port. Its memory
is private to QEMU, or memfds of ours.
"""
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


class Memory:
    """A memfd that a guest's memory backend opens by its name in /proc."""

    def __init__(self, size, name):
        self.size = size
        self.name = name
        self.fd = os.memfd_create(name)
        os.truncate(self.fd, size)

    def backend(self):
        return f"memory-backend-file,id={self.name},size={self.size},mem-path=/proc/self/fd/{self.fd},share=on"

    def close(self):
        os.close(self.fd)


class Guest:
    """One QEMU, stopped (-S). `memories`: Memory objects; else `mib` of private memory called pc.ram."""

    def __init__(self, directory, mib, memories=(), machine="q35", incoming=False, options=()):
        self.serial = os.path.join(directory, "serial.log")
        ours, theirs = socket.socketpair()
        fds = [theirs.fileno()] + [memory.fd for memory in memories]
        command = [QEMU, "-nodefaults", "-no-user-config", "-S", "-display", "none", "-accel", "tcg", "-m", f"{mib}M",
                   "-machine", machine + self._placed(memories),
                   "-drive", f"if=virtio,format=raw,readonly=on,file={BUILD}/guest/boot.img",
                   "-chardev", f"file,id=serial,append=on,path={self.serial}", "-serial", "chardev:serial",
                   "-chardev", f"socket,id=monitor,fd={theirs.fileno()}", "-mon", "chardev=monitor,mode=control"]
        for backend in self._backends(mib, memories):
            command += ["-object", backend]
        if len(memories) > 1:
            for node, memory in enumerate(memories):
                command += ["-numa", f"node,nodeid={node},memdev={memory.name}"]
        command += list(options) + (["-incoming", "defer"] if incoming else [])
        self.process = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL)
        theirs.close()
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

    def _read(self):
        line = self.lines.readline()
        if not line:
            raise QmpError(f"QEMU has gone, status {self.process.wait()}")
        return json.loads(line)

    def command(self, name, fd=None, **arguments):
        message = json.dumps({"execute": name, "arguments": {key.replace("_", "-"): value
                                                             for key, value in arguments.items()}}).encode()
        if fd is None:
            self.socket.sendall(message)
        else:
            socket.send_fds(self.socket, [message], [fd])
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

    def dump_memory(self, path, size):
        """Physical memory below the PCI hole, as QEMU has it."""
        self.command("pmemsave", val=0, size=size, filename=path)
