"""The policy as one search sees it: a `server.types.Engine` whose requests wait for their turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from server.engine.share import Member, Share, Ticket
from server.types import Cut, Engine, Load, Sampling, Step, Stop, Stream, Tokenizer


class SharedEngine:
    """`Engine`, over another one. `priority` of its streams orders one search's branches, by
    `branch_priority`; the engine below is told the deadline, too."""

    def __init__(self, engine: Engine, share: Share, member: Member):
        self._engine, self._share, self._member = engine, share, member

    @property
    def name(self) -> str:
        return self._engine.name

    @property
    def version(self) -> str:
        return self._engine.version

    @property
    def context(self) -> int:
        return self._engine.context

    @property
    def most_logprobs(self) -> int:
        return self._engine.most_logprobs

    @property
    def tokenizer(self) -> Tokenizer:
        return self._engine.tokenizer

    async def start(self) -> None:
        """Nothing: the engine is another's."""

    async def close(self) -> None:
        """Nothing: the engine is another's."""

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
    ) -> SharedStream:
        def begin() -> Stream:
            return self._engine.stream(
                prompt_ids,
                max_tokens=max_tokens,
                seed=seed,
                sampling=sampling,
                cut=cut,
                priority=self._member.priority(priority),
                top_logprobs=top_logprobs,
            )

        admit = partial(self._share.admit, self._member, len(prompt_ids), max_tokens, priority)
        return SharedStream(self._share, admit, begin, cut.halt)

    async def label_logprobs(
        self, ids: Sequence[int], labels: Sequence[int]
    ) -> tuple[tuple[float, ...], int]:
        """At once: one token, on a prefix that the cache holds."""
        return await self._engine.label_logprobs(ids, labels)

    def load(self) -> Load:
        """What waits for its turn waits for the engine."""
        load, waiting = self._engine.load(), self._share.waiting
        return replace(load, waiting=load.waiting + waiting) if waiting else load

    async def check(self) -> None:
        await self._engine.check()


class SharedStream:
    """`Stream`. Its turn is awaited by the first `__anext__`, and only then is the engine asked,
    so that what is wrong with the request is raised there. It is over, for the others, with its
    last step, or when it is closed."""

    def __init__(
        self,
        share: Share,
        admit: Callable[[], Awaitable[Ticket]],
        begin: Callable[[], Stream],
        halt: bool,
    ):
        self._share, self._admit, self._begin, self._halt = share, admit, begin, halt
        self._ticket: Ticket | None = None
        self._stream: Stream | None = None
        self._closed = False

    @property
    def prompt_tokens(self) -> int:
        return self._stream.prompt_tokens if self._stream else 0

    @property
    def cached_tokens(self) -> int:
        return self._stream.cached_tokens if self._stream else 0

    @property
    def generated(self) -> int:
        return self._stream.generated if self._stream else 0

    def __aiter__(self) -> SharedStream:
        return self

    async def __anext__(self) -> Step:
        if self._stream is None:
            return await self._first()
        ended = True
        try:
            step = await self._stream.__anext__()
            ended = self._halt or step.stop is not Stop.STEP
            return step
        except asyncio.CancelledError:
            ended = False  # not before it is closed
            raise
        finally:
            if ended:
                self._release()

    async def aclose(self) -> None:
        self._closed = True
        try:
            if self._stream is not None:
                await self._stream.aclose()
        finally:
            self._release()

    def rest(self, stop: Stop) -> Step | None:
        return self._stream.rest(stop) if self._stream else None

    async def _first(self) -> Step:
        if self._closed:
            raise StopAsyncIteration
        ticket = await self._admit()
        self._ticket = ticket
        try:
            self._stream = self._begin()
            return await self.__anext__()
        finally:
            self._share.opened(ticket)
            if self._stream is None:
                self._release()

    def _release(self) -> None:
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._share.release(ticket, self.generated)


@contextmanager
def shared(
    engine: Engine, share: Share, tenant: str | None, seconds: float
) -> Iterator[SharedEngine]:
    """The policy for one search of `tenant`, that has so many seconds. Streams are closed by
    its end."""
    member = share.join(tenant, seconds)
    try:
        yield SharedEngine(engine, share, member)
    finally:
        share.leave(member)
