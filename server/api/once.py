"""A request that is sent again gets the reply of the first, and pays for no second search.

- With an `Idempotency-Key`, which is the API key's own: while the first runs, the second joins it
  or, on another replica, waits for its end; after that it gets the stored reply. A stream is read
  from its beginning. Another body under the same key is refused. The search goes on for a while
  without its client. With `x-ponder-resume: true` beside the key the request takes up its first
  search or is refused; it never begins one.
- OpenAI's SDKs send no such key. They say that a request is a retry (`x-stainless-retry-count`),
  and it is the same to the byte: it joins a search whose client hung up before a reply began. So
  an SDK's search, too, goes on for a moment without its client. A retry after an error is a request
  of its own, and so are two equal requests at once: whoever samples wants them so.

Failures are not kept, but for a search that found no answer: the same key may try again.
"""

from __future__ import annotations

import asyncio
import json
import re
from hashlib import sha256
from typing import NoReturn
from uuid import uuid4

from fastapi import Request
from starlette.responses import Response

from server.api.errors import ClientGone
from server.api.recording import Make, Recorded, restored
from server.api.runs import TOO_LARGE, Run, Runs, Sent
from server.api.sse import unless_gone
from server.errors import BadRequest
from server.metrics import Metrics
from server.state.replies import Replies, State
from server.state.settings import IdempotencySettings

RESUME = "x-ponder-resume"
KEY = re.compile(r"[\x21-\x7e]{1,255}")
POLL = 0.1  # seconds between looks at what runs on another replica


class Conflict(BadRequest):
    """A key was used for another request."""

    status = 422
    code = "idempotency_key_reused"


class NotKept(BadRequest):
    """The request was answered once, and that is all that is known."""

    status = 409
    code = "reply_not_kept"


class NotKnown(BadRequest):
    """There is no search to be taken up."""

    status = 409
    code = "search_not_known"


class Once:
    """What every route that searches passes its requests through."""

    def __init__(
        self, settings: IdempotencySettings, metrics: Metrics, shared: Replies | None = None
    ):
        self._settings, self._metrics = settings, metrics
        self._runs = Runs(settings, shared)

    async def reply(self, request: Request, make: Make) -> Response:
        """What `make` makes, or what it made when this request was sent before."""
        sent = await self._sent(request)
        if sent is None:
            return await make(request.receive)
        owner = uuid4().hex
        store: Replies | None = None
        if sent.by_key or sent.retry:
            try:
                found = await unless_gone(request.receive, self._earlier(sent, owner))
            except ClientGone:
                self._runs.drop(sent, owner)
                raise
            if isinstance(found, Response):
                return found
            if sent.resumes:
                self._metrics.repeated("refused")
                raise NotKnown("the search to be taken up is not known here; none was begun")
            store = found
        recording = self._runs.start(sent, owner, make, request.scope, store)
        return Recorded(recording, repeated=False)

    async def close(self) -> None:
        await self._runs.close()

    async def _sent(self, request: Request) -> Sent | None:
        """None: it is like no other."""
        key = request.headers.get("idempotency-key")
        count = request.headers.get("x-stainless-retry-count")
        resumes = _resumes(request)
        if not self._settings.enabled:
            if resumes:
                raise NotKnown("this server keeps no searches to be taken up (idempotency.enabled)")
            return None
        if key is not None and not KEY.fullmatch(key):
            raise BadRequest("Idempotency-Key must be 1 to 255 visible ASCII characters")
        if key is None and (count is None or not self._settings.sdk_retries):
            return None
        body = sha256(request.url.path.encode() + b"\n" + await request.body()).hexdigest()
        whose = json.dumps([request.state.tenant, key, None if key else body])
        name = sha256(whose.encode()).hexdigest()
        retry = count not in (None, "0")
        return Sent(name, body, by_key=key is not None, retry=retry, resumes=resumes)

    async def _earlier(self, sent: Sent, owner: str) -> Response | Replies | None:
        """The first request's reply; or where this one was begun as the first; or None, if it is
        the first and nobody may join it yet."""
        while True:
            if run := self._runs.get(sent.key):
                return self._joined(run, sent)
            store, found = await self._runs.ask(sent, owner)
            if found.state is State.BEGUN:
                return store
            if found.state is State.NONE:
                return None
            if found.state is State.OTHER:
                self._refuse()
            if found.state is State.ENDED:
                return self._stored(found.reply)
            await asyncio.sleep(POLL)

    def _joined(self, run: Run, sent: Sent) -> Response:
        if run.sent.request != sent.request:
            self._refuse()
        self._metrics.repeated("joined")
        run.stay()
        return Recorded(run.recording, repeated=True)

    def _stored(self, reply: bytes) -> Response:
        if reply == TOO_LARGE:
            self._metrics.repeated("refused")
            raise NotKept("this request was answered before, by a reply too large to be kept")
        self._metrics.repeated("stored")
        return restored(reply)

    def _refuse(self) -> NoReturn:
        self._metrics.repeated("refused")
        raise Conflict("this Idempotency-Key was used for another request: use a new one")


def _resumes(request: Request) -> bool:
    """Whether the request only takes up what was begun. Raises `BadRequest`."""
    given = request.headers.get(RESUME)
    if given not in (None, "true"):
        raise BadRequest(f"the header '{RESUME}' must be true, or left out", param=RESUME)
    if given and "idempotency-key" not in request.headers:
        raise BadRequest(f"the header '{RESUME}' needs an Idempotency-Key", param=RESUME)
    return given is not None
