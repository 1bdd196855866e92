"""What a process reward model is to us, wherever it runs: ids in, step verdicts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from server.reward.cache import Coalescer, VerdictCache
from server.types import Tokenizer


@dataclass(frozen=True, slots=True)
class Rows:
    """One pass of a PRM over a path."""

    scores: Mapping[int, float]  # position of a step token in `ids` -> its verdict, in [0, 1]
    computed: int  # tokens of `ids` that the pass worked on
    cached: int  # tokens of `ids` read from a prefix cache instead


class PrmClient(Protocol):
    """A process reward model. Errors: `server.errors.ScorerError`, `EngineError`."""

    name: str
    version: str  # of the weights
    context: int  # the longest path it reads, in tokens
    tokenizer: Tokenizer
    step_id: int  # the token at which it gives a verdict
    cache: VerdictCache  # of all that it was asked, by whichever search
    flights: Coalescer[Rows]  # what it is being asked now

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def rows(self, ids: Sequence[int], *, reuse: bool = True) -> Rows:
        """The verdicts at the step tokens (`step_id`) of `ids`, which ends with one.

        With `reuse`, a prefix cache may be read: verdicts inside what it held may then be
        missing, the last one never is. Without, every verdict is there. Cancelling it aborts.
        """
        ...

    async def check(self) -> None:
        """Return if it can serve; raise if not."""
        ...
