#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""make bench: diohelper and its peers side by side, in one run, alternating round by round.

    run.py [--rounds N] [--quick] [--directory DIR] [--results FILE] [ROW...]

Rows: see --help. Results are merged into FILE, row by row as they are done, so rows may be measured one by one; page.py
makes docs/performance.md of it. What is written to DIR (default /var/tmp) is removed again, also after Ctrl-C.
"""
import argparse
import importlib
import json
import os
import signal
import sys

sys.dont_write_bytecode = True  # no __pycache__ in the source tree
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import harness  # noqa: E402  (its place is known only now)

ROWS = ["memory", "stream", "qemu", "cold", "ingest", "convert", "libvirt", "shapes", "flat", "cpu", "defaults"]
ROUNDS_DEFAULT, ROUNDS_QUICK = 9, 2
FORMAT = 1


def stop(number, _):
    """The first one only: cleaning up is not interrupted, and everything in it ends within seconds."""
    for other in harness.INTERRUPTIONS:
        signal.signal(other, signal.SIG_IGN)
    print("\nrun.py: interrupted", file=sys.stderr)
    raise SystemExit(128 + number)


def read_results(path):
    try:
        with open(path, encoding="utf-8") as file:
            results = json.load(file)
    except FileNotFoundError:
        return {"format": FORMAT, "rows": {}}
    if results.get("format") != FORMAT:
        raise SystemExit(f"run.py: {path} is of another format: remove it")
    return results


def write_results(path, results):
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1)
    os.replace(path + ".new", path)


def about(options, load_average):
    """`load_average`: before the first row, because every row is a load, too."""
    return {"date": harness.today(), "rounds": options.rounds, "quick": options.quick,
            "machine": harness.machine(options.directory), "versions": harness.versions(),
            "load_average": load_average}


def module_of(row):
    return importlib.import_module(f"rows.{row}")


def measure(row, options, load_average):
    module = module_of(row)
    print(f"{row}: {module.__doc__.strip().partition(chr(10))[0]} ", end="", file=sys.stderr, flush=True)
    found = about(options, load_average)
    with harness.scratch_directory(options.directory) as directory:
        try:
            experiments = module.measure(harness.Bench(options.rounds, options.quick, directory))
        except harness.Unavailable as why:
            print(f"not measured: {why}", file=sys.stderr)
            return {**found, "unavailable": str(why)}
    return {**found, "experiments": {name: experiment.as_json() for name, experiment in experiments.items()}}


def parse():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, help=f"pairs of each comparison (default {ROUNDS_DEFAULT})")
    parser.add_argument("--quick", action="store_true", help="a trial: small sizes, few rounds; for no publication")
    parser.add_argument("--directory", default="/var/tmp", help="on the disk to be measured")
    parser.add_argument("--results", default=os.path.join(harness.BUILD, "bench/results.json"))
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], metavar="ROW", help=", ".join(ROWS))
    options = parser.parse_args()
    options.rounds = options.rounds or (ROUNDS_QUICK if options.quick else ROUNDS_DEFAULT)
    options.rows = options.rows or ROWS
    return options


def main():
    options = parse()
    for number in harness.INTERRUPTIONS:
        signal.signal(number, stop)
    load_average = round(os.getloadavg()[0], 1)
    failed = []
    for row in options.rows:
        try:
            found = measure(row, options, load_average)
        except harness.Failed as why:
            print(f"\nrun.py: {row}: {why}", file=sys.stderr)
            failed.append(row)
            continue
        results = read_results(options.results)
        results["rows"][row] = found
        write_results(options.results, results)
    if failed:
        raise SystemExit(f"run.py: not measured because of errors: {' '.join(failed)}")


if __name__ == "__main__":
    main()
