"""Ours against each rival, on the puzzles that both were given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from statistics import fmean
from typing import Any

from benchmarks.common import Report
from benchmarks.peers.rows import RIVALS, Rival

SAME = 1.02  # two draws of the same number of samples differ by this much in tokens


@dataclass(frozen=True)
class Run:
    """One row of the table, and the verdict on each puzzle."""

    row: dict[str, Any]
    right: tuple[bool, ...]

    def is_of(self, system: str, method: str, at_once: int) -> bool:
        row = self.row
        return (row["system"], row["method"], row["at once"]) == (system, method, at_once)


def compare(report: Report, runs: list[Run], ours: Iterable[str], together: int) -> None:
    """State the goals for which both rows are there."""
    systems = list(ours)
    for rival in RIVALS:
        for at_once, target in ((together, rival.together), (1, rival.alone)):
            for system in systems if target is not None else ():
                theirs = [r for r in runs if r.is_of(rival.system, rival.method, at_once)]
                mine = [r for r in runs if r.is_of(system, rival.ours, at_once)]
                if theirs and mine and target is not None:
                    _goals(report, mine[0], theirs[0], rival, target)


def _goals(report: Report, mine: Run, theirs: Run, rival: Rival, target: float) -> None:
    name = f"{mine.row['system']}, {rival.system} {rival.method}, {mine.row['at once']} at once"
    faster = theirs.row["s/puzzle"] / mine.row["s/puzzle"]
    report.goal(f"{name}: times as fast", faster, ">=", target)
    fewer = mine.row["policy tokens"] / theirs.row["policy tokens"]
    report.goal(f"{name}: tokens to its tokens", fewer, "<=", SAME)
    better, error = difference(mine.right, theirs.right)
    report.goal(f"{name}: accuracy above its, within a standard error", better, ">=", -error)


def difference(mine: Iterable[bool], theirs: Iterable[bool]) -> tuple[float, float]:
    """Of accuracies on the puzzles that both have: the mean, and its standard error."""
    pairs = [a - b for a, b in zip(mine, theirs, strict=False)]
    mean = fmean(pairs)
    return mean, sqrt(fmean((p - mean) ** 2 for p in pairs) / len(pairs))
