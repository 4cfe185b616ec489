#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# What `make bench` makes of its figures: statistics, verdicts, the page and its pictures, from made-up results; and that
# what it starts ends with it. Nothing is measured here.

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True  # no __pycache__ in the source tree
BENCH = os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "../bench"))
sys.path.insert(0, BENCH)

import claims  # noqa: E402 (the path had to be set first)
import figures  # noqa: E402
import harness  # noqa: E402
import page  # noqa: E402
import plots  # noqa: E402
import run  # noqa: E402

WAIT_S = 30


def samples(*rates, **more):
    return {"samples": [{"mib_per_s": rate, "seconds": 1024 / rate, **more} for rate in rates]}


def experiment(title="t", missing=(), **peers):
    return {"title": title, "peers": {name.replace("_", " "): peer for name, peer in peers.items()}, "missing": dict(missing)}


def row(experiments, **changes):
    return {"date": "2030-01-02 03:04 UTC", "rounds": 3, "quick": False, "load_average": 0.1, "machine": {"CPU": "a CPU"},
            "versions": {"diohelper": "diohelper 9"}, "experiments": experiments, **changes}


def results(**rows):
    return {"format": run.FORMAT, "rows": rows}


def memory_row(ours, fio, **changes):
    found = experiment("A save", diohelper=samples(*ours), fio=samples(*fio))
    return row({"memory-save": found, "memory-load": found}, **changes)


class Statistics(unittest.TestCase):
    def test_spread(self):
        self.assertEqual(figures.spread([3, 1, 2]), (2, 1, 3))
        self.assertEqual(figures.spread([4, 1, 2, 3]), (2.5, 1, 4))
        with self.assertRaises(ValueError):
            figures.spread([])

    def test_pairs_are_of_the_same_round(self):
        ours, theirs = ([{"x": value} for value in values] for values in ((10, 1), (5, 2)))
        self.assertEqual(figures.pairs(ours, theirs, "x"), [2, 0.5])
        self.assertEqual(figures.pairs(ours, theirs[:1], "x"), [2])
        self.assertEqual(figures.pairs(ours, [{}, {"x": 2}], "x"), [0.5])

    def test_best_is_by_the_median(self):
        peers = {"steady": samples(5, 5, 5), "lucky": samples(1, 1, 100), "none": {"samples": []}}
        self.assertEqual(figures.best(peers, peers), "steady")

    def test_verdict(self):
        for measured, wanted in ((0.96, "floor"), (0.97, "aim"), (0.9, "floor"), (0.89, "below")):
            self.assertEqual(figures.verdict(measured, 0.9, 0.97, True), wanted)
        for measured, wanted in ((0.6, "aim"), (0.7, "floor"), (0.8, "floor"), (0.81, "below")):
            self.assertEqual(figures.verdict(measured, 0.8, 0.6, False), wanted)
        for measured, wanted in ((0.95, "aim"), (0.94, "missed"), (0.1, "missed")):
            self.assertEqual(figures.verdict(measured, None, 0.95, True), wanted)


