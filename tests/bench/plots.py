# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pictures of the figures: horizontal bars of saves and loads with their spread, by gnuplot, as SVG."""
import os
import subprocess
from typing import NamedTuple

import claims
import figures

WIDTH, LINE_HEIGHT, FRAME_HEIGHT = 900, 44, 110
BAR = 0.36 # of a line, each of two
COLOURS = ("#2b6cb0", "#dd6b20")


class Bars(NamedTuple):
    """A picture of two experiments. It stands behind the first one's table."""

    file: str
    title: str
    experiments: tuple


BARS = {
    "memory-load": Bars("memory", "memory, MiB/s", ("memory-save", "memory-load")),
    "qemu-load": Bars("qemu", "a guest of QEMU, MiB/s", ("qemu-save", "qemu-load")),
    "ingest-load": Bars("ingest", "a guest of QEMU by its stream, MiB/s", ("ingest-save", "ingest-load")),
    "virsh-restore": Bars("virsh", "virsh, MiB/s of the guest's memory", ("virsh-save", "virsh-restore")),
    "flat-load": Bars("flat", "by size of the memory, MiB/s", ("flat-save", "flat-load")),
}


def quoted(text):
    return "'" + text.replace("'", "''") + "'"


def bars_data(rows, which, place):
    """X, least, most, bar: one line each."""
    lines = []
    for at, (_, *spreads) in enumerate(rows):
        if spreads[which]:
            y = len(rows) - 1 - at + place
            median, low, high = spreads[which]
            lines.append(f"{median:.6g} {y:.3f} {low:.6g} {high:.6g} {y - BAR / 2:.3f} {y + BAR / 2:.3f}")
    return lines


def script(title, rows, path, mark=None):
    """`rows`: label, Spread of the save, Spread of the load; either may be None."""
    labels = ", ".join(f"{quoted(label)} {len(rows) - 1 - at}" for at, (label, *_) in enumerate(rows))
    size = f"{WIDTH},{FRAME_HEIGHT + LINE_HEIGHT * len(rows)}"
    text = [f"set terminal svg size {size} font 'sans-serif,12' background '#ffffff' noenhanced",
            f"set output {quoted(path)}", f"set title {quoted(title)}", f"set ytics ({labels}) scale 0",
            "set xrange [0:*]", f"set yrange [-0.7:{len(rows) - 0.3}]", "set grid xtics lc '#dddddd'",
            "set style fill solid", "set border 3", "set xtics nomirror", "set key below"]
    if mark is not None:
        text.append(f"set arrow from {mark},graph 0 to {mark},graph 1 nohead dt 2 lc '#444444' front")
    plots = []
    for which, (name, place) in enumerate((("save", BAR / 2), ("load", -BAR / 2))):
        text += [f"${name} << END", *bars_data(rows, which, place), "END"]
        if len(bars_data(rows, which, place)):
            plots += [f"${name} using 1:2:(0):1:5:6 with boxxyerror lc '{COLOURS[which]}' title '{name}'",
                      f"${name} using 1:2:3:4 with xerrorbars pt 0 lc '#222222' notitle"]
    return "\n".join(text + ["plot " + ", ".join(plots)]) + "\n"


def run_gnuplot(text):
    try:
        subprocess.run(["gnuplot"], input=text.encode(), check=True)
    except FileNotFoundError:
        raise SystemExit("page.py: this needs gnuplot") from None


def rows_of(experiments, names):
    peers = [experiments[name]["peers"] for name in names]
    rows = []
    for label in peers[0]:
        rates = [figures.values(some.get(label, {}).get("samples", []), "mib_per_s") for some in peers]
        spreads = [figures.spread(found) if found else None for found in rates]
        if any(spreads):
            rows.append((label, *spreads))
    return rows


def short_rows(experiments):
    rows = []
    for line in claims.SHORT:
        spreads = [measure and measure(experiments) for measure in (line.save, line.load)]
        if any(spreads):
            rows.append((line.text(experiments), *spreads))
    return rows


def draw(experiments, directory):
    rows = short_rows(experiments)
    if rows:
        run_gnuplot(script("diohelper: how many times as fast as", rows,
                           os.path.join(directory, "performance-short.svg"), mark=1))
    for name, bars in BARS.items():
        if name in experiments:
            run_gnuplot(script(bars.title, rows_of(experiments, bars.experiments),
                               os.path.join(directory, f"performance-{bars.file}.svg")))
