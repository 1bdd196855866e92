"""The strategies as the textbooks write them: sequential, no concurrency, no shared code.

An oracle asks `make(path, ordinal) -> (text, end, value, logprob)` for the ordinal-th child of
a path of ordinals; it is deterministic, so a strategy that runs on it must build the same tree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import exp, sqrt

Key = tuple[int, ...]


@dataclass(frozen=True)
class Made:
    text: str
    end: bool
    value: float
    logprob: float  # mean over its tokens


Make = Callable[[Key], Made]


def best_of_n(make: Make, n: int) -> tuple[set[Key], Key]:
    """All nodes, and the best finished one."""
    nodes: set[Key] = set()
    finished: list[Key] = []
    for i in range(n):
        key: Key = (i,)
        nodes.add(key)
        while not make(key).end:
            key = (*key, 0)
            nodes.add(key)
        finished.append(key)
    return nodes, max(finished, key=lambda k: make(k).value)


def beam(make: Make, width: int, branch: int) -> tuple[set[Key], float | None]:
    """All nodes, and the best finished one's value."""
    nodes: set[Key] = set()
    finished: list[Key] = []
    level: list[Key] = [(i,) for i in range(width * branch)]
    while level:
        nodes.update(level)
        finished += [k for k in level if make(k).end]
        slots = -(-len(level) // branch)
        kept = sorted(level, key=lambda k: make(k).value, reverse=True)[:slots]
        level = [(*k, i) for k in kept if not make(k).end for i in range(branch)]
    return nodes, max((make(k).value for k in finished), default=None)


@dataclass
class State:
    key: Key
    made: Made | None = None
    n: int = 0
    w: float = 0.0
    p: float = 0.0
    sampled: int = 0
    children: dict[str, State] = field(default_factory=dict)


def puct(
    make: Make, simulations: int, branch: int, c: float, widen: float
) -> dict[Key, tuple[int, float]]:
    """Visit counts and value sums after `simulations`, one at a time."""
    root = State(())

    def wanted(state: State) -> int:
        """Children to sample now."""
        if state.made is not None and state.made.end:
            return 0
        if state.sampled == 0:
            return branch
        half = max(1, branch // 2)
        return half if state.sampled + half <= branch * state.n**widen else 0

    def descend() -> list[State]:
        path = [root]
        while path[-1].children and not wanted(path[-1]):
            at = path[-1]
            path.append(
                max(
                    at.children.values(),
                    key=lambda s: s.w / s.n + c * s.p * sqrt(at.n) / (1 + s.n),
                )
            )
        return path

    def update(path: list[State], value: float) -> None:
        for state in path:
            state.n += 1
            state.w += value

    for _ in range(simulations):
        path = descend()
        leaf = path[-1]
        if leaf.made is not None and leaf.made.end:
            update(path, leaf.made.value)
            continue
        fresh: list[State] = []
        for _ in range(wanted(leaf)):
            made = make((*leaf.key, leaf.sampled))
            if made.text not in leaf.children:
                leaf.children[made.text] = State((*leaf.key, leaf.sampled), made)
                fresh.append(leaf.children[made.text])
            leaf.sampled += 1
        total = sum(exp(s.made.logprob) for s in leaf.children.values() if s.made)
        for s in leaf.children.values():
            assert s.made is not None
            s.p = exp(s.made.logprob) / total
        for s in fresh:
            assert s.made is not None
            update([*path, s], s.made.value)

    found: dict[Key, tuple[int, float]] = {}
    todo = [root]
    while todo:
        state = todo.pop()
        found[state.key] = (state.n, state.w)
        todo += state.children.values()
    return found