class Page(unittest.TestCase):
    def test_ratio_floor_and_verdict(self):
        text = page.page(results(memory=memory_row([900, 1900, 500], [1000, 2000, 1000])))
        self.assertIn("| save from 4 KiB pages, of fio's rate "
                      "| 0.900 (0.500 to 0.950) | ≥ 0.9 | ≥ 0.97 | floor reached, aim not |", text)
        self.assertIn("| diohelper | 900 (500 to 1900) |", text)
        self.assertIn("| fio, of the disk (memory) | 0.90 (0.50 to 0.95) | 0.90 (0.50 to 0.95) |", text)
        self.assertNotIn("BELOW", text)

    def test_below_the_floor_is_visible(self):
        text = page.page(results(memory=memory_row([899], [1000])))
        self.assertIn("| save from 4 KiB pages, of fio's rate "
                      "| 0.899 (0.899 to 0.899) | ≥ 0.9 | ≥ 0.97 | **BELOW THE FLOOR** |", text)

    def test_an_aim_without_a_floor(self):
        save = experiment(diohelper=samples(94), fio=samples(100), QEMU=samples(1))
        text = page.page(results(qemu=row({"qemu-save": save})))
        self.assertIn("| save, of fio's rate | 0.940 (0.940 to 0.940) |  | ≥ 0.95 | aim not reached |", text)
        self.assertIn(f"| load, of fio's rate | {page.NOT_MEASURED} |  | 0.95 |  |", text)

    def test_what_was_not_measured_says_so(self):
        text = page.page(results(memory=memory_row([1], [1]), qemu=row({}, unavailable="there is no QEMU")))
        self.assertIn("Not measured here: qemu: there is no QEMU.", text)
        self.assertIn(f"| save, rate to QEMU's best way | {page.NOT_MEASURED} |", text)
        one = experiment(diohelper=samples(5), missing={"qemu-img": "it is not installed"})
        self.assertIn("qemu-img: not measured: it is not installed.", page.page(results(memory=row({"memory-save": one}))))

    def test_trials_and_busy_machines_are_marked(self):
        self.assertNotIn("**", page.warning(results(memory=memory_row([1], [1]))))
        self.assertIn("not to be published", page.warning(results(memory=memory_row([1], [1], quick=True))))
        self.assertIn("busy", page.warning(results(memory=memory_row([1], [1], load_average=3))))

    def test_the_best_of_qemu_leaves_out_the_legacy_stream(self):
        peers = {"diohelper": samples(3), claims.LEGACY: samples(9), "QEMU, slow": samples(1), "QEMU, fast": samples(2)}
        found = {"qemu-save": {"title": "t", "peers": peers, "missing": {}}}
        self.assertEqual(claims.ratio("qemu-save", "diohelper", claims.best_qemu)(found), (1.5, 1.5, 1.5))

    def test_cold_figures_stand_apart(self):
        """In a table of their own, and neither in the summary nor in a claim."""
        warm = {"diohelper": samples(3), "QEMU, fast": samples(2)}
        cold = {"diohelper": samples(700), "QEMU, faster": samples(900)}
        found = results(qemu=row({name: experiment(**warm) for name in ("qemu-save", "qemu-load")}))
        without = page.experiments_of(found)
        found["rows"]["cold"] = row({name: experiment(name, **cold) for name in ("cold-save", "cold-load")})
        experiments = page.experiments_of(found)
        self.assertEqual(page.short(experiments), page.short(without))
        self.assertEqual(page.claim_tables(experiments), page.claim_tables(without))
        for name in ("cold-save", "cold-load"):
            self.assertIn(f"### {name}\n\n|  | MiB/s | seconds | CPU s/GiB | of it beside QEMU |", page.page(found))

    def test_the_worst_decides_what_is_taken_at_most(self):
        found = {"memory-save": experiment(diohelper=samples(1, own_kib=1024), other=samples(1, own_kib=4096))}
        self.assertEqual(claims.most(["memory-save"], "own_kib", 1024)(found).median, 4)

    def test_growth(self):
        grown = samples(1, memory_before_bytes=0, memory_after_bytes=3 << 20)
        self.assertEqual(claims.growth("holes-save")({"holes-save": experiment(x=grown)}).median, 3)

    def test_largest_and_smallest(self):
        peers = dict.fromkeys(("1 GiB", "16 GiB", "256 MiB"))
        self.assertEqual((claims.largest(peers), claims.smallest(peers)), ("16 GiB", "256 MiB"))

    def test_every_mark_of_the_template_is_replaced(self):
        self.assertNotRegex(page.page(results(memory=memory_row([1], [1]))), "@[A-Z]+@")

    def test_the_same_results_give_the_same_page(self):
        found = results(memory=memory_row([1, 2], [2, 3]))
        self.assertEqual(page.page(found), page.page(json.loads(json.dumps(found))))


