"""A remote OpenAI-compatible server: connections, retries, event streams, errors.

A request is tried again only if no byte of an answer came: the connection failed, or the reply
was 429 or 5xx. Between attempts it waits as long as `Retry-After` says, else exponentially longer
with full jitter.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import PurePosixPath
from time import time
from typing import Any

import aiohttp

from server.config import HttpSettings
from server.errors import PonderError, boundary
from server.eventstream import EventDecoder

BACKOFF = 0.1  # seconds before the first retry, at most
PATIENCE = 30.0  # seconds that a `Retry-After` may ask for
IDLE = 3.0  # seconds an idle connection is kept; uvicorn closes its own after 5
GRACE = 1.0  # seconds that a server may take to end a reply after its `[DONE]`
MESSAGE = 500  # characters of an upstream message that are passed on


class Upstream:
    """One server, one connection pool. At most `settings.capacity` requests at once; the others
    wait in turn. Whatever fails is an `error`, or a `dead` if the server cannot be reached."""

    def __init__(
        self, settings: HttpSettings, *, error: type[PonderError], dead: type[PonderError]
    ):
        self.running = 0
        self.waiting = 0
        self._settings = settings
        self._error = error
        self._dead = dead
        self._base = settings.url.rstrip("/")
        self._slots = asyncio.Semaphore(settings.capacity)
        self._random = random.Random()
        self._session: aiohttp.ClientSession | None = None  # made on the loop that uses it

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def get(self, path: str, *, within: float | None = None) -> Any:
        """The JSON at `path`; None if there is none. Takes no slot, and is not retried if
        `within` (seconds, for the whole of it) is given."""
        with boundary(self._error, path):
            async with asyncio.timeout(within):
                response = await self._send("GET", path, None, retries=0 if within else None)
                content = await self._json(response)
                return None if response.status == 404 else content

    async def text(self, path: str, *, within: float) -> str | None:
        """What is at `path`; None if nothing is. One try, of so many seconds; takes no slot."""
        with boundary(self._error, path):
            async with asyncio.timeout(within):
                response = await self._send("GET", path, None, retries=0)
                content = await self._content(response)
        return None if response.status == 404 else content.decode(errors="replace")

    async def card(self, model: str, *, required: bool = True) -> dict[str, Any]:
        """What the server says of one of its models; {} if it says nothing and need not."""
        answer = await self.get("/v1/models")
        cards: dict[str, dict[str, Any]] = {
            card["id"]: card for card in (answer or {}).get("data", ())
        }
        if required and model not in cards:
            raise self._error(f"no model {model!r}; served are {sorted(cards)}")
        return cards.get(model, {})

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer to `body`. Cancelling it closes the connection."""
        with boundary(self._error, path):
            async with self._slot():
                return await self._json(await self._send("POST", path, body))

    @asynccontextmanager
    async def events(self, path: str, body: dict[str, Any]) -> AsyncIterator[Events]:
        """The event stream that answers `body`; leaving the block closes its connection, unless
        the stream was read to its end, which frees it for the next request."""
        with boundary(self._error, path):
            async with self._slot():
                events = Events(await self._send("POST", path, body), self._error)
                try:
                    yield events
                finally:
                    events.close()

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._slots.release()

    async def _send(
        self, method: str, path: str, body: dict[str, Any] | None, *, retries: int | None = None
    ) -> aiohttp.ClientResponse:
        """An open reply with status 2xx, or 404 to a GET."""
        left = self._settings.retries if retries is None else retries
        wait = BACKOFF
        while True:
            try:
                response = await self._request(method, path, body)
            except aiohttp.SocketTimeoutError:
                raise  # it may be at work on it
            except (aiohttp.ClientConnectionError, aiohttp.ClientResponseError) as error:
                if left == 0:
                    raise self._dead(f"{path}: {type(error).__name__}: {error}") from error
                delay = None
            else:
                if response.status // 100 == 2 or (method, response.status) == ("GET", 404):
                    return response
                if left == 0 or not passing(response.status):
                    raise await self._refusal(response, path)
                delay = retry_after(response.headers.get("retry-after"))
                if delay is not None and delay > PATIENCE:
                    raise await self._refusal(response, path)
                response.close()
            await asyncio.sleep(self._random.uniform(0, wait) if delay is None else delay)
            left -= 1
            wait *= 2

    async def _request(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> aiohttp.ClientResponse:
        content = None if body is None else json.dumps(body).encode()
        if self._session is None:
            self._session = self._new_session()
        return await self._session.request(
            method, self._url(path), data=content, allow_redirects=False
        )

    def _new_session(self) -> aiohttp.ClientSession:
        # aiohttp rather than httpx, whose pool looks through all its connections at each request
        # and each answer: with 256 of them that is 5 ms of this process's time for one request.
        return aiohttp.ClientSession(
            headers=self._headers(),
            timeout=aiohttp.ClientTimeout(
                sock_connect=self._settings.connect_timeout, sock_read=self._settings.read_timeout
            ),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE),  # slots are the limit
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=True,
        )

    def _url(self, path: str) -> str:
        """vLLM's own routes, such as /health, stand beside /v1 and not under it."""
        if path.startswith("/v1/"):
            return self._base + path.removeprefix("/v1")
        return self._base.removesuffix("/v1") + path

    def _headers(self) -> dict[str, str]:
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if self._settings.api_key is not None:
            headers["authorization"] = f"Bearer {self._settings.api_key.get_secret_value()}"
        return headers

    async def _json(self, response: aiohttp.ClientResponse) -> Any:
        content = await self._content(response)
        # A server may answer /health or an unknown path with no JSON: nothing is said there.
        return json.loads(content) if content.lstrip()[:1] in (b"{", b"[") else None

    async def _content(self, response: aiohttp.ClientResponse) -> bytes:
        try:
            return await response.read()
        finally:
            response.close()

    async def _refusal(self, response: aiohttp.ClientResponse, path: str) -> PonderError:
        status = response.status
        # The reply to a wrong key may repeat the key.
        detail = "" if status in (401, 403) else await self._detail(response)
        response.close()
        kind = self._dead if status == 503 else self._error
        return kind(f"{path}: HTTP {status}{detail}")

    async def _detail(self, response: aiohttp.ClientResponse) -> str:
        text = (await self._content(response)).decode(errors="replace")
        with suppress(ValueError):
            text = complaint(json.loads(text)) or text
        return f": {text[:MESSAGE]}" if text else ""


