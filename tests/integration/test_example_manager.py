#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# What dioh-hypervisor, the example manager, does where things go wrong, with a program in QEMU's place that refuses what it is
# told to: a QEMU that does not migrate keeps no descriptor; why it gave a migration up is said; so is that a guest does not
# run again after a failed save; a control socket's name costs no file; what is no image is refused, without waiting for it.
# (With a real QEMU: test-qemu-roundtrip.sh.)

import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
BUILD = os.environ.get("BUILD", os.path.join(ROOT, "build"))
HYPERVISOR = os.path.join(BUILD, "dioh-hypervisor")
os.environ.setdefault("DIOHELPER", os.path.join(BUILD, "diohelper"))
PATIENCE_S = 30


# ---- in QEMU's place ---------------------------------------------------------------------------------------------------


class Qemu:
    """
    Answers QMP on the descriptor that the command line names. FAKE_REFUSES: commands that it refuses once it was stopped.
    A migration fails at its first byte; if FAKE_REFUSES names "nothing", it completes.
    """

    ANSWERS = {"qom-get": "pc-q35-10.0-machine", "query-version": {"qemu": {"major": 10, "minor": 0, "micro": 2}},
               "query-migrate": {"status": "failed", "error-desc": "a device has lost its state"}}

    def __init__(self, control_fd):
        self.connection = socket.socket(fileno=control_fd)
        self.refuses = os.environ["FAKE_REFUSES"].split(",")
        self.stopped = False
        self.held = {}

    def send(self, message):
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def serve(self):
        self.send({"QMP": {}})
        decoder, rest = json.JSONDecoder(), ""
        while True:
            data, fds, _, _ = socket.recv_fds(self.connection, 4096, 4)
            if not data:
                return
            rest += data.decode()
            while rest:
                request, end = decoder.raw_decode(rest)
                rest = rest[end:]
                self.carry_out(request["execute"], request.get("arguments", {}), request["id"], fds)

    def carry_out(self, command, arguments, request_id, fds):
        if self.stopped and command in self.refuses:
            self.send({"error": {"class": "GenericError", "desc": f"no {command} today"}, "id": request_id})
            return
        if command == "stop":
            self.stopped = True
        elif command == "getfd":
            self.held[arguments["fdname"]] = fds.pop()
        elif command == "closefd":
            os.close(self.held.pop(arguments["fdname"]))
        elif command == "migrate":
            os.close(self.held.pop(arguments["uri"].partition(":")[2]))
        elif command == "migrate-set-capabilities":
            command = ", ".join(f"{one['capability']} {one['state']}" for one in arguments["capabilities"])
        with open(os.environ["FAKE_LOG"], "a", encoding="ascii") as log:
            print(command, "holds", len(self.held), file=log)
        answer = {"status": "completed"} if (command, self.refuses) == ("query-migrate", ["nothing"]) else \
            self.ANSWERS.get(command, {})
        self.send({"return": answer, "id": request_id})


# ---- the tests -----------------------------------------------------------------------------------------------------------


