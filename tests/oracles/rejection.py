"""Speculative rejection (arXiv 2410.20290, algorithm 1) in lockstep; no shared code."""

from __future__ import annotations

from math import floor

from tests.oracles.textbook import Key, Make


def speculative_rejection(
    make: Make, n: int, alpha: float, every: int
) -> tuple[set[Key], set[Key], Key]:
    """All nodes, the last node of each answer that was given up, the best answer's end."""
    answers = [whole_answer(make, i) for i in range(n)]
    race = list(range(n))
    given_up: dict[int, int] = {}  # answer -> steps it had
    steps = every
    while any(len(answers[i]) > steps for i in race):
        race.sort(key=lambda i: (-make(answers[i][:steps][-1]).value, i))
        lowest = race[len(race) - floor(alpha * len(race)) :]
        race = [i for i in race if i not in lowest]
        for i in lowest:
            if len(answers[i]) > steps:
                given_up[i] = steps
        steps += every
    nodes = {key for i, keys in enumerate(answers) for key in keys[: given_up.get(i, len(keys))]}
    ends = [keys[-1] for i, keys in enumerate(answers) if i not in given_up]
    lost = {answers[i][length - 1] for i, length in given_up.items()}
    return nodes, lost, max(ends, key=lambda k: (make(k).value, -k[0]))


def whole_answer(make: Make, i: int) -> list[Key]:
    keys: list[Key] = [(i,)]
    while not make(keys[-1]).end:
        keys.append((*keys[-1], 0))
    return keys
