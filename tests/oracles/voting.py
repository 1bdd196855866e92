"""Stopping rules of votes as their papers write them: one sample at a time, no shared code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

Key = str | None  # of a sampled answer; None: it has none


def esc(keys: Sequence[Key], window: int) -> int:
    """Samples taken: windows until one is unanimous (arXiv 2401.10480, algorithm 1)."""
    for start in range(0, len(keys), window):
        chunk = keys[start : start + window]
        if len(chunk) == window and chunk[0] is not None and len(set(chunk)) == 1:
            return start + window
    return len(keys)


def beta_tail(first: int, second: int, points: int = 20001) -> float:
    """P(p > 1/2) for p ~ Beta(first + 1, second + 1), by Simpson's rule."""
    x = np.linspace(0, 1, points)
    density = x**first * (1 - x) ** second
    weights = np.ones(points)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    half = points // 2
    upper = np.ones(points - half)
    upper[1:-1:2], upper[2:-1:2] = 4, 2
    return float((upper * density[half:]).sum() / (weights * density).sum())


def adaptive(keys: Sequence[Key], threshold: float) -> int:
    """Samples taken until the majority is that sure (arXiv 2305.11860, section 3)."""
    for n in range(1, len(keys) + 1):
        counts = sorted(Counter(k for k in keys[:n] if k is not None).values(), reverse=True)
        if counts and beta_tail(counts[0], counts[1] if counts[1:] else 0) > threshold:
            return n
    return len(keys)


def sliding(confidences: Sequence[float], group: int) -> list[float]:
    return [float(np.mean(confidences[i - group : i])) for i in range(group, len(confidences) + 1)]


def deepconf(
    traces: Sequence[tuple[Sequence[int], Sequence[float], Key]],
    warmup: int,
    eta: float,
    group: int,
    tau: float,
) -> tuple[int, dict[int, int]]:
    """Samples taken, and of those aborted how many steps were written (arXiv 2508.15260,
    algorithm 2). A trace: the tokens at the end of each step, each token's confidence, its key."""
    lowest = [
        min(sliding(conf, group), default=float(np.mean(conf))) for _, conf, _ in traces[:warmup]
    ]
    bar = float(np.percentile(lowest, 100 - eta))
    votes: Counter[str] = Counter()
    aborted: dict[int, int] = {}
    for i, (ends, confidences, key) in enumerate(traces):
        if i >= warmup:
            for step, end in enumerate(ends[:-1], 1):
                if min(sliding(confidences[:end], group), default=bar) < bar - 1e-9:
                    aborted[i] = step
                    break
        if key is not None and i not in aborted:
            votes[key] += 1
        total = sum(votes.values())
        if i + 1 >= warmup and total and max(votes.values()) / total >= tau:
            return i + 1, aborted
    return len(traces), aborted
