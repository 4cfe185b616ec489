#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# timeout: 120
#
# diohelper-tool on block devices: bench only with --destroy, and nothing ever on one that is in use. Needs a loop device.

import json
import os
import signal
import subprocess
import sys
import unittest

sys.dont_write_bytecode = True  # no __pycache__ in the source tree
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "other_language"), HERE]

import dropin  # noqa: E402 (the path had to be set first)
import qemu_stream  # noqa: E402
from dropin import MIB  # noqa: E402

TOOL = os.path.abspath(os.environ.get("DIOHELPER_TOOL") or os.path.join(dropin.HERE, "../../build/diohelper-tool"))
DEVICE_BYTES = 64 * MIB
RAM = qemu_stream.Block("pc.ram", 8 * MIB, {page: b"%4096d" % page for page in range(0, 2048, 3)}, 0)
WHOLE = qemu_stream.residual_stream((RAM,), state=bytes(range(256)) * 100)
OPTIONS = ["--size=16M", "--repeat=1", "--block=1M", "--depth=4"]


class Device(unittest.TestCase):
    def setUp(self):
        self.temporary = dropin.temporary_directory()
        self.addCleanup(self.temporary.cleanup)
        backing = os.path.join(self.temporary.name, "backing")
        dropin.put(backing, b"\xaa" * DEVICE_BYTES)
        made = subprocess.run(["losetup", "--find", "--show", backing], capture_output=True, text=True, check=False)
        if made.returncode != 0:
            self.skipTest("no loop device can be made here: " + made.stderr.strip())
        self.device = made.stdout.strip()
        self.addCleanup(os.close, os.open(self.device, os.O_RDWR))
        # It goes with the last process that has it open, even if that is killed.
        subprocess.run(["losetup", "--detach", self.device], check=True)

    def run_tool(self, *arguments, standard_input=subprocess.DEVNULL):
        return subprocess.run([TOOL, *arguments, self.device], stdin=standard_input, timeout=60, capture_output=True,
                              text=True, env=dict(os.environ, DIOHELPER=dropin.HELPER), check=False)

    def run_bench(self, *arguments):
        return self.run_tool("bench", *OPTIONS, *arguments)

    def refused(self, pattern, *arguments):
        self.untouched(self.run_bench(*arguments), pattern)

    def untouched(self, done, pattern):
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertRegex(done.stderr, pattern)
        with open(self.device, "rb") as device:
            self.assertEqual(device.read(), b"\xaa" * DEVICE_BYTES, "it was written to")

    def test_without_destroy(self):
        self.refused("is a block device: --destroy permits to overwrite it")

    def test_in_use(self):
        holder = os.open(self.device, os.O_RDONLY | os.O_EXCL)
        try:
            self.refused("cannot be opened exclusively: .*mounted", "--destroy")
            with self.stream() as stream:
                self.untouched(self.run_tool("ingest", standard_input=stream), "cannot be opened: .*mounted")
                self.untouched(self.run_tool("convert", "--force", "--to", "mapped-ram", stream.name),
                               "cannot be opened: .*mounted")
        finally:
            os.close(holder)

    def test_not_in_use(self):
        """So that what is refused above is refused for that reason."""
        with self.stream() as stream:
            for arguments, standard_input in ((["ingest"], stream),
                                              (["convert", "--force", "--to", "mapped-ram", stream.name], None)):
                done = self.run_tool(*arguments, standard_input=standard_input)
                self.assertEqual(done.returncode, 0, done.stderr)
                done = self.run_tool("verify")
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def stream(self):
        """A machine's migration stream, in a file."""
        name = os.path.join(self.temporary.name, "stream")
        dropin.put(name, WHOLE)
        return open(name, "rb")

    def test_too_small(self):
        self.refused(r"the device has room for 64\.0 MiB", "--destroy", "--size=64M")

    def test_measured(self):
        for layout in "container", "raw":
            done = self.run_bench("--destroy", "--streams", "--json", "--zero=20", "--holes=20", "--layout=" + layout)
            self.assertEqual(done.returncode, 0, done.stderr)
            document = json.loads(done.stdout)
            self.assertEqual((document["result"], document["kind"]), ("ok", "device"))
            self.assertEqual(len([run for run in document["runs"] if run["payload"] == "stream"]), 4)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the device is given back
    unittest.main(verbosity=2)
