"""What is learnt from: token sequences, which of their tokens, and verdicts at some of them.

Kept flat, so that a file is read at once; batches are of equal length, and planned by a seed alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.reference.tokenizer import PAD

ROUND = 16  # sequences are padded to a multiple of so many tokens


class Example(NamedTuple):
    """T tokens. `weight[t]`: of the cross-entropy of token t; `target[t]`: the verdict asked for
    at token t, in [0, 1], or NaN."""

    ids: Sequence[int]
    weight: Sequence[float]
    target: Sequence[float]


@dataclass(frozen=True, slots=True)
class Batch:
    """[B, T] each."""

    ids: Tensor
    weight: Tensor
    target: Tensor  # NaN where nothing is asked

    def asked(self) -> Tensor:
        return ~self.target.isnan()


@dataclass(frozen=True, slots=True)
class Examples:
    ids: NDArray[np.uint16]
    weight: NDArray[np.float32]
    target: NDArray[np.float32]
    ends: NDArray[np.int64]  # of each sequence in the flat arrays

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def tokens(self) -> int:
        return len(self.ids)

    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.ends, prepend=0)

    def first(self, count: int) -> Examples:
        ends = self.ends[:count]
        last = int(ends[-1]) if len(ends) else 0
        return Examples(self.ids[:last], self.weight[:last], self.target[:last], ends)

    def batch(self, rows: Sequence[int]) -> Batch:
        spans = [(int(self.ends[r - 1]) if r else 0, int(self.ends[r])) for r in rows]
        longest = max(end - begin for begin, end in spans)
        size = len(rows), -(-longest // ROUND) * ROUND
        ids = torch.full(size, PAD)
        weight, target = torch.zeros(size), torch.full(size, float("nan"))
        for n, (begin, end) in enumerate(spans):
            ids[n, : end - begin] = torch.from_numpy(self.ids[begin:end].astype(np.int64))
            weight[n, : end - begin] = torch.from_numpy(self.weight[begin:end])
            target[n, : end - begin] = torch.from_numpy(self.target[begin:end])
        return Batch(ids, weight, target)

    def plan(self, tokens: int, seed: int) -> list[list[int]]:
        """Batches of about so many tokens, each row once, in an order that only `seed` decides."""
        rng = np.random.default_rng(seed)
        sizes = -(-self.lengths() // ROUND) * ROUND
        batches = []
        for size in np.unique(sizes):
            rows = rng.permutation(np.flatnonzero(sizes == size))
            each = max(1, tokens // int(size))
            batches += [rows[n : n + each].tolist() for n in range(0, len(rows), each)]
        return [batches[n] for n in rng.permutation(len(batches))]

    def save(self, path: Path) -> None:
        save_arrays(path, ids=self.ids, weight=self.weight, target=self.target, ends=self.ends)


def collect(examples: Iterable[Example]) -> Examples:
    rows = list(examples)
    ends = np.cumsum([len(e.ids) for e in rows], dtype=np.int64)
    return Examples(
        np.fromiter((i for e in rows for i in e.ids), np.uint16),
        np.fromiter((w for e in rows for w in e.weight), np.float32),
        np.fromiter((t for e in rows for t in e.target), np.float32),
        ends,
    )


def join(parts: Sequence[Examples]) -> Examples:
    starts = np.cumsum([0, *(p.tokens for p in parts)])
    return Examples(
        np.concatenate([p.ids for p in parts]),
        np.concatenate([p.weight for p in parts]),
        np.concatenate([p.target for p in parts]),
        np.concatenate([p.ends + s for p, s in zip(parts, starts, strict=False)]),
    )


def load(path: Path) -> Examples:
    with np.load(path) as file:
        return Examples(file["ids"], file["weight"], file["target"], file["ends"])


def save_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    os.replace(temporary, path)
