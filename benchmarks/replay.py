"""The policy, asked once for what several searches ask in the same words and with the same seed.

A seeded request gives the same tokens whoever asks it. The searches of one puzzle and seed begin
alike, so a comparison of many of them (common random numbers) needs the engine for a part of
their tokens only. Each search is charged as if it had been alone, and for the whole of a request
that it leaves half read. For accuracy and tokens; it says nothing of time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from server.service import Service
from server.types import Cut, Engine, Sampling, Step, Stop, Stream


@dataclass(frozen=True, slots=True)
class Record:
    """One request from its first token to its last."""

    steps: tuple[Step, ...]
    prompt_tokens: int
    cached_tokens: int
    generated: int


Tape = dict[tuple[Any, ...], Record]
_TAPE: ContextVar[Tape] = ContextVar("tape")


@contextmanager
def tape() -> Iterator[None]:
    """Within, and in the tasks begun within, equal requests are made once."""
    token = _TAPE.set({})
    try:
        yield
    finally:
        _TAPE.reset(token)


def replaying(service: Service) -> Service:
    """`service` on an engine that replays."""
    policy: Any = Replaying(service.models.policy)
    return Service(service.settings, replace(service.models, policy=policy))


class Replaying:
    """An `Engine`: all but `stream` is the engine's below."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def stream(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        seed: int | None,
        sampling: Sampling,
        cut: Cut,
        **how: Any,
    ) -> Stream:
        known = _TAPE.get()
        key = (tuple(prompt_ids), max_tokens, seed, sampling, cut, how.get("top_logprobs"))
        if (record := known.get(key)) is not None:
            return Replayed(record)
        ask = {"max_tokens": max_tokens, "seed": seed, "sampling": sampling, "cut": cut, **how}
        return Recorded(self._engine.stream(prompt_ids, **ask), known, key)


class Recorded:
    """A `Stream` that puts itself on the tape, if it is read to its end."""

    def __init__(self, stream: Stream, known: Tape, key: tuple[Any, ...]):
        self._stream, self._known, self._key = stream, known, key
        self._halt = key[4].halt
        self._steps: list[Step] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __aiter__(self) -> Recorded:
        return self

    async def __anext__(self) -> Step:
        step = await self._stream.__anext__()
        self._steps.append(step)
        if self._halt or step.stop is not Stop.STEP:
            made = self._stream
            self._known[self._key] = Record(
                tuple(self._steps), made.prompt_tokens, made.cached_tokens, made.generated
            )
        return step

    async def aclose(self) -> None:
        await self._stream.aclose()

    def rest(self, stop: Stop) -> Step | None:
        return self._stream.rest(stop)


class Replayed:
    """A `Stream` from the tape."""

    def __init__(self, record: Record):
        self.prompt_tokens, self.cached_tokens = record.prompt_tokens, record.cached_tokens
        self.generated = record.generated
        self._left = iter(record.steps)

    def __aiter__(self) -> Replayed:
        return self

    async def __anext__(self) -> Step:
        await asyncio.sleep(0)  # as others would have their turn
        step = next(self._left, None)
        if step is None:
            raise StopAsyncIteration
        return step

    async def aclose(self) -> None:
        """Nothing runs."""

    def rest(self, stop: Stop) -> Step | None:
        return None
