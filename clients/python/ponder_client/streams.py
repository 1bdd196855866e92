"""A running search, event by event. Iterate, and leave when you like.

The server ends a search whose reader has left once nobody came back for it for a while (its
setting `idempotency.linger_seconds`).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Self

import anyio
import httpx

from ponder_client.errors import PonderError, StreamBroken
from ponder_client.events import Event, Transcript
from ponder_client.replies import Reason
from ponder_client.tries import Tries


class Following:
    """What both kinds of stream know of theirs.

    One that breaks is asked for again, under its key: the server tells it from its beginning, and
    what was told is passed over.
    """

    def __init__(self, tries: Tries):
        self._tries, self._told = tries, Transcript()

    def _take(self, line: str) -> Event | None:
        self._tries.left()  # the server says at least a comment now and then
        return self._told.take(line)

    def _pause(self, error: httpx.TransportError | None) -> float:
        """Seconds until the stream is asked for again. Raises `StreamBroken`."""
        self._tries.resumes = self._told.count > 0
        return self._tries.failed(
            error or httpx.RemoteProtocolError("the stream ended before its search did"),
            StreamBroken,
        )

    def _check(self, reply: httpx.Response) -> None:
        """Another search, which an earlier version of the server may begin, has other events.
        Raises `StreamBroken`."""
        if self._told.count and reply.headers.get("idempotent-replayed") != "true":
            raise StreamBroken("the stream broke, and the server does not know its search any more")


class Stream(Following, Iterator[Event]):
    """The events of `Ponder.stream()`; asks when the first is wanted.

    Raises `Refused` where the server says no, at once or later, and `StreamBroken` where the
    connection breaks and the search is not found again.
    """

    def __init__(self, tries: Tries, ask: Callable[[Tries], httpx.Response]):
        super().__init__(tries)
        self._ask = ask
        self._reply: httpx.Response | None = None

    def __next__(self) -> Event:
        while True:
            broken = None
            try:
                for line in self._lines():
                    if (event := self._take(line)) is not None:
                        return event
            except httpx.TransportError as error:
                broken = error
            except PonderError:
                self.close()
                raise
            if self._told.done:
                raise StopIteration
            self.close()
            time.sleep(self._pause(broken))
            self._reply = None

    def _lines(self) -> Iterator[str]:
        if self._reply is None:
            self._reply = self._ask(self._tries)
            self._check(self._reply)
            self._rest = self._reply.iter_lines()
        return self._rest

    def reply(self) -> Reason:
        """Follow it to its end; what `reason()` would have given."""
        for _ in self:
            pass
        return self._told.reply()

    def close(self) -> None:
        """Leave."""
        if self._reply is not None:
            self._reply.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


class AsyncStream(Following, AsyncIterator[Event]):
    """The same of `AsyncPonder.stream()`."""

    def __init__(self, tries: Tries, ask: Callable[[Tries], Awaitable[httpx.Response]]):
        super().__init__(tries)
        self._ask = ask
        self._reply: httpx.Response | None = None

    async def __anext__(self) -> Event:
        while True:
            broken = None
            try:
                while (line := await self._line()) is not None:
                    if (event := self._take(line)) is not None:
                        return event
            except httpx.TransportError as error:
                broken = error
            except PonderError:
                await self.aclose()
                raise
            if self._told.done:
                raise StopAsyncIteration
            await self.aclose()
            await anyio.sleep(self._pause(broken))
            self._reply = None

    async def _line(self) -> str | None:
        """The next one; None at the end. Raises `DeadlineExceeded`."""
        if self._reply is None:
            self._reply = await self._ask(self._tries)
            self._check(self._reply)
            self._rest = self._reply.aiter_lines()
        try:
            with anyio.fail_after(self._tries.left()):
                return await anext(self._rest, None)
        except TimeoutError:
            raise self._tries.late() from None

    async def reply(self) -> Reason:
        """Follow it to its end; what `reason()` would have given."""
        async for _ in self:
            pass
        return self._told.reply()

    async def aclose(self) -> None:
        """Leave."""
        if self._reply is not None:
            await self._reply.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.aclose()
