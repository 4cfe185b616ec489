# SPDX-License-Identifier: LGPL-2.1-or-later
"""Statistics of alternating measurements: medians with their spread, ratios pair by pair, verdicts.

Everything is a pure function of the samples. A sample is a dict of numbers; a peer's samples are a list, one a round, so
that the same index in two peers' lists is a pair of the same round.
"""
import statistics
from typing import NamedTuple


class Spread(NamedTuple):
    median: float
    low: float
    high: float


def spread(values):
    values = list(values)
    if not values:
        raise ValueError("nothing was measured")
    return Spread(statistics.median(values), min(values), max(values))


def values(samples, key):
    """Of those samples that have it."""
    return [sample[key] for sample in samples if sample.get(key) is not None]


def pairs(ours, theirs, key):
    """Ours over theirs, in each round: noise that lasts longer than a pair is in both."""
    return [mine[key] / other[key] for mine, other in zip(ours, theirs) if other.get(key) and mine.get(key) is not None]


def best(peers, names, key="mib_per_s"):
    """The one with the highest median."""
    return max((name for name in names if values(peers[name]["samples"], key)),
               key=lambda name: statistics.median(values(peers[name]["samples"], key)))


def verdict(measured, floor, aim, at_least):
    """`aim`, `floor` or `below`: how far a figure comes. `missed`: not to the aim, and there is no floor (None)."""
    def reaches(limit):
        return measured >= limit if at_least else measured <= limit
    if reaches(aim):
        return "aim"
    if floor is None:
        return "missed"
    return "floor" if reaches(floor) else "below"
