"""From the verdicts on a path's steps to the value of the path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from statistics import fmean

from server.profiles import Aggregate

RULES: dict[Aggregate, Callable[[Sequence[float]], float]] = {
    "last": lambda verdicts: verdicts[-1],
    "min": min,
    "prod": prod,
    "mean": fmean,
}


def aggregate(rule: Aggregate, verdicts: Sequence[float | None]) -> float:
    """The value of a path; steps without a verdict do not count. At least one must have one."""
    return RULES[rule]([v for v in verdicts if v is not None])