class ExampleManager(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(directory.name)  # the control socket's name is short, whatever TMPDIR is
        with open("disk", "w", encoding="ascii") as disk:
            disk.write("precious")

    def manage(self, *refused):
        """A manager whose guest runs; `refused`: what its QEMU refuses once it was stopped."""
        environment = dict(os.environ, QEMU=os.path.abspath(__file__), FAKE_REFUSES=",".join(refused),
                           FAKE_LOG=os.path.abspath("qemu.log"))
        manager = subprocess.Popen([HYPERVISOR, "run", "--disk=disk", "--control=control", "--memory=8M"], text=True,
                                   env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.addCleanup(manager.stdout.close)
        self.addCleanup(manager.wait)
        self.addCleanup(manager.kill)
        self.assertRegex(manager.stdout.readline(), "^running: pc-q35-10.0, QEMU 10.0.2, 8 MiB")
        return manager

    def hypervisor(self, *arguments):
        """Its exit status and what it says."""
        done = subprocess.run([HYPERVISOR, *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        return done.returncode, done.stderr

    def qemu_log(self):
        with open("qemu.log", encoding="ascii") as log:
            return log.read().splitlines()

    def test_refused_migration(self):
        manager = self.manage("migrate")
        for name in ("first", "second"):
            status, said = self.hypervisor("save", "--control=control", name)
            self.assertEqual(status, 1)
            self.assertIn("QEMU refuses migrate: no migrate today", said)
            self.assertNotIn("stands still", said)
            self.assertFalse(os.path.exists(name), "the image of a failed save is still there")
            self.assertEqual(self.qemu_log()[-1], "cont holds 0")
        self.assertEqual(self.hypervisor("quit", "--control=control"), (0, ""))
        self.assertEqual(manager.wait(PATIENCE_S), 0)

    def assert_shared_memory_counts(self):
        """Whenever the guest goes on QEMU's next migration has its memory in it."""
        state = "False"
        for line in self.qemu_log():
            state = line.split()[1] if line.startswith("x-ignore-shared") else state
            if line.startswith("cont"):
                self.assertEqual(state, "False", self.qemu_log())
        self.assertTrue(any(line.startswith("x-ignore-shared True") for line in self.qemu_log()))

    def test_kept_running(self):
        self.manage("nothing")
        for name in ("first", "first", "second"):
            self.assertEqual(self.hypervisor("save", "--control=control", "--layout=container", "--keep-running", name)[0], 0)
        self.assertEqual(self.qemu_log()[-1], "cont holds 0")
        self.assert_shared_memory_counts()

    def test_image_in_use(self):
        """Whoever has begun to write to an image may be waiting for its disk: nobody else does then."""
        self.manage("nothing")
        with open("image", "wb") as image:
            image.write(b"older")
            fcntl.flock(image, fcntl.LOCK_EX)
            status, said = self.hypervisor("save", "--control=control", "--layout=container", "image")
            self.assertEqual(status, 1)
            self.assertIn("image: it is being written to, perhaps by the helper of a save that was given up", said)
            self.assertEqual(image.seek(0, os.SEEK_END), 5)
        self.assertNotIn("stop holds 0", self.qemu_log())

    def test_failed_migration(self):
        self.manage()
        for layout in "mapped-ram", "container":
            status, said = self.hypervisor("save", "--control=control", f"--layout={layout}", "image")
            self.assertEqual(status, 1)
            self.assertIn("QEMU could not move the state of its devices: a device has lost its state", said)
            self.assertFalse(os.path.exists("image"), "the image of a failed save is still there")
        self.assert_shared_memory_counts()

    def test_guest_that_does_not_run_again(self):
        self.manage("migrate", "cont")
        status, said = self.hypervisor("save", "--control=control", "--layout=container", "image")
        self.assertEqual(status, 1)
        self.assertIn("the guest stands still (QEMU refuses cont: no cont today); "
                      "the save has failed: QEMU refuses migrate", said)

    def test_control_name_is_a_file(self):
        status, said = self.hypervisor("run", "--disk=disk", "--control=disk")
        self.assertEqual(status, 1)
        self.assertIn("the control socket cannot be made", said)
        with open("disk", encoding="ascii") as disk:
            self.assertEqual(disk.read(), "precious")

    def test_stale_control_socket(self):
        stale = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stale.bind("control")
        stale.close()
        self.manage()
        self.assertEqual(self.hypervisor("quit", "--control=control"), (0, ""))

    def test_image_is_a_fifo(self):
        os.mkfifo("fifo")
        for options, complaint in ([], "it is a pipe"), (["--stock"], "no mapped-ram image"):
            status, said = self.hypervisor("restore", "--disk=disk", "--control=control", *options, "fifo")
            self.assertEqual(status, 1)
            self.assertIn(complaint, said)


if sys.version_info < (3, 9):
    print("skip: Python 3.9 receives descriptors, this is an older one")
    sys.exit(77)
if "FAKE_REFUSES" in os.environ:
    Qemu(next(int(word.split("fd=")[1]) for word in sys.argv if word.startswith("socket,"))).serve()
else:
    unittest.main(verbosity=2)
