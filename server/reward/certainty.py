"""How sure a policy was of a token, from its log-probability and those of the likeliest tokens.

All natural logs, of the distribution that was sampled from. Where top-p or top-k leaves fewer than
k tokens, the others have probability 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from heapq import nsmallest
from itertools import accumulate
from math import exp, fsum, inf, log
from statistics import fmean

FLOOR = -20.0  # a log-probability of 0, where -inf would make a mean of it worthless

Tops = Sequence[float]


def share(chosen: float, tops: Tops) -> float:
    """exp(p) / sum of exp(p_k) over the likeliest tokens, as Marco-o1 (arXiv 2411.14405, section
    4) with k = 5. In [0, 1]: below 1/k where the chosen token is none of them."""
    return min(1.0, exp(chosen) / fsum(map(exp, tops)))


def evenness(tops: Tops) -> float:
    """The entropy of the likeliest tokens, their probabilities made to sum to 1, over the greatest
    it could be, log k. In [0, 1]; 1 if all are equally likely."""
    whole = fsum(map(exp, tops))
    shares = [exp(p) / whole for p in tops]
    return min(1.0, -fsum(p * log(p) for p in shares if p > 0) / log(max(2, len(tops))))


def token_confidence(tops: Tops) -> float:
    """-1/k sum of log P(j) over the k likeliest tokens: DeepConf's (arXiv 2508.15260, section
    3.1). At least log k, for tokens that are all equally likely; at most `-FLOOR`."""
    return -fmean(max(FLOOR, p) for p in tops)


def bounded(confidence: float, k: int) -> float:
    """A token or group confidence in [0, 1): 1 - log k / C. Rises with C; 0 where all k tokens
    were equally likely."""
    return max(0.0, 1 - log(k) / confidence) if confidence > 0 else 0.0


def groups(confidences: Sequence[float], window: int, since: int = 0) -> list[float]:
    """Mean confidence of each run of `window` tokens that ends at index `since` or later; of all
    tokens if there are fewer. [] for none (DeepConf's group confidence)."""
    n = len(confidences)
    if n <= window:
        return [fmean(confidences)] if n else []
    first = max(window, since + 1) - window
    sums = [0.0, *accumulate(confidences[first:])]
    return [(sums[at + window] - sums[at]) / window for at in range(n + 1 - window - first)]


class LowestGroup:
    """The least confident of the whole groups of a text, while its tokens come."""

    def __init__(self, window: int):
        self.confidence = inf  # before there is a whole group
        self._window = window  # tokens
        self._last: deque[float] = deque()
        self._sum = 0.0

    def add(self, confidences: Sequence[float]) -> None:
        """The next tokens'."""
        for confidence in confidences:
            self._last.append(confidence)
            self._sum += confidence
            if len(self._last) > self._window:
                self._sum -= self._last.popleft()
            if len(self._last) == self._window:
                self.confidence = min(self.confidence, self._sum / self._window)


def lowest(values: Sequence[float], part: float) -> float:
    """The mean of the lowest `part` of them, of one at least."""
    return fmean(nsmallest(max(1, int(len(values) * part)), values))
