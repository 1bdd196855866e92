"""Resampling of weighted particles: how many children each of them has.

Multinomial and systematic resampling are described by Douc, Cappé & Moulines 2005
(arXiv:cs/0507025), the effective sample size by Kong, Liu & Wong 1994; the queue is the particle
cascade's (Paige, Wood, Doucet & Teh 2014, arXiv:1407.2864). Weights are natural logs, known up to
a constant.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, exp, floor, inf, log, log1p
from typing import Literal

Resampling = Literal["multinomial", "systematic"]
EDGE = 1e-6  # verdicts of 0 and 1 count as this far from certainty
ROUNDING = 1e-9  # what a ratio may be off by


def log_odds(score: float) -> float:
    """log(r / (1 - r)) of a verdict r in [0, 1]."""
    r = min(max(score, EDGE), 1 - EDGE)
    return log(r / (1 - r))


def shares(log_weights: Sequence[float]) -> list[float]:
    """The weights, adding up to 1 (a softmax)."""
    most = max(log_weights)
    weights = [exp(w - most) for w in log_weights]
    total = sum(weights)
    return [w / total for w in weights]


def effective_size(log_weights: Sequence[float]) -> float:
    """1 / sum of squared shares: from 1 (one particle has it all) to their number (all equal)."""
    return 1 / sum(share**2 for share in shares(log_weights))


def resample(log_weights: Sequence[float], how: Resampling, rng: random.Random) -> list[int]:
    """How often each particle is drawn, as many draws as there are particles.

    The expectation is a particle's share of the draws; systematic resampling stays within one
    of that.
    """
    n, weights = len(log_weights), shares(log_weights)
    if how == "multinomial":
        drawn = Counter(rng.choices(range(n), weights, k=n))
        return [drawn[i] for i in range(n)]
    start = rng.random()
    edges = [min(n, ceil(n * edge - start)) for edge in accumulate(weights)]
    edges[-1] = n
    return [edge - before for before, edge in zip([0, *edges], edges, strict=False)]


@dataclass(slots=True)
class Queue:
    """One depth of a particle cascade: who arrives is compared with those that did before."""

    size: int  # children at most, and the number that is aimed at
    arrived: int = 0
    children: int = 0
    log_sum: float = -inf  # of the weights that arrived

    def offspring(self, log_weight: float, rng: random.Random) -> tuple[int, float]:
        """Children of the particle that now arrives, and the log weight of each (section 3.1).

        But for the hard limit on `size` the children's total weight is the particle's in
        expectation.
        """
        self.log_sum = _log_add(self.log_sum, log_weight)
        before, self.arrived = self.arrived, self.arrived + 1
        mean = self.log_sum - log(self.arrived)
        ratio = exp(log_weight - mean)
        room = self.size - self.children
        if ratio < 1 - ROUNDING:
            count, each = min(room, int(rng.random() < ratio)), mean
        else:
            few = self.children <= min(self.size, before)
            count = min(room, ceil(ratio - ROUNDING) if few else floor(ratio + ROUNDING))
            each = log_weight - log(max(1, count))
        self.children += count
        return count, each


def _log_add(a: float, b: float) -> float:
    """log(e^a + e^b)."""
    low, high = sorted((a, b))
    return high + log1p(exp(low - high))
