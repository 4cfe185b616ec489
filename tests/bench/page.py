#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes performance.md and its pictures of what run.py has measured.

    page.py RESULTS DIRECTORY

What stands around the figures is performance.md.in. Nothing here measures: the same results give the same page.
"""
import json
import os
import sys

sys.dont_write_bytecode = True  # no __pycache__ in the source tree
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import claims  # noqa: E402  (its place is known only now)
import figures  # noqa: E402
import plots  # noqa: E402

TEMPLATE = os.path.join(HERE, "performance.md.in")
VERDICTS = {"aim": "aim reached", "floor": "floor reached, aim not", "below": "**BELOW THE FLOOR**",
            "missed": "aim not reached"}
BUSY = 1.0 # load average
NOT_MEASURED = "not measured"


def show(spread, digits):
    median, low, high = (f"{value:.{digits}f}" for value in spread)
    return f"{median} ({low} to {high})"


def digits_of(value):
    """Three figures that say something."""
    return 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3


def table(header, rows):
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def experiments_of(results):
    return {name: experiment for row in results["rows"].values()
            for name, experiment in row.get("experiments", {}).items()}


# ---- parts of the page -------------------------------------------------------------------------------------------------


def warning(results):
    found = []
    if any(row["quick"] for row in results["rows"].values()):
        found.append("**A trial (`--quick`): the sizes are small, and these figures are not to be published.**")
    busy = [name for name, row in results["rows"].items() if row["load_average"] > BUSY]
    if busy:
        found.append(f"**The machine was busy with other things when these were begun: {', '.join(busy)}.**")
    found += [f"Not measured here: {name}: {row['unavailable']}." for name, row in results["rows"].items()
              if "unavailable" in row]
    return "\n\n".join(found)


def short(experiments):
    rows = []
    for line in claims.SHORT:
        save, load = (ratio and ratio(experiments) for ratio in (line.save, line.load))
        if save or load:
            rows.append([line.text(experiments), *(show(found, 2) if found else "" for found in (save, load))])
    return table(["diohelper against", "save", "load"], rows)


def claim_row(claim, experiments):
    measured = claim.measure(experiments)
    limits = ["" if limit is None else f"{limit:g}" for limit in (claim.floor, claim.aim)]
    if measured is None:
        return [claim.text, NOT_MEASURED, *limits, ""]
    decided = figures.verdict(measured.median, claim.floor, claim.aim, claim.at_least)
    sign = "≥" if claim.at_least else "≤"
    return [claim.text, show(measured, max(2, digits_of(measured.median))),
            *(limit and f"{sign} {limit}" for limit in limits), VERDICTS[decided]]


def claim_tables(experiments):
    return "\n\n".join(f"### {title}\n\n" + table(["", "measured", "floor", "aim", ""],
                                                  [claim_row(claim, experiments) for claim in found])
                       for title, found in claims.CLAIMS.items())


# Columns that only some experiments have: key of a sample, header, divisor, digits.
EXTRA = {**dict.fromkeys(claims.SHAPES, [("io_count", "I/Os", 1, 0), ("image_bytes", "image takes, MiB", 1 << 20, 0)]),
         **dict.fromkeys(claims.BESIDE_QEMU, [("helper_cpu_s_per_gib", "of it beside QEMU", 1, 3)])}


def peer_row(name, peer, extra):
    rate = figures.values(peer["samples"], "mib_per_s")
    seconds = figures.values(peer["samples"], "seconds")
    cpu = figures.values(peer["samples"], "cpu_s_per_gib")
    cells = [name, show(figures.spread(rate), 0), show(figures.spread(seconds), 2) if seconds else ""]
    if cpu:
        cells.append(show(figures.spread(cpu), 3))
    else:
        cells.append(f"{peer['cpu_s_per_gib']:.3f}" if "cpu_s_per_gib" in peer else "")
    for key, _, divisor, digits in extra:
        found = figures.values(peer["samples"], key)
        cells.append(f"{figures.spread(found).median / divisor:.{digits}f}" if found else "")
    return cells


def detail(name, experiment):
    peers = {peer: found for peer, found in experiment["peers"].items() if found["samples"]}
    extra = EXTRA.get(name.partition("-")[0], [])
    header = ["", "MiB/s", "seconds", "CPU s/GiB"] + [title for _, title, _, _ in extra]
    parts = [f"### {experiment['title']}", table(header, [peer_row(*peer, extra) for peer in peers.items()])]
    if name in claims.REMARKS:
        parts.append(claims.REMARKS[name])
    for missing, why in experiment["missing"].items():
        parts.append(f"{missing}: not measured: {why}.")
    if name in plots.BARS:
        parts.append(f"![{experiment['title']}](performance-{plots.BARS[name].file}.svg)")
    commands = [f"{peer}: {found['command']}" for peer, found in peers.items() if "command" in found]
    commands += [experiment["setup_command"]] if "setup_command" in experiment else []
    if commands:
        parts += ["<!-- not run: a part of make bench -->", "\n".join(f"    {command}" for command in commands)]
    return "\n\n".join(parts)


def details(experiments):
    return "\n\n".join(detail(name, experiment) for name, experiment in experiments.items())


def newest(results):
    return max(results["rows"].values(), key=lambda row: row["date"])


def machine(results):
    row = newest(results)
    lines = [[name, text] for name, text in row["machine"].items()]
    lines += [[name, text] for name, text in row["versions"].items()]
    runs = [[name, found["date"], str(found["rounds"]), str(found["load_average"]), found["versions"]["diohelper"] or ""]
            for name, found in results["rows"].items()]
    return "\n\n".join(["### The machine", table(["", ""], lines).replace("---:", "---"), "### The run",
                        table(["row", "begun", "rounds", "load average", "program"], runs)])


def page(results):
    experiments = experiments_of(results)
    with open(TEMPLATE, encoding="utf-8") as file:
        text = file.read()
    for mark, part in (("WARNING", warning(results)), ("SHORT", short(experiments)),
                       ("CLAIMS", claim_tables(experiments)), ("DETAILS", details(experiments)),
                       ("MACHINE", machine(results))):
        text = text.replace(f"@{mark}@", part)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.rstrip("\n") + "\n"


def main():
    if len(sys.argv) != 3:
        raise SystemExit("usage: page.py RESULTS DIRECTORY")
    try:
        with open(sys.argv[1], encoding="utf-8") as file:
            results = json.load(file)
    except FileNotFoundError:
        raise SystemExit(f"page.py: there is no {sys.argv[1]}: run make bench first") from None
    text = page(results)
    plots.draw(experiments_of(results), sys.argv[2])
    path = os.path.join(sys.argv[2], "performance.md")
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    print(f"page.py: {path}")


if __name__ == "__main__":
    main()
