#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# timeout: 120
#
# diohelper-tool on block devices: bench only with --destroy, and nothing ever on one that is in use. And on a file system that
# is nearly full: what cannot fit costs no older image. Needs a loop device, and a tmpfs.

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
import test_tool_convert as big_images  # noqa: E402
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


class Full(unittest.TestCase):
    def setUp(self):
        self.temporary = dropin.temporary_directory()
        self.addCleanup(self.temporary.cleanup)
        self.small = os.path.join(self.temporary.name, "small")
        os.mkdir(self.small)

    def mount(self, mib):
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}M", "tmpfs", self.small], capture_output=True,
                              text=True, check=False)
        if made.returncode != 0:
            self.skipTest("no tmpfs can be mounted here: " + made.stderr.strip())
        self.addCleanup(subprocess.run, ["umount", self.small], check=True)

    def convert(self, *arguments):
        return subprocess.run([TOOL, "convert", *arguments], stdin=subprocess.DEVNULL, timeout=60, capture_output=True,
                              text=True, env=dict(os.environ, DIOHELPER=dropin.HELPER), check=False)

    def test_overwritten(self):
        """IN's 3 MiB fit into what is free with what OUT gives back, or nothing is written."""
        self.mount(4)
        runs = {page: b"%4096d" % page for page in range(4096) if page // 128 % 6 == 0}
        block = qemu_stream.Block("pc.ram", 16 * MIB, runs, 0)
        stream, image, out = (os.path.join(*name) for name in ((self.temporary.name, "stream"), (self.temporary.name, "image"),
                                                               (self.small, "out")))
        dropin.put(stream, qemu_stream.residual_stream((block,), state=b"state"))
        self.assertEqual(self.convert(stream, image).returncode, 0)
        dropin.put(out, b"old" * 1000)
        dropin.put(os.path.join(self.small, "other"), b"x" * 2 * MIB)
        for target in "container", "mapped-ram":
            done = self.convert("--force", "--to", target, image, out)
            self.assertEqual(done.returncode, 1)
            self.assertRegex(done.stderr, r"out: IN has 3\.0 MiB of data, and there is room for [12]\.[0-9] MiB: nothing was")
            with open(out, "rb") as file:
                self.assertEqual(file.read(), b"old" * 1000)
        dropin.put(out, b"old" * (MIB // 2))
        os.unlink(os.path.join(self.small, "other"))
        done = self.convert("--force", "--to", "container", image, out)
        self.assertEqual(done.returncode, 0, done.stderr)

    def consume(self, image, out, words=None):
        """With `words` it fails, says them, and leaves all as it is."""
        def found():
            names = sorted(os.listdir(self.small))
            return names, [big_images.read(os.path.join(self.small, name)) for name in names if name != "in"], \
                os.stat(image).st_mtime_ns, os.stat(image).st_blocks
        before = found()
        done = self.convert("--consume", "--force", "--to", "container", image, out)
        self.assertEqual(done.returncode, 1 if words else 0, done.stderr)
        if words:
            self.assertRegex(done.stderr, words)
            self.assertEqual(found(), before)

    def test_consumed_elsewhere(self):
        """Freeing IN gives no room on another file system: what does not fit there is not begun."""
        self.mount(200)
        image, out = os.path.join(self.temporary.name, "in"), os.path.join(self.small, "out")
        os.close(big_images.make_big(image))
        for old in (None, b"old" * 1000):
            if old:
                dropin.put(out, old)
            self.consume(image, out, r"out: IN has 32[0-9]\.[0-9] MiB of data, and there is room for (200\.0|199\.[0-9]) MiB: "
                                     "nothing was written, and nothing freed")

    def test_consumed_in_its_room(self):
        """IN and OUT together do not fit; some 200 MiB beside IN do."""
        image, copy = os.path.join(self.temporary.name, "in"), os.path.join(self.small, "in")
        memory = big_images.make_big(image)
        self.mount(440)
        subprocess.run(["cp", "--sparse=always", image, copy], check=True)
        self.consume(copy, os.path.join(self.small, "out"),
                     r"13[0-9]\.[0-9] MiB come before anything of IN is freed, and there is room for 11")
        subprocess.run(["mount", "-o", "remount,size=540M", self.small], check=True)
        self.consume(copy, os.path.join(self.small, "out"))
        big_images.is_big(os.path.join(self.small, "out"), memory)
        os.close(memory)


def main():
    if os.environ.get("TOOL_DEVICES_NAMESPACE") != "1":
        # Mounts in a namespace of their own go with us, however we end.
        os.execvpe("unshare", ["unshare", "-m", sys.executable, os.path.abspath(__file__), *sys.argv[1:]],
                   {**os.environ, "TOOL_DEVICES_NAMESPACE": "1"})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the device is given back
    unittest.main(verbosity=2)


if __name__ == "__main__":
    main()
