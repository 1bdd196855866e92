"""A policy: token ids in, steps of token ids out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from server.types.prompt import Message
from server.types.step import Cut, Sampling, Step, Stop

CROWDED = 0.8  # of the KV cache


@dataclass(frozen=True, slots=True)
class Load:
    """How busy an engine is, by its own count."""

    running: int
    waiting: int
    capacity: int  # sequences it runs at once
    kv: float = 0.0  # share of the KV cache in use; 0 where the engine does not tell
    kv_tokens: int = 0  # that the KV cache holds; 0 where the engine does not tell
    preempted: int = 0  # requests thrown out of the KV cache so far, to be computed again
    drafted: int = 0  # tokens drafted so far; 0 where the engine does not tell
    accepted: int = 0  # of those, that were sampled

    @property
    def room(self) -> bool:
        """For what need not be: others do not wait for it, nor is anything thrown out for it."""
        return self.waiting == 0 and self.running < self.capacity and self.kv < CROWDED


class Tokenizer(Protocol):
    """Text to ids and back. User text never becomes a control token."""

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The chat as ids, ready for the assistant to speak."""
        ...

    def encode(self, text: str) -> tuple[int, ...]:
        """Plain text; a control token's name in it stays text."""
        ...

    def say(self, text: str) -> tuple[int, ...]:
        """As the policy itself would write it: what is one token and still text, such as
        `</think>`, is that token; a control token's name stays text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text without control tokens."""
        ...

    def piece(self, token: int) -> bytes:
        """A token's own bytes, which may be part of a character; b"" for a control token."""
        ...


class Stream(Protocol):
    """One engine request: an iterator of steps that must be closed; closing it aborts it."""

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def cached_tokens(self) -> int:
        """Of the prompt, read from the engine's prefix cache."""
        ...

    @property
    def generated(self) -> int:
        """Tokens the engine has made for it so far, whether or not taken."""
        ...

    def __aiter__(self) -> AsyncIterator[Step]: ...

    async def __anext__(self) -> Step:
        """The next step. After one that is not `Stop.STEP` (or any, under `Cut.halt`) it ends."""
        ...

    async def aclose(self) -> None:
        """Abort in the engine; `generated` is final afterwards."""
        ...

    def rest(self, stop: Stop) -> Step | None:
        """What was written after the last whole step, as one that ends with `stop`; None if
        nothing was. To be asked once, of a closed stream that ended by no step of its own."""
        ...


class Engine(Protocol):
    """A policy. Token ids in, steps of token ids out. Errors: `server.errors.EngineError`."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str:
        """Of the weights."""
        ...

    @property
    def context(self) -> int:
        """The longest prompt plus answer, in tokens."""
        ...

    @property
    def most_logprobs(self) -> int:
        """Likeliest tokens whose log-probabilities it can give for each sampled one; 0: not even
        the sampled one's."""
        ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def stream(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        seed: int | None,
        sampling: Sampling,
        cut: Cut,
        priority: int = 0,
        top_logprobs: int = 0,
    ) -> Stream:
        """Sample a continuation of at most `max_tokens`. A lower `priority` runs first. Steps
        have `tops` of so many tokens each, or of as many as the engine can give."""
        ...

    async def label_logprobs(
        self, ids: Sequence[int], labels: Sequence[int]
    ) -> tuple[tuple[float, ...], int]:
        """Natural log-probability of each of `labels` as the token after `ids`, and how many
        of `ids` came from the prefix cache."""
        ...

    def load(self) -> Load: ...

    async def check(self) -> None:
        """Return if the engine can serve; raise `EngineError` if not."""
        ...
