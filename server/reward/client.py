"""What a process reward model is to us, wherever it runs: ids in, step verdicts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from server.reward.cache import Coalescer, VerdictCache
from server.types import Tokenizer


@dataclass(frozen=True, slots=True)
class Rows:
    """One pass of a PRM over a path."""

    scores: Mapping[int, float]  # position of a step token in `ids` -> its verdict, in [0, 1]
    computed: int  # tokens of `ids` that the pass worked on
    cached: int  # tokens of `ids` read from a prefix cache instead


@dataclass(frozen=True, slots=True)
class Memory:
    """What a PRM was asked before, and is being asked now, by all searches together."""

    verdicts: VerdictCache = field(default_factory=VerdictCache)
    flights: Coalescer[Rows] = field(default_factory=Coalescer)


class PrmClient(Protocol):
    """A process reward model. Errors: `server.errors.ScorerError`, `EngineError`."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str:
        """Of the weights."""
        ...

    @property
    def context(self) -> int:
        """The longest path it reads, in tokens."""
        ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def step_id(self) -> int:
        """The token at which it gives a verdict."""
        ...

    @property
    def memory(self) -> Memory: ...

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
