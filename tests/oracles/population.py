"""Searches that move a population of paths, as their papers write them.

As in `textbook.py`, an oracle asks `make` for the ordinal-th child of a path, and is sequential.
"""

from __future__ import annotations

import random
from math import ceil, exp
from typing import Literal

from tests.oracles.textbook import Key, Make

Chosen = float | None  # the best finished path's value


def best(make: Make, nodes: set[Key]) -> Chosen:
    return max((make(k).value for k in nodes if make(k).end), default=None)


def dvts(make: Make, trees: int, branch: int) -> set[Key]:
    """search-and-learn: every subtree keeps the argmax of its `branch` candidates, until that
    one has ended."""
    nodes: set[Key] = set()
    for tree in range(trees):
        candidates: list[Key] = [(tree * branch + i,) for i in range(branch)]
        while True:
            nodes.update(candidates)
            kept = candidates[0]
            for other in candidates[1:]:
                if make(other).value > make(kept).value:
                    kept = other
            if make(kept).end:
                break
            candidates = [(*kept, i) for i in range(branch)]
    return nodes


def particle_filter(
    make: Make,
    n: int,
    temperature: float,
    threshold: float,
    how: Literal["multinomial", "systematic"],
    rng: random.Random,
) -> set[Key]:
    """Puri et al., algorithm 1, with the log-odds of the reward in its softmax; drawn anew when
    1 / sum(w^2) is at most `threshold * n`."""
    nodes: set[Key] = set()
    asked: dict[Key, int] = {}
    particles: list[Key] = [()] * n
    weight = [1.0] * n

    def step(particle: Key) -> Key:
        if particle and make(particle).end:
            return particle
        child = (*particle, asked.get(particle, 0))
        asked[particle] = asked.get(particle, 0) + 1
        nodes.add(child)
        return child

    while True:
        particles = [step(p) for p in particles]
        if all(make(p).end for p in particles):
            return nodes
        for i, p in enumerate(particles):
            r = min(max(make(p).value, 1e-6), 1 - 1e-6)
            weight[i] *= (r / (1 - r)) ** (1 / temperature)
        total = sum(weight)
        theta = [w / total for w in weight]
        if threshold < 1 and 1 / sum(t * t for t in theta) > threshold * n:
            continue
        if how == "multinomial":
            drawn = sorted(rng.choices(range(n), theta, k=n))
        else:
            drawn, i, passed, start = [], 0, theta[0], rng.random()
            for pointer in range(n):
                while (pointer + start) / n >= passed and i < n - 1:
                    i += 1
                    passed += theta[i]
                drawn.append(i)
        particles, weight = [particles[i] for i in drawn], [1.0] * n


def rebase(make: Make, n: int, temperature: float) -> set[Key]:
    """Wu et al., section 3.2, with the rounding of their code."""
    nodes: set[Key] = set()
    budget = n
    level: list[Key] = [(i,) for i in range(n)]
    while level:
        nodes.update(level)
        budget -= sum(make(k).end for k in level)
        live = sorted((k for k in level if not make(k).end), key=lambda k: (-make(k).value, k))
        level, left = [], budget
        while live:
            total = sum(exp(make(k).value / temperature) for k in live)
            first = live.pop(0)
            width = ceil(round(left * exp(make(first).value / temperature) / total, 8))
            level += [(*first, i) for i in range(width)]
            left -= width
    return nodes


def lookahead_beam(make: Make, width: int, branch: int, steps: int) -> set[Key]:
    """Snell et al., section 5.2: beam search whose steps are valued at the end of a rollout of
    at most `steps`. A rollout is the first child of the step it starts from."""
    nodes: set[Key] = set()

    def value(key: Key) -> float:
        nodes.add(key)
        for _ in range(steps):
            if make(key).end:
                break
            key = (*key, 0)
            nodes.add(key)
        return make(key).value

    level: list[Key] = [(i,) for i in range(width * branch)]
    while level:
        values = {k: value(k) for k in level}
        slots = -(-len(level) // branch)
        kept = sorted(level, key=lambda k: values[k], reverse=True)[:slots]
        first = 1 if steps else 0
        level = [(*k, first + i) for k in kept if not make(k).end for i in range(branch)]
    return nodes
