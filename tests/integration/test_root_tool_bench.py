#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# timeout: 120
#
# `diohelper bench` on block devices: only with --destroy, and never on one that is in use. Needs a loop device.

import json
import os
import subprocess
import sys
import unittest

sys.dont_write_bytecode = True  # no __pycache__ in the source tree
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import dropin  # noqa: E402 (the path had to be set first)
from dropin import MIB  # noqa: E402

TOOL = os.path.abspath(os.environ.get("DIOHELPER_TOOL") or os.path.join(dropin.HERE, "../../build/diohelper-tool"))
DEVICE_BYTES = 64 * MIB
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
        self.addCleanup(subprocess.run, ["losetup", "--detach", self.device], check=False)

    def run_bench(self, *arguments):
        return subprocess.run([TOOL, "bench", *OPTIONS, *arguments, self.device], stdin=subprocess.DEVNULL, timeout=60,
                              capture_output=True, text=True, env=dict(os.environ, DIOHELPER=dropin.HELPER), check=False)

    def refused(self, pattern, *arguments):
        done = self.run_bench(*arguments)
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
        finally:
            os.close(holder)

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
    unittest.main(verbosity=2)
