"""Which sequences make up which step: the whole run in advance, from a seed.

It does not depend on how many devices there are or how a step is cut into passes, so that neither
changes what is learned; and a run that goes on needs only to skip what was done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

BLANK = -1  # no sequence: the last step of a pass has fewer

Ints = npt.NDArray[np.int64]


class Plan(Sampler[int]):
    """Places in the data set, `batch` a step, in ascending length within a step.

    Among `bucket` steps those of like length come together, so that little is padded.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch: int,
        epochs: int,
        bucket: int,
        seed: int,
        steps: int | None = None,
    ):
        self._lengths = np.asarray(lengths, np.int64)
        self._batch, self._bucket, self._seed = batch, bucket, seed
        self.per_pass = -(-len(lengths) // batch)
        self.steps = min(steps or epochs * self.per_pass, epochs * self.per_pass)

    def __len__(self) -> int:
        return self.steps * self._batch

    def __iter__(self) -> Iterator[int]:
        for step in range(self.steps):
            turn, at = divmod(step, self.per_pass)
            if at == 0:
                order = self._pass(turn)
            yield from map(int, order[at])

    def _pass(self, turn: int) -> list[Ints]:
        rng = np.random.default_rng((self._seed, turn))
        order = rng.permutation(len(self._lengths))
        blanks = self.per_pass * self._batch - len(order)
        size = self._bucket * self._batch
        steps: list[Ints] = []
        for start in range(0, len(order), size):
            part = order[start : start + size]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            if start + size >= len(order):
                part = np.concatenate([np.full(blanks, BLANK), part])
            steps += np.split(part, len(part) // self._batch)
        return [steps[n] for n in rng.permutation(len(steps))]
