#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# timeout: 300
# alone: it holds --quick to what it promises, and it measures
#
# `diohelper bench`: what it reports, that it leaves nothing behind, and what it refuses. No rate is judged; the only
# time that is, is what --quick promises, with room for a slow machine.

import csv
import fcntl
import io
import json
import os
import re
import resource
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
import unittest

sys.dont_write_bytecode = True  # no __pycache__ in the source tree
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "other_language"), HERE]

import dropin  # noqa: E402 (the path had to be set first)
import manager  # noqa: E402
from dropin import KIB, MIB  # noqa: E402

TOOL = os.path.abspath(os.environ.get("DIOHELPER_TOOL") or os.path.join(dropin.HERE, "../../build/diohelper-tool"))
ENVIRONMENT = dict(os.environ, DIOHELPER=dropin.HELPER)
QUICK_S = 10 * 3  # what it promises, and a factor for machines that do something else as well
LIMIT_S = 60
SMALL = ["--size=16M", "--repeat=1", "--block=1M", "--depth=4"]
FIGURES = ["mib_per_s", "mib_per_s_min", "mib_per_s_max", "seconds", "cpu_s_per_gib"]


class Bench(unittest.TestCase):
    def setUp(self):
        self.temporary = dropin.temporary_directory()
        self.addCleanup(self.temporary.cleanup)
        self.directory = os.path.join(self.temporary.name, "d")
        os.mkdir(self.directory)

    def path(self, name):
        return os.path.join(self.directory, name)

    def run_bench(self, *arguments, status=0, environment=None, preexec=None):
        done = subprocess.run([TOOL, "bench", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=LIMIT_S, env=environment or ENVIRONMENT, preexec_fn=preexec, check=False)
        self.assertEqual(done.returncode, status, done.stdout + done.stderr)
        if status == 0:
            self.assertEqual(done.stderr, "")
        return done

    def document(self, *arguments, **how):
        return json.loads(self.run_bench("--json", *arguments, **how).stdout)

    def refused(self, pattern, *arguments, status=1, **how):
        done = self.run_bench(*arguments, status=status, **how)
        self.assertRegex(done.stderr, r"^diohelper-tool( bench)?: .*(" + pattern + ")")
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertEqual(done.stdout, "")

    def is_left_clean(self, *names):
        self.assertEqual(sorted(os.listdir(self.directory)), sorted(names))

    # ---- what is reported ----

    def check_run(self, run, direct):
        self.assertIn(run["operation"], ("save", "load"))
        memory = run["payload"] == "memory"
        for figure in FIGURES:
            self.assertGreater(run[figure], 0, figure)
        self.assertLessEqual(run["mib_per_s_min"], run["mib_per_s"])
        self.assertLessEqual(run["mib_per_s"], run["mib_per_s_max"])
        self.assertEqual(len(run["mib_per_s_all"]), run["repeats"])
        if memory:
            self.assertIn(run["engine"], ("io_uring", "libaio", "sync"))
            self.assertGreater(run["latency_p50_us"], 0)
            self.assertLessEqual(run["latency_p50_us"], run["latency_p99_us"])
            if run["engine"] != "libaio" or direct:
                self.assertTrue(0 <= run["wait_share"] <= 1.01, run["wait_share"])
            else:
                self.assertIsNone(run["wait_share"])
        for key in ("engine", "block_bytes", "in_flight", "workers", "latency_p50_us", "io_bytes", "io_count"):
            self.assertEqual(run[key] is not None, memory, key)
        self.assertEqual(run["sync_s"] is not None, run["operation"] == "save")
        self.assertEqual(run["zero_bytes"] is not None, memory and run["operation"] == "save")
        if run["operation"] == "load":
            self.assertIsNone(run["page_cache_bytes"])

    def check_document(self, document):
        self.assertEqual(document["result"], "ok")
        self.assertEqual(document["path"], self.directory)
        self.assertIn(document["direct"], (True, False))
        self.assertRegex(document["advice"], r"MiB/s saved \(.*\) and .* MiB/s loaded \(.*\), .*\.$")
        for run in document["runs"]:
            self.check_run(run, document["direct"])
        for operation in ("save", "load"):
            best = document["best"][operation]
            self.assertIn(best, document["runs"])
            self.assertEqual((best["operation"], best["payload"]), (operation, "memory"))
            self.assertEqual(best["mib_per_s"], max(run["mib_per_s"] for run in document["runs"]
                                                    if (run["operation"], run["payload"]) == (operation, "memory")))

    def test_quick(self):
        begun = time.monotonic()
        document = self.document("--quick", self.directory)
        self.assertLess(time.monotonic() - begun, QUICK_S)
        self.check_document(document)
        self.assertTrue(document["quick"])
        self.assertEqual(document["kind"], "file")
        self.assertTrue(all(run["repeats"] == 1 for run in document["runs"]))
        for run in document["runs"]:
            self.assertEqual((run["block_bytes"], run["in_flight"], run["workers"]), self.defaults(run["operation"])[1:])
        self.assertEqual([run["engine"] for run in document["runs"][:2]], [self.defaults("save")[0]] * 2)
        self.is_left_clean()

    def test_quick_stays_quick(self):
        """Whatever it is asked for beside: it leaves repeats out, and makes no memory that it will not move."""
        for arguments in (["--repeat=99"], ["--size=1G", "--repeat=20", "--streams"]):
            begun = time.monotonic()
            document = self.document("--quick", *arguments, self.directory)
            self.assertLess(time.monotonic() - begun, QUICK_S)
            self.check_document(document)
            asked = int(next(a for a in arguments if "repeat" in a).split("=")[1])
            self.assertEqual(document["stopped_early"], any(run["repeats"] < asked for run in document["runs"]))
            self.is_left_clean()

    def test_quick_makes_little_memory(self):
        bench, _ = self.start_held("serve", "--quick", "--size=512M", self.directory)
        links = [f"/proc/{bench.pid}/fd/{name}" for name in os.listdir(f"/proc/{bench.pid}/fd")]
        made = [os.stat(link).st_blocks * 512 for link in links if os.readlink(link).startswith("/memfd:diohelper-bench")]
        self.assertEqual(len(made), 1)
        self.assertLessEqual(made[0], 32 * MIB)  # what the trial takes, which is held here

    def defaults(self, operation):
        """What the helper does when it is asked for nothing, by its own word: engine, block size, depth, workers."""
        with open(self.path("asked"), "w+b") as file, manager.Session(dropin.HELPER) as session:
            session.hello(offered=0xFF)
            image = session.attach_image(manager.SAVE if operation == "save" else manager.LOAD, buffered=file.fileno())
        os.unlink(self.path("asked"))
        return ("any", "io_uring", "libaio", "sync")[image.engine], image.block_bytes, image.in_flight, image.workers

    def test_defaults(self):
        """They are among what is measured without --quick, and what was not chosen by name is theirs."""
        document = self.document("--size=8M", "--repeat=1", self.directory)
        measured = [(run["operation"], (run["engine"], run["block_bytes"], run["in_flight"], run["workers"]))
                    for run in document["runs"]]
        for operation in ("save", "load"):
            self.assertEqual(measured.count((operation, self.defaults(operation))), 1, operation)
        for run in self.document("--quick", "--size=8M", "--depth=7", "--engine=sync", self.directory)["runs"]:
            _, block_bytes, _, workers = self.defaults(run["operation"])
            self.assertEqual((run["engine"], run["block_bytes"], run["in_flight"], run["workers"]),
                             ("sync", block_bytes, 7, workers))

    def test_every_combination(self):
        document = self.document("--size=8M", "--repeat=2", "--engine=sync", "--block=64K,256K", "--depth=1,8",
                                 "--workers=1,2", "--streams", self.directory)
        self.check_document(document)
        memory = [run for run in document["runs"] if run["payload"] == "memory"]
        streams = [run for run in document["runs"] if run["payload"] == "stream"]
        setups = {(run["operation"], run["block_bytes"], run["in_flight"], run["workers"]) for run in memory}
        self.assertEqual(setups, {(operation, block * KIB, depth, workers) for operation in ("save", "load")
                                  for block in (64, 256) for depth in (1, 8) for workers in (1, 2)})
        self.assertEqual(len(memory), len(setups))
        descriptors = ["direct", "buffered"] if dropin.supports_direct(self.directory) else ["buffered"]
        self.assertEqual([(run["descriptor"], run["operation"]) for run in streams],
                         [(descriptor, operation) for descriptor in descriptors for operation in ("save", "load")])
        self.assertTrue(all(run["repeats"] == 2 for run in document["runs"]))
        self.assertEqual((document["size_bytes"], document["stopped_early"]), (8 * MIB, False))
        self.is_left_clean()

    def test_zero_pages_and_holes(self):
        for layout in (["--layout=container"], ["--layout=raw"], ["--no-checksum"]):
            document = self.document("--size=25M", "--repeat=2", "--block=1M", "--depth=4", "--zero=30", "--holes=20",
                                     *layout, self.directory)
            self.check_document(document)
            self.assertEqual(document["checksums"], layout == ["--layout=container"])
            for run in document["runs"]:
                # Half of a hundred units; gaps between runs may be written or read along.
                self.assertTrue(12.5 * MIB <= run["io_bytes"] <= 25 * MIB, run["io_bytes"])
                # Zero pages were looked at, holes not; what of them huge pages fill counts as zero.
                if run["operation"] == "save":
                    self.assertTrue(7.5 * MIB <= run["zero_bytes"] <= 12.5 * MIB, run["zero_bytes"])
        document = self.document(*SMALL, "--engine=sync", "--zero=100", self.directory)
        self.assertEqual([run["io_bytes"] for run in document["runs"]], [0, 0])
        self.assertEqual([run["zero_bytes"] for run in document["runs"]], [16 * MIB, None])
        document = self.document(*SMALL, "--engine=sync", "--holes=100", self.directory)
        self.assertEqual([run["zero_bytes"] for run in document["runs"]], [0, None])
        self.is_left_clean()

    def test_buffered(self):
        document = self.document(*SMALL, "--buffered", self.directory)
        self.check_document(document)
        self.assertFalse(document["direct"])
        self.assertIn("without direct I/O, as asked for", document["advice"])
        # It would block, and what it waits for would count as work.
        self.assertNotIn("libaio", {run["engine"] for run in document["runs"]})
        self.assertIn("libaio", {missing["engine"] for missing in document["engines_missing"]})
        if not any("not to be had" in missing["text"] for missing in document["engines_missing"]
                   if missing["engine"] == "libaio"):
            self.check_document(document := self.document(*SMALL, "--buffered", "--engine=libaio", self.directory))
            self.assertEqual({run["engine"] for run in document["runs"]}, {"libaio"})
            for wrong in ("the disk is the limit", "what is done to the memory"):
                self.assertNotIn(wrong, document["advice"])
        self.is_left_clean()

    def test_table(self):
        lines = self.run_bench(*SMALL, "--engine=sync", "--streams", self.directory).stdout.splitlines()
        self.assertEqual(lines[0], self.directory)
        self.assertRegex(lines[1], r"^16\.0 MiB of memory, 0 % zero pages, 0 % holes; container, checksums; .*; 1 round$")
        self.assertEqual(sum(line.startswith("save  memory ") for line in lines), 1)
        self.assertEqual(sum(line.startswith("load  memory ") for line in lines), 1)
        self.assertEqual(sum(line.startswith("load  stream, buffered  drop-in") for line in lines), 1)
        self.assertRegex(lines[-1], r"MiB/s saved .*\.$")

    def test_csv(self):
        rows = list(csv.DictReader(io.StringIO(self.run_bench(*SMALL, "--engine=sync", "--streams", "--csv",
                                                              self.directory).stdout)))
        self.assertEqual([row["operation"] for row in rows[:2]], ["save", "load"])
        for row in rows:
            self.assertNotIn(None, row)
            self.assertNotIn(None, row.values())
            self.assertGreater(float(row["mib_per_s"]), 0)
        self.assertEqual((rows[0]["engine"], rows[0]["block_bytes"]), ("sync", str(MIB)))
        self.assertEqual((rows[-1]["payload"], rows[-1]["descriptor"], rows[-1]["engine"]), ("stream", "buffered", ""))

    def test_missing_engine(self):
        try:
            document = self.document(*SMALL, self.directory, preexec=dropin.forbid_io_uring)
        except subprocess.SubprocessError:
            self.skipTest("no system call filter can be set here")
        self.assertEqual([missing["engine"] for missing in document["engines_missing"]][:1], ["io_uring"])
        self.assertNotIn("io_uring", {run["engine"] for run in document["runs"]})
        self.assertIn("sync", {run["engine"] for run in document["runs"]})
        self.refused("engine io_uring is not to be had here", *SMALL, "--engine=io_uring", self.directory,
                     preexec=dropin.forbid_io_uring)
        self.is_left_clean()

    def test_plot(self):
        without = dict(ENVIRONMENT, PATH=self.directory)
        self.refused("--plot needs gnuplot.* install it", *SMALL, "--plot=" + self.path("p.svg"), self.directory,
                     environment=without)
        self.is_left_clean()
        if not shutil.which("gnuplot"):
            self.skipTest("there is no gnuplot here: that one is missing was told")
        for name, magic in (("it's.svg", b"<?xml"), ("p.png", b"\x89PNG"), ("a\nprint 1\n.svg", b"<?xml")):
            self.run_bench(*SMALL, "--engine=sync", "--plot=" + self.path(name), self.directory)
            with open(self.path(name), "rb") as file:
                self.assertTrue(file.read().startswith(magic), name)
            self.is_left_clean(name)
            os.unlink(self.path(name))
        # What gnuplot takes for a command when it opens a file is a name like any other.
        subprocess.run([TOOL, "bench", *SMALL, "--engine=sync", "--plot=|cat >x.svg", self.directory], env=ENVIRONMENT,
                       cwd=self.directory, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=LIMIT_S, check=True)
        self.is_left_clean("|cat >x.svg")

    def drawn(self, *arguments, directory=None):
        self.run_bench(*arguments, "--engine=sync", "--plot=" + os.path.join(self.temporary.name, "p.svg"),
                       directory or self.directory)
        with open(os.path.join(self.temporary.name, "p.svg"), encoding="utf-8") as file:
            return file.read()

    @unittest.skipUnless(shutil.which("gnuplot"), "there is no gnuplot here")
    def test_plot_labels(self):
        label = {operation: "{}K {}/{}".format(block // KIB, depth, workers)
                 for operation in ("save", "load") for _, block, depth, workers in (self.defaults(operation),)}
        both = "sync " + label["save"] + (", load " + label["load"] if label["save"] != label["load"] else "")
        self.assertIn(f">{both}<", self.drawn("--quick", "--size=8M"))
        picture = self.drawn(*SMALL, "--workers=1", "--streams")
        self.assertIn(">sync 1024K 4/1<", picture)
        self.assertIn(">stream, buffered<", picture)

    @unittest.skipUnless(shutil.which("gnuplot"), "there is no gnuplot here")
    def test_plot_of_a_name_with_commands(self):
        """PATH is the title: a newline and a quote in it begin no command of gnuplot's."""
        directory = self.path("d'\nsystem(\"touch pwned\")\n!touch pwned\n'")
        os.mkdir(directory)
        here = os.getcwd()
        os.chdir(self.directory)
        try:
            picture = self.drawn(*SMALL, directory=directory)
        finally:
            os.chdir(here)
        self.assertIn(r"\x0asystem(", picture)
        self.is_left_clean(os.path.basename(directory))

    def with_gnuplot(self, script):
        """An environment whose gnuplot does what is said."""
        place = os.path.join(self.temporary.name, "bin")
        os.makedirs(place, exist_ok=True)
        with open(os.path.join(place, "gnuplot"), "w", encoding="utf-8") as file:
            file.write("#!/bin/sh\n" + script + "\n")
        os.chmod(os.path.join(place, "gnuplot"), 0o755)
        return dict(ENVIRONMENT, PATH=place + ":" + os.environ["PATH"])

    def test_plot_that_fails(self):
        """It is told, there is one document, and the picture that was there before is not lost."""
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (32 * MIB, 32 * MIB))

        plot = self.path("p.svg")
        for script, pattern, preexec in (("echo half; exit 1", "gnuplot failed", None), ("cat >&2", "gnuplot drew nothing", None),
                                         ("head -c 40000000 /dev/zero", "p.svg failed: File too large", limit)):
            dropin.put(plot, b"good")
            done = self.run_bench(*SMALL, "--engine=sync", "--json", "--plot=" + plot, self.directory, status=1,
                                  environment=self.with_gnuplot(script), preexec=preexec)
            self.assertRegex(done.stderr, "diohelper-tool: .*" + pattern)
            self.assertEqual(json.loads(done.stdout)["result"], "ok")
            with open(plot, "rb") as file:
                self.assertEqual(file.read(), b"good")
            self.is_left_clean("p.svg")

    def test_plot_is_refused_first(self):
        """What cannot become a picture shows before a helper is even started."""
        environment = self.with_gnuplot("exit 0")
        os.mkdir(self.path("d.svg"))
        for name, pattern in (("missing/p.svg", "--plot: .*cannot be created: No such file"),
                              ("d.svg", "--plot: .*is there, and is not a regular file")):
            document = json.loads(self.run_bench(*SMALL, "--json", "--helper=/nonexistent", "--plot=" + self.path(name),
                                                 self.directory, status=1, environment=environment).stdout)
            self.assertRegex(document["error"]["text"], pattern)
        # A run that fails leaves no file of its own beside the plot.
        self.refused("/nonexistent", *SMALL, "--helper=/nonexistent", "--plot=" + self.path("p.svg"), self.directory,
                     environment=environment)
        self.is_left_clean("d.svg")

    # ---- files ----

    def test_file_of_its_own(self):
        self.document(*SMALL, "--engine=sync", self.path("new"))
        self.is_left_clean()

    def test_existing_file(self):
        name = self.path("file")
        dropin.put(name, b"")
        self.document(*SMALL, "--engine=sync", name)
        dropin.put(name, b"precious")
        self.refused("has a content of 8 bytes: --destroy permits", *SMALL, name)
        with open(name, "rb") as file:
            self.assertEqual(file.read(), b"precious")
        # Also --destroy loses nothing before there is something to measure.
        self.refused("/nonexistent.*No such file", *SMALL, "--destroy", "--helper=/nonexistent", name)
        with open(name, "rb") as file:
            self.assertEqual(file.read(), b"precious")
        self.document(*SMALL, "--engine=sync", "--destroy", name)
        self.assertEqual(os.path.getsize(name), 0)
        self.is_left_clean("file")

    def interrupt(self, number, target, group, *arguments):
        """Sends the signal while it writes, and to the helper too, as a terminal does, or to the tool alone."""
        bench = subprocess.Popen([TOOL, "bench", "--size=256M", "--repeat=99", *arguments, target], env=ENVIRONMENT,
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                 start_new_session=True)
        try:
            dropin.wait_until(lambda: any(os.path.getsize(self.path(name)) >= MIB for name in os.listdir(self.directory)),
                              "an image that grows", LIMIT_S)
            (os.killpg if group else os.kill)(bench.pid, number)
            output, complaint = bench.communicate(timeout=LIMIT_S)
        finally:
            if bench.poll() is None:
                os.killpg(bench.pid, signal.SIGKILL)
                bench.communicate()
        self.assertEqual(bench.returncode, -number, complaint)
        self.assertEqual(output, "")
        self.assertRegex(complaint, r"diohelper-tool: interrupted\n$")

    def test_interrupted(self):
        for number, group in ((signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False),
                              (signal.SIGHUP, True)):
            self.interrupt(number, self.directory, group)
            self.is_left_clean()
        self.interrupt(signal.SIGINT, self.path("new"), True, "--json")
        self.is_left_clean()

    # ---- a helper that does not end ----

    def held_helper(self, mode, target):
        """A helper that has done its work, when the file or one in the directory has content, and ends once `go` is there. Until
        then there is a file `held`. `mode`: "serve", or "drop-in"."""
        name = os.path.join(self.temporary.name, "helper")
        self.held, self.go = os.path.join(self.temporary.name, "held"), os.path.join(self.temporary.name, "go")
        with open(name, "w", encoding="utf-8") as file:
            file.write(f"""#!/bin/bash
trap '' TERM
{shlex.quote(dropin.HELPER)} "$@"
status=$?
case $1 in serve) mode=serve ;; *) mode=drop-in ;; esac
if [ $mode = {mode} ] && [ -n "$(find -L {shlex.quote(target)} -type f -size +0)" ]; then
    echo $$ >{shlex.quote(self.held)}
    while [ ! -e {shlex.quote(self.go)} ] && [ -e {shlex.quote(self.held)} ]; do sleep 0.05; done
fi
exit $status
""")
        os.chmod(name, 0o755)
        return "--helper=" + name

    def start_held(self, mode, *arguments):
        """bench, where its first helper waits that has written something, the pid of which is answered as well."""
        helper = self.held_helper(mode, arguments[-1])
        bench = subprocess.Popen([TOOL, "bench", *SMALL, "--engine=sync", helper, *arguments], env=ENVIRONMENT,
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(self.release, bench)
        dropin.wait_until(lambda: os.path.exists(self.held) and os.path.getsize(self.held), "a helper that is held", LIMIT_S)
        with open(self.held, encoding="ascii") as file:
            return bench, int(file.read())

    def release(self, bench):
        if os.path.exists(self.held):
            os.unlink(self.held)
        dropin.put(self.go, b"")
        if bench.poll() is None:
            bench.kill()
        bench.communicate()

    def told(self, bench, number=None, times=1):
        """What it says on standard error, which the helper holds open as well; its end by the signal is awaited."""
        for _ in range(times):
            if number and bench.poll() is None:
                bench.send_signal(number)
                time.sleep(0.1)  # the second is to be one more, not the same one still pending
        status = bench.wait(timeout=LIMIT_S)
        os.unlink(self.held)
        output, complaint = bench.communicate(timeout=LIMIT_S)
        self.assertEqual((status, output), (-number if number else 1, ""), complaint)
        return complaint

    def test_helper_that_does_not_end(self):
        for mode, times in (("serve", 2), ("drop-in", 1), ("drop-in", 2)):
            bench, pid = self.start_held(mode, "--streams", self.directory)
            name = self.path(os.listdir(self.directory)[0])
            self.assertEqual(self.told(bench, signal.SIGINT, times),
                             f"diohelper-tool: a helper (pid {pid}) still writes to {name}: that is removed now, and its room "
                             "is free when the helper has ended\ndiohelper-tool: interrupted\n")
            self.is_left_clean()

    def test_helper_that_does_not_end_by_itself(self):
        name = self.path("file")
        dropin.put(name, b"")
        bench, pid = self.start_held("serve", name)
        self.assertEqual(self.told(bench),
                         f"diohelper-tool: a helper (pid {pid}) still writes to {name}: do not use or remove it until the "
                         f"helper has ended\ndiohelper-tool: {name}: the helper has not ended: the disk may hang\n")
        self.assertGreater(os.path.getsize(name), 0)  # emptying it would wait for the disk

    # ---- what cannot be left as it should be ----

    def test_file_that_cannot_be_removed(self):
        """A directory stands in its place then."""
        bench, _ = self.start_held("serve", "--json", self.directory)
        name = self.path(os.listdir(self.directory)[0])
        os.unlink(name)
        os.mkdir(name)
        dropin.put(self.go, b"")
        output, complaint = bench.communicate(timeout=LIMIT_S)
        self.assertEqual((bench.returncode, complaint), (1, f"diohelper-tool: {self.directory}: the file {name} could not be "
                                                            "removed: Is a directory\n"))
        self.assertEqual(json.loads(output)["result"], "ok")

    def test_file_that_cannot_be_emptied(self):
        """It may not shrink any more. What is measured next fails by that, and the end does."""
        with os.fdopen(os.memfd_create("image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "r+b") as file:
            path = f"/proc/{os.getpid()}/fd/{file.fileno()}"
            bench, _ = self.start_held("serve", path)
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            dropin.put(self.go, b"")
            output, complaint = bench.communicate(timeout=LIMIT_S)
        why = "emptying the file failed: Operation not permitted\n"
        self.assertEqual((bench.returncode, output), (1, ""))
        self.assertEqual(complaint, f"diohelper-tool: {path}: {why}diohelper-tool: {path}: what was written stays in it: {why}")

    # ---- what is refused ----

    def test_refused_targets(self):
        self.refused("cannot be created: No such file or directory", *SMALL, self.path("missing/file"))
        self.refused("neither a directory, nor a regular file, nor a block device", *SMALL, "/dev/null")
        os.mkfifo(self.path("fifo"))
        self.refused("neither a directory, nor a regular file, nor a block device", *SMALL, self.path("fifo"))
        os.unlink(self.path("fifo"))
        document = self.document(*SMALL, self.path("missing/file"), status=1)
        self.assertEqual((document["result"], document["error"]["code"]), ("failed", 2))
        self.refused("/nonexistent/helper.*No such file", *SMALL, "--helper=/nonexistent/helper", self.directory)
        self.is_left_clean()

    def test_image_in_use(self):
        """One that has QEMU's locks: a read lock on any of four bytes each."""
        name = self.path("disk")
        dropin.put(name, b"precious")
        for start in (100, 103, 200, 203):
            with open(name, "rb") as file:
                fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, start, 1, 0))
                self.refused("is locked by another program, as QEMU locks", *SMALL, "--destroy", name)
        with open(name, "rb") as file:
            self.assertEqual(file.read(), b"precious")
        self.is_left_clean("disk")

    def test_too_large(self):
        status = os.statvfs(self.directory)
        gib = status.f_blocks * status.f_frsize // (1 << 30) + 1
        self.refused(r"the image needs [0-9.]+ MiB, and the file system has room for [0-9.]+ MiB", f"--size={gib}G",
                     self.directory)
        gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (1 << 30) + 1
        self.refused(r"the memory to be saved takes [0-9.]+ MiB, and [0-9.]+ MiB are available", f"--size={gib}G",
                     "--zero=100", self.directory)
        self.is_left_clean()

    def test_usage(self):
        for pattern, *arguments in (
                ("PATH is missing",), ("b: one PATH only", "a", "b"), ("the name is empty", ""),
                ("--engine: posix is not an engine", "--engine=posix", "a"),
                ("--engine:  is not an engine", "--engine=sync,", "a"),
                ("--engine: sync is in the list twice", "--engine=sync,io_uring,sync", "a"),
                ("--block: 3M is not a power of two from 64K to 4M", "--block=1M,3M", "a"),
                ("--block: 32K is not", "--block=32K", "a"), ("--block: 8M is not", "--block=8M", "a"),
                ("--depth: 0 is not a number from 1 to 128", "--depth=0", "a"), ("--depth: 129 is not", "--depth=129", "a"),
                ("--depth: more than 16 values", "--depth=" + ",".join(map(str, range(1, 18))), "a"),
                ("--workers: 17 is not a number from 1 to 16", "--workers=17", "a"),
                ("--zero: 101 is not a percentage", "--zero=101", "a"), ("--holes: x is not", "--holes=x", "a"),
                ("more than 100 percent together", "--zero=60", "--holes=41", "a"),
                ("--layout: mapped-ram is not a layout", "--layout=mapped-ram", "a"),
                ("--repeat: 0 is not a number from 1 to 99", "--repeat=0", "a"),
                ("--size: 1 is not a multiple of 1M", "--size=1", "a"), ("--size: 0 is not", "--size=0", "a"),
                ("--size: 0M is not", "--quick", "--size=0M", "a"), ("--size: x is not", "--size=x", "a"),
                ("--size: more than 64T", "--size=65T", "a"),
                ("--json and --csv", "--json", "--csv", "a"), ("neither in .svg nor in .png", "--plot=p.gif", "a")):
            self.refused(re.escape(pattern), *arguments, status=2)


if __name__ == "__main__":
    unittest.main(verbosity=2)
