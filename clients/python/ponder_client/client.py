"""Ponder, called from ordinary code."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from ponder_client import calls
from ponder_client.asked import Asked, Question
from ponder_client.calls import Call
from ponder_client.replies import Feedback, Model, Preset, Reason
from ponder_client.streams import Stream
from ponder_client.traces import Page, Trace, TraceSummary
from ponder_client.tries import Patience, Tries
from ponder_client.where import options

T = TypeVar("T")


class Ponder:
    """A client of the server at `url`, by default that of `PONDER_URL`, else one on this machine.

    >>> with Ponder(url) as ponder:
    ...     print(ponder.reason("Use 4 9 10 13 to make 24.").answer.content)
    Answer: ...

    `api_key` is by default that of `PONDER_API_KEY`; `patience` says how long and how often it
    tries; an `httpx.HTTPTransport` as `transport` brings proxies and certificates of one's own.
    It may be shared by threads.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        patience: Patience | None = None,
        transport: httpx.BaseTransport | None = None,
    ):
        self._http = httpx.Client(transport=transport, **options(url, api_key))
        self._patience = patience or Patience()
        self.traces = Traces(self)

    def reason(self, question: Question, **asked: Unpack[Asked]) -> Reason:
        """Search for an answer; `question` is a text, or the messages of a conversation.

        >>> reply = ponder.reason("Why?", strategy={"kind": "beam", "width": 2}, deadline=20)
        >>> reply.answer.content, reply.usage.policy_tokens, reply.trace_id
        ('Answer: ...', ..., '...')
        """
        return self._run(calls.reason(question, asked))

    def stream(self, question: Question, **asked: Unpack[Asked]) -> Stream:
        """The same, told while it goes on. Leave the `with` when you know enough.

        >>> with ponder.stream("Why?", strategy="best_of_n", seed=3) as events:
        ...     print(*dict.fromkeys(event.type for event in events))
        ...     print(events.reply().answer.content)
        step score answer usage done
        Answer: ...
        """
        call = calls.stream(question, asked)
        return Stream(self._tries(call), self._send)

    def feedback(
        self,
        trace_id: str,
        *,
        outcome: float | None = None,
        feedback: float | None = None,
        comment: str | None = None,
    ) -> Feedback:
        """Say what became of an answer: was it right (0 to 1), was it liked (0 to 1), a word.

        >>> ponder.feedback(reply.trace_id, outcome=1).outcome
        1.0
        """
        said = {"outcome": outcome, "feedback": feedback, "comment": comment}
        return self._run(calls.feedback(trace_id, said))

    def models(self) -> list[Model]:
        """What a chat request may name as its model, the policy first.

        >>> [model.id for model in ponder.models()]
        ['fake', 'ponder', ...]
        """
        return self._run(calls.models())

    def presets(self) -> list[Preset]:
        """Published systems, as searches: `reason(..., preset=name)`.

        >>> "marco-o1" in [preset.name for preset in ponder.presets()]
        True
        """
        return self._run(calls.presets())

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON of any other route, with the same retries and errors.

        >>> ponder.call("GET", "/ready")["status"]
        'ready'
        """
        return self._run(calls.plain(method, path, body))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _tries(self, call: Call[Any]) -> Tries:
        return Tries(call, self._patience)

    def _run(self, call: Call[T]) -> T:
        return call.read(self._send(self._tries(call)))

    def _send(self, tries: Tries) -> httpx.Response:
        """The first reply that is one. Raises `PonderError`."""
        while True:
            request = tries.request(self._http)
            request.extensions["trace"] = partial(_renew, request, tries)
            try:
                reply = self._http.send(request, stream=tries.streams)
                if not reply.is_success:
                    reply.read()
            except httpx.TransportError as error:
                pause = tries.failed(error)
            else:
                if (wait := tries.refused(reply)) is None:
                    return reply
                pause = wait
            time.sleep(pause)


def _renew(request: httpx.Request, tries: Tries, event: str, _: object) -> None:
    """httpx gives each phase of a request a time of its own, and says when one begins: let that be
    what is then left."""
    if event.endswith(".started"):
        request.extensions["timeout"].update(tries.timeouts())


class Traces:
    """The searches that this key had, as they were recorded: `ponder.traces`."""

    def __init__(self, ponder: Ponder):
        self._ponder = ponder

    def get(self, trace_id: str) -> Trace:
        """One of them, with its whole tree.

        >>> trace = ponder.traces.get(reply.trace_id)
        >>> trace.answer, [node.text for node in trace.nodes if node.depth == 1]
        ('...', ['...', ...])
        """
        return self._ponder._run(calls.trace(trace_id))

    def list(
        self,
        *,
        limit: int | None = None,
        since: datetime | None = None,
        strategy: str | None = None,
        after: str | None = None,
    ) -> Page:
        """A page, the newest first; `after` is the `next` of the page before it.

        >>> [summary.trace_id for summary in ponder.traces.list(limit=1).data]
        ['...']
        """
        return self._ponder._run(calls.traces(limit, since, strategy, after))

    def iterate(
        self, *, since: datetime | None = None, strategy: str | None = None
    ) -> Iterator[TraceSummary]:
        """All of them, the newest first, page by page.

        >>> sum(summary.tokens for summary in ponder.traces.iterate(strategy="beam")) > 0
        True
        """
        after: str | None = None
        while True:
            page = self.list(since=since, strategy=strategy, after=after)
            yield from page.data
            if (after := page.next) is None:
                return