class Pictures(unittest.TestCase):
    ROWS = [("it's", figures.Spread(2, 1, 3), None), ("other", figures.Spread(5, 4, 6), figures.Spread(7, 7, 7))]

    def test_script(self):
        text = plots.script("t", self.ROWS, "out.svg", mark=1)
        self.assertIn("'it''s' 1, 'other' 0", text)
        self.assertEqual(plots.bars_data(self.ROWS, 0, 0), ["2 1.000 1 3 0.820 1.180", "5 0.000 4 6 -0.180 0.180"])
        self.assertEqual(len(plots.bars_data(self.ROWS, 1, 0)), 1)

    def test_gnuplot_draws_all(self):
        if not shutil.which("gnuplot"):
            self.skipTest("there is no gnuplot here")
        found = page.experiments_of(results(memory=memory_row([1, 2, 4], [2, 3, 4])))
        with tempfile.TemporaryDirectory() as directory:
            plots.draw(found, directory)
            self.assertEqual(sorted(os.listdir(directory)), ["performance-memory.svg", "performance-short.svg"])
            with open(os.path.join(directory, "performance-short.svg"), encoding="utf-8") as file:
                self.assertIn("fio, of the disk (memory)", file.read())


class Driver(unittest.TestCase):
    def test_everybody_is_first_and_last(self):
        orders = [harness.in_turn(number, ["a", "b", "c"]) for number in range(6)]
        self.assertEqual({order[0] for order in orders}, {"a", "b", "c"})
        self.assertEqual({order[-1] for order in orders}, {"a", "b", "c"})
        for order in orders:
            self.assertEqual(sorted(order), ["a", "b", "c"])

    def test_rows_are_merged(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "b/results.json")
            first = run.read_results(path)
            first["rows"]["one"] = row({})
            run.write_results(path, first)
            second = run.read_results(path)
            second["rows"]["two"] = row({})
            run.write_results(path, second)
            self.assertEqual(sorted(run.read_results(path)["rows"]), ["one", "two"])
            self.assertEqual(os.listdir(os.path.dirname(path)), ["results.json"])

    def test_every_row_can_be_imported(self):
        for name in run.ROWS:
            self.assertTrue(callable(run.module_of(name).measure), name)

    def test_cold_peers_are_ours_and_the_multifd_ways(self):
        cold = run.module_of("cold")
        self.assertEqual(cold.MODES, [f"QEMU, mapped-ram, direct-io, multifd {channels}" for channels in (1, 2, 8)])
        self.assertNotIn("prealloc", cold.qemu.qemu_guest.Memory(4096, "m").backend())

    def test_claims_call_peers_as_the_rows_do(self):
        """Else a figure would be missing on the page without a word."""
        convert, ingest, memory, qemu, stream = map(run.module_of, ("convert", "ingest", "memory", "qemu", "stream"))
        self.assertEqual(claims.CONVERSIONS, [convert.names(*pair)[0] for pair in convert.CONVERSIONS])
        self.assertEqual((claims.RAW, claims.DROP_IN, claims.INGEST, claims.MULTIFD),
                         (ingest.RAW, ingest.DROP_IN, ingest.INGEST, ingest.multifd_name(4)))
        self.assertIn(4, ingest.CHANNELS)
        self.assertEqual((claims.ALLOCATED, claims.NO_DISK), (memory.ALLOCATED, memory.NO_DISK))
        self.assertEqual((claims.FIO_SMALL, claims.LEGACY, claims.STOCK), (memory.FIO_SMALL, qemu.LEGACY, stream.STOCK))

    def test_a_failure_says_what_the_program_said(self):
        with self.assertRaisesRegex(harness.Failed, "exit status 3: why"):
            harness.run(["sh", "-c", "echo why >&2; exit 3"])

    def test_an_interruption_ends_what_was_started(self):
        """The program and what it has started itself, each holding the pipe's end."""
        read_end, write_end = os.pipe()
        script = f"import sys; sys.path.insert(0, {BENCH!r}); import harness; " \
                 f"harness.run(['sh', '-c', 'sleep 600 & echo >&{write_end}; wait'], [{write_end}])"
        with subprocess.Popen([sys.executable, "-c", script], pass_fds=[write_end], stderr=subprocess.DEVNULL) as process:
            os.close(write_end)
            with open(read_end, "rb") as pipe:
                self.assertEqual(pipe.read(1), b"\n")
                process.send_signal(signal.SIGINT)
                process.wait(WAIT_S)
                self.assertEqual(pipe.read(), b"")  # it ends when nobody has the other end any more


if __name__ == "__main__":
    unittest.main(verbosity=2)
