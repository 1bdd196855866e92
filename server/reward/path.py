"""What every scorer does with a path: find what is not scored yet, and value the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, prod
from statistics import fmean

from server.profiles import Aggregate
from server.types import Node

RULES: dict[Aggregate, Callable[[Sequence[float]], float]] = {
    "last": lambda verdicts: verdicts[-1],
    "min": min,
    "prod": prod,
    "mean": fmean,
}


def unscored(path: Sequence[Node]) -> int:
    """How many nodes at the end of the path have no verdict yet."""
    return next((i for i, node in enumerate(reversed(path)) if node.raw is not None), len(path))


def aggregate(rule: Aggregate, path: Sequence[Node], new: Sequence[float | None]) -> float:
    """The value of a path from its nodes' verdicts and the `new` ones of its last `len(new)`.

    Steps without a verdict do not count; a path on which nothing has one is worth 0.
    """
    old = [node.raw for node in path[: len(path) - len(new)]]
    verdicts = [v for v in (*old, *new) if v is not None]
    return RULES[rule](verdicts) if verdicts else 0.0


def logistic(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow, and exact where it is near 0."""
    return 1 / (1 + exp(-x)) if x >= 0 else exp(x) / (1 + exp(x))
