"""Sequences that begin alike as one tree of tokens, each token computed once.

A token attends to its ancestors only and has its depth for a position, so that under full
attention every output is that of its sequence alone (tree attention, SpecInfer, arXiv 2305.09781;
tree training, arXiv 2511.00413). What is asked at a token is not merged: two sequences that want
other things of it ask twice, so any weights are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tree:
    """N tokens, parents before children. A single sequence is a tree, too."""

    ids: Ints  # [N]
    parent: Ints  # [N]; -1: begins a sequence
    paths: tuple[Ints, ...]  # of each sequence, [T]: where its tokens are

    @property
    def straight(self) -> bool:
        """Whether it is one sequence as it stands."""
        return bool((self.parent == np.arange(len(self.ids)) - 1).all())

    def depth(self) -> Ints:
        """[N] the position of each token in its sequence."""
        depth = np.zeros(len(self.ids), np.int64)
        for path in self.paths:
            depth[path] = np.arange(len(path))
        return depth

    def ancestors(self) -> npt.NDArray[np.bool_]:
        """[N, N] whether token i may attend to token j."""
        mask = np.eye(len(self.ids), dtype=np.bool_)
        for at, parent in enumerate(self.parent):
            if parent >= 0:
                mask[at] |= mask[parent]
        return mask


def single(ids: Sequence[int]) -> Tree:
    at = np.arange(len(ids))
    return Tree(np.asarray(ids, np.int64), at - 1, (at,))


def merge(sequences: Sequence[Sequence[int]]) -> Tree:
    children: dict[tuple[int, int], int] = {}
    ids: list[int] = []
    parents: list[int] = []
    paths = []
    for sequence in sequences:
        at, path = -1, []
        for token in sequence:
            before, at = at, children.setdefault((at, int(token)), len(ids))
            if at == len(ids):
                ids.append(int(token))
                parents.append(before)
            path.append(at)
        paths.append(np.asarray(path, np.int64))
    return Tree(np.asarray(ids, np.int64), np.asarray(parents, np.int64), tuple(paths))


def divide(sequences: Sequence[Sequence[int]], budget: int) -> list[tuple[list[int], int]]:
    """Which sequences go into which tree, and its size, so that no tree of two or more has over
    `budget` tokens. Neighbours in lexical order share the longest beginnings."""
    order = sorted(range(len(sequences)), key=lambda n: tuple(sequences[n]))
    groups: list[tuple[list[int], int]] = []
    for n in order:
        if groups:
            members, size = groups[-1]
            size += len(sequences[n]) - _common(sequences[members[-1]], sequences[n])
            if size <= budget:
                groups[-1] = ([*members, n], size)
                continue
        groups.append(([n], len(sequences[n])))
    return groups


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    n = min(len(one), len(other))
    differ = np.nonzero(np.asarray(one[:n]) != np.asarray(other[:n]))[0]
    return int(differ[0]) if len(differ) else n
