"""Ponder, called from async code, on asyncio or trio. What a method does is said in `client.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import anyio
import httpx

from ponder_client import calls
from ponder_client.asked import Asked, Question
from ponder_client.calls import Call
from ponder_client.replies import Feedback, Model, Preset, Reason
from ponder_client.streams import AsyncStream
from ponder_client.traces import Page, Trace, TraceSummary
from ponder_client.tries import Patience, Tries
from ponder_client.where import options

T = TypeVar("T")


class AsyncPonder:
    """As `Ponder`, with `await`.

    >>> async def main():
    ...     async with AsyncPonder(url) as ponder:
    ...         async with ponder.stream("Why?", seed=3) as events:
    ...             async for event in events:
    ...                 if isinstance(event, AnswerEvent):
    ...                     print(event.content)
    >>> asyncio.run(main())
    Answer: ...
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        patience: Patience | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        self._http = httpx.AsyncClient(transport=transport, **options(url, api_key))
        self._patience = patience or Patience()
        self.traces = AsyncTraces(self)

    async def reason(self, question: Question, **asked: Unpack[Asked]) -> Reason:
        return await self._run(calls.reason(question, asked))

    def stream(self, question: Question, **asked: Unpack[Asked]) -> AsyncStream:
        call = calls.stream(question, asked)
        return AsyncStream(self._tries(call), self._send)

    async def feedback(
        self,
        trace_id: str,
        *,
        outcome: float | None = None,
        feedback: float | None = None,
        comment: str | None = None,
    ) -> Feedback:
        said = {"outcome": outcome, "feedback": feedback, "comment": comment}
        return await self._run(calls.feedback(trace_id, said))

    async def models(self) -> list[Model]:
        return await self._run(calls.models())

    async def presets(self) -> list[Preset]:
        return await self._run(calls.presets())

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return await self._run(calls.plain(method, path, body))

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _tries(self, call: Call[Any]) -> Tries:
        return Tries(call, self._patience)

    async def _run(self, call: Call[T]) -> T:
        return call.read(await self._send(self._tries(call)))

    async def _send(self, tries: Tries) -> httpx.Response:
        while True:
            request = tries.request(self._http)
            try:
                with anyio.fail_after(tries.left()):
                    reply = await self._http.send(request, stream=tries.streams)
                    if not reply.is_success:
                        await reply.aread()
            except TimeoutError:
                raise tries.late() from None
            except httpx.TransportError as error:
                pause = tries.failed(error)
            else:
                if (wait := tries.refused(reply)) is None:
                    return reply
                pause = wait
            await anyio.sleep(pause)


class AsyncTraces:
    """As `Traces`, with `await`."""

    def __init__(self, ponder: AsyncPonder):
        self._ponder = ponder

    async def get(self, trace_id: str) -> Trace:
        return await self._ponder._run(calls.trace(trace_id))

    async def list(
        self,
        *,
        limit: int | None = None,
        since: datetime | None = None,
        strategy: str | None = None,
        after: str | None = None,
    ) -> Page:
        return await self._ponder._run(calls.traces(limit, since, strategy, after))

    async def iterate(
        self, *, since: datetime | None = None, strategy: str | None = None
    ) -> AsyncIterator[TraceSummary]:
        after: str | None = None
        while True:
            page = await self.list(since=since, strategy=strategy, after=after)
            for summary in page.data:
                yield summary
            if (after := page.next) is None:
                return
