"""Which tasks a round searches, and when learning goes over to its next phase.

Behaviour cloning first, then preferences or policy gradients when it plateaus: the order of arXiv
2412.14135, section 6. A new round has fresh problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")
ROUNDING = 1e-9


def phase(figures: Sequence[float], plateau: float, phases: int) -> int:
    """Of the next round. `figures` are shares of 1, that of the base and one a round; a round that
    did not raise the best by `plateau` points was the last of its phase."""
    now = 0
    for n in range(1, len(figures)):
        gained = 100 * (figures[n] - max(figures[:n]))
        if gained < plateau - ROUNDING:
            now = min(now + 1, phases - 1)
    return now


def chosen(tasks: Sequence[T], count: int, turn: int, seed: int) -> list[T]:
    """So many for the `turn`th time, from 0 on: shuffled, and dealt out as often as whole turns can
    be made of them before they are shuffled again; `count` at most as many as there are."""
    again, at = divmod(turn, len(tasks) // count)
    order = Random(f"{seed} {again}").sample(range(len(tasks)), len(tasks))
    return [tasks[n] for n in order[at * count : (at + 1) * count]]


def portion(size: int, count: int, turn: int, seed: int) -> list[int]:
    """The same of numbers below `size`, in ascending order."""
    return sorted(chosen(range(size), count, turn, seed))
