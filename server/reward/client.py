"""What a reward model is to us, wherever it runs: ids in, verdicts at some of them out."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from server.config import OrmSettings
from server.errors import EngineDead, EngineError, ScorerDead, ScorerError, boundary
from server.reward.cache import Coalescer, VerdictCache
from server.reward.layout import Layout
from server.types import Message, Tokenizer

T = TypeVar("T")


class ChatTokenizer(Tokenizer, Protocol):
    def chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """A chat as ids that ends with its last message."""
        ...


@dataclass(frozen=True, slots=True)
class Rows:
    """One pass of a reward model over a path."""

    scores: Mapping[int, float]  # position in `ids` -> its verdict
    computed: int  # tokens of `ids` that the pass worked on
    cached: int  # tokens of `ids` read from a prefix cache instead


@dataclass(frozen=True, slots=True)
class Memory:
    """What a reward model was asked before, and is being asked now, by all searches together."""

    verdicts: VerdictCache = field(default_factory=VerdictCache)
    flights: Coalescer[Rows] = field(default_factory=Coalescer)


class RewardModel(Protocol):
    """Errors: `server.errors.ScorerError`, `EngineError`."""

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
    def memory(self) -> Memory: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def check(self) -> None:
        """Return if it can serve; raise if not."""
        ...

    async def rows(self, ids: Sequence[int], marks: Sequence[int], *, reuse: bool = True) -> Rows:
        """The verdicts at the positions `marks`, ascending, of which the last is that of the
        last of `ids`.

        With `reuse`, a prefix cache may be read: verdicts inside what it held may then be
        missing, the last one never is. Without, every verdict is there. Cancelling it aborts.
        """
        ...


class PrmClient(RewardModel, Protocol):
    """A process reward model: verdicts in [0, 1] on the steps of a path."""

    @property
    def layout(self) -> Layout:
        """How it reads a path."""
        ...


class OrmClient(RewardModel, Protocol):
    """An outcome reward model: an unbounded score of a whole chat."""

    @property
    def settings(self) -> OrmSettings: ...

    @property
    def tokenizer(self) -> ChatTokenizer: ...


async def guarded(name: str, work: Awaitable[T]) -> T:
    """The result of `work` on a reward model. Whatever fails is a `ScorerError`, and a dead
    engine a `ScorerDead`: it is not the policy's."""
    try:
        with boundary(ScorerError, name):
            return await work
    except EngineError as error:
        kind = ScorerDead if isinstance(error, EngineDead) else ScorerError
        raise kind(error.message) from error