class Events:
    """An open event stream: the JSON objects of its events, up to `[DONE]`."""

    def __init__(self, response: aiohttp.ClientResponse, error: type[PonderError]):
        self._response = response
        self._error = error
        self._decoder = EventDecoder()
        self._ready: list[bytes] = []
        self._over = False

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> dict[str, Any]:
        """Raises if the event reports an error, or is no object."""
        data = await self._next()
        if data is None or data.strip() == b"[DONE]":
            await self._drain()
            raise StopAsyncIteration
        event = json.loads(data)
        if not isinstance(event, dict):
            raise ValueError(f"an event that is no object: {data[:80]!r}")
        if "error" in event:
            raise self._error((complaint(event) or "the server gave no reason")[:MESSAGE])
        return event

    def close(self) -> None:
        """Close the connection, unless it was freed at the end of the reply."""
        self._response.close()

    async def _next(self) -> bytes | None:
        while not self._ready:
            chunk = await self._response.content.readany()
            if not chunk:
                self._over = True
                return None
            self._ready = self._decoder.feed(chunk)[::-1]
        return self._ready.pop()

    async def _drain(self) -> None:
        """Read the end of the reply, so that its connection can be used again."""
        with suppress(aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(GRACE):
                while not self._over:
                    self._ready.clear()
                    await self._next()


def passing(status: int) -> bool:
    """Whether trying again may help."""
    return status in (408, 425, 429) or 500 <= status < 600


def retry_after(value: str | None) -> float | None:
    """Seconds, from a number or an HTTP date; None if there is neither."""
    if value is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    return None


def weights_of(card: dict[str, Any]) -> str:
    """The weights' name, as far as a server tells: the last part of where it loaded them from."""
    return PurePosixPath(card.get("root") or card.get("id") or "unknown").name


def context_of(card: dict[str, Any], setting: int | None, error: type[PonderError]) -> int:
    """Tokens; by the setting, else by vLLM's card."""
    context = setting or card.get("max_model_len")
    if not context:
        raise error("the server does not tell its context length: set `context`")
    return int(context)


def complaint(body: Any) -> str | None:
    """The message in an error reply: OpenAI's shape, or one of those in use beside it."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail")
    return str(error) if error else None
