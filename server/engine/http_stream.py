"""One branch on a remote policy, as a stream of steps."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from server.errors import EngineError
from server.eventstream import Broken, Events
from server.routing.route import Route
from server.types import Cut, Sampling, Step, Stop
from server.upstream import is_servers_fault


@dataclass(frozen=True, slots=True)
class Job:
    """What `Engine.stream` was asked."""

    prompt_ids: Sequence[int]
    max_tokens: int
    seed: int | None
    sampling: Sampling
    cut: Cut
    priority: int
    top_logprobs: int = 0

    @property
    def limit(self) -> int:
        """Tokens the server may make: under `halt` no more than the rest of one step."""
        if not self.cut.halt:
            return self.max_tokens
        return min(self.max_tokens, self.cut.max_step_tokens - self.cut.begun)

    def seed_after(self, generated: int) -> int | None:
        """The seed of the request that goes on after `generated` tokens."""
        if self.seed is None:
            return None
        return (self.seed * 1_000_003 + generated if generated else self.seed) % (1 << 63)


class HttpStream(ABC):
    """A `server.types.Stream` over one streamed completion, or rarely more.

    A task of its own reads the reply from the first `__anext__` on, so that `generated` counts
    what the server has made and not what was taken. The last step is held back until the reply
    has ended, a moment later: then the usage is known and the connection free for the next one.

    Where its server fails and there is another, that one goes on from the tokens that came. It
    reads the prompt anew, which is counted anew if the first one had begun to answer.
    """

    route: str

    def __init__(self, route: Route, job: Job):
        self.job = job
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generated = 0
        self.requests = 0
        self._errand = route.errand()
        self._begun = False  # the last request had an answer
        self._reads = True  # the last request's prompt counts
        self._elsewhere = (0, 0)  # prompt tokens, and cached ones, at servers that failed
        self._last: Step | None = None
        self._finish: str | None = None  # the server's word for why it stopped
        self._reason: Any = None  # the stop string or token, where the server says so
        self._queue: asyncio.Queue[Step | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def __aiter__(self) -> HttpStream:
        return self

    async def __anext__(self) -> Step:
        if self._closed:
            raise StopAsyncIteration
        if self._task is None:
            self._task = asyncio.create_task(self._read())
        try:
            step = await self._queue.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if step is not None:
            return step
        await self.aclose()
        error = None if self._task.cancelled() else self._task.exception()
        raise error or StopAsyncIteration

    async def aclose(self) -> None:
        """Close the connection, on which the server aborts; wakes who waits for a step."""
        self._closed = True
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()  # seen: nobody is left to whom it matters

    async def _read(self) -> None:
        try:
            async with aclosing(self._steps()) as steps:
                async for step in steps:
                    self._queue.put_nowait(step)
        finally:
            self._queue.put_nowait(None)

    async def _steps(self) -> AsyncGenerator[Step, None]:
        await self.prepare()
        while True:
            self.requests += 1
            self._finish = self._reason = None
            self._begun = False
            try:
                with self._errand.begun() as replica:
                    retries = self._errand.retries
                    async with replica.events(self.route, self.body(), retries) as events:
                        async for step in self._cut(events):
                            yield step
            except EngineError as error:
                if not is_servers_fault(error):
                    raise
                if not self._is_whole():
                    if not self._errand.goes_on(error):
                        raise
                    self._moved()
                    continue
            if self._last is None and self._stopped_short() and self.generated < self.job.limit:
                self._reads = False
                continue
            last = self._last or self._rest()
            if last is not None:
                yield self.settle(last)
            return

    async def _cut(self, events: Events) -> AsyncGenerator[Step, None]:
        async for event in events:
            self._begun = True
            if usage := event.get("usage"):
                self.usage(usage)
            for choice in event.get("choices") or ():
                self._finish = choice.get("finish_reason")
                self._reason = choice.get("stop_reason")
                for step in self.take(choice) if self._last is None else ():
                    if self.job.cut.halt or step.stop is Stop.END:
                        self._last = step
                        break
                    yield step
            if self._last is not None and self._finish is None:
                return  # an end that the server could not see
        if self._finish is None:
            raise EngineError("the server's stream ended without a finish_reason") from Broken(502)

    def _is_whole(self) -> bool:
        """Whether there is nothing to go on with, though its server failed before it had said
        all."""
        if self._finish is None and self._last is None and self.generated >= self.job.limit:
            self._finish = "length"
        return self._finish is not None or self._last is not None

    def _moved(self) -> None:
        """What was read and written so far is a prompt to the next server."""
        self._reads = True
        if self._begun:
            self._elsewhere = (self.prompt_tokens, self.cached_tokens)
            self.prompt_tokens += self.asked()

    def _stopped_short(self) -> bool:
        """Whether the server stopped at a delimiter that ends no step: white space before it."""
        at_delimiter = self._reason is not None and self._reason == self.job.cut.delimiter
        return self._finish == "stop" and at_delimiter

    def _rest(self) -> Step | None:
        if self._finish == "length" or self._stopped_short():
            return self.rest(Stop.LENGTH)
        if self._finish == "stop":
            return self.rest(Stop.END)
        raise EngineError(f"the server ended a completion by {self._finish!r}")

    def usage(self, usage: dict[str, Any]) -> None:
        """The server's own count; the last one of a request holds."""
        if self._reads:
            prompt, found = self._elsewhere
            said = usage.get("prompt_tokens")
            self.prompt_tokens = prompt + said if said else self.prompt_tokens
            self.cached_tokens = found + cached(usage)

    def settle(self, last: Step) -> Step:
        """The last step, now that the server's count is known."""
        return last

    async def prepare(self) -> None:
        """Find out what the first request must say, if that takes time."""
        return

    def asked(self) -> int:
        """Prompt tokens of the next request; 0 if only the server can count them."""
        return 0

    @abstractmethod
    def body(self) -> dict[str, Any]:
        """The request that goes on where the last one stopped."""

    @abstractmethod
    def take(self, choice: dict[str, Any]) -> list[Step]:
        """The steps that a chunk ends; adds its tokens to `generated`."""

    @abstractmethod
    def rest(self, stop: Stop) -> Step | None:
        """What is left at the end; None if nothing is, just after a step."""


def cached(usage: dict[str, Any]) -> int:
    """Prompt tokens that came from the server's prefix cache; 0 if it does not say."""
    details = usage.get("prompt_tokens_details") or {}
    return int(details.get("cached_tokens") or 0)
