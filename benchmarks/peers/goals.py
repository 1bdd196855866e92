"""Ours against each rival, on the puzzles that both were given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from statistics import fmean
from typing import Any

from benchmarks.common import Report
from benchmarks.peers.rows import RIVALS
from trainer.passing import standard_error

SAME = 1.02  # two draws of the same number of samples differ by this much in tokens


COLUMNS = ("system", "method", "at once", "puzzles")  # that rounds of a row have in common


@dataclass(frozen=True)
class Run:
    """A row of the table, and the verdicts: on each puzzle, round by round."""

    row: dict[str, Any]
    right: tuple[bool, ...]

    def is_of(self, system: str, method: str, at_once: int) -> bool:
        row = self.row
        return (row["system"], row["method"], row["at once"]) == (system, method, at_once)


def merged(runs: Iterable[Run]) -> list[Run]:
    """The rounds of a row as one: means, and of the seconds the standard error."""
    rounds: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        rounds.setdefault(tuple(run.row[c] for c in COLUMNS), []).append(run)
    return [_mean(same) for same in rounds.values()]


def _mean(runs: list[Run]) -> Run:
    first = runs[0].row
    row = {c: v if c in COLUMNS else fmean(r.row[c] for r in runs) for c, v in first.items()}
    if len(runs) > 1:
        row["error of s/puzzle"] = standard_error([r.row["s/puzzle"] for r in runs])
    return Run(row, tuple(right for run in runs for right in run.right))


def compare(report: Report, runs: list[Run], ours: Iterable[str], together: int) -> None:
    """State the goals for which both rows are there."""
    systems = list(ours)
    for rival in RIVALS:
        for at_once, target in ((together, rival.together), (1, rival.alone)):
            for system in systems if target is not None else ():
                theirs = [r for r in runs if r.is_of(rival.system, rival.method, at_once)]
                for own in rival.ours:
                    mine = [r for r in runs if r.is_of(system, own, at_once)]
                    if theirs and mine and target is not None:
                        _goals(report, mine[0], theirs[0], target)


def _goals(report: Report, mine: Run, theirs: Run, target: float) -> None:
    names = [f"{run.row['system']} {run.row['method']}" for run in (mine, theirs)]
    name = f"{' against '.join(names)}, {mine.row['at once']} at once"
    faster = theirs.row["s/puzzle"] / mine.row["s/puzzle"]
    report.goal(f"{name}: times as fast", faster, ">=", target)
    fewer = mine.row["policy tokens"] / theirs.row["policy tokens"]
    report.goal(f"{name}: tokens to its tokens", fewer, "<=", SAME)
    better, error = difference(mine.right, theirs.right)
    report.goal(f"{name}: accuracy above its, within a standard error", better, ">=", -error)


def difference(mine: Iterable[bool], theirs: Iterable[bool]) -> tuple[float, float]:
    """Of accuracies on the puzzles that both have: the mean, and its standard error. A puzzle's
    rounds count as puzzles."""
    pairs = [a - b for a, b in zip(mine, theirs, strict=False)]
    mean = fmean(pairs)
    return mean, sqrt(fmean((p - mean) ** 2 for p in pairs) / len(pairs))
