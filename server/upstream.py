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
from aiohttp.abc import AbstractResolver

from server.config import HttpSettings
from server.errors import PonderError, boundary
from server.eventstream import MESSAGE, Broken, Events, complaint
from server.handover.word import PIN

BACKOFF = 0.1  # seconds before the first retry, at most
PATIENCE = 30.0  # seconds that a `Retry-After` may ask for
IDLE = 3.0  # seconds an idle connection is kept; uvicorn closes its own after 5


class Upstream:
    """One server, one connection pool. At most `settings.capacity` requests at once; the others
    wait in turn. Whatever fails is an `error`, or a `dead` if the server cannot be reached."""

    def __init__(
        self,
        settings: HttpSettings,
        *,
        error: type[PonderError],
        dead: type[PonderError],
        url: str | None = None,
        resolver: AbstractResolver | None = None,
    ):
        """`url` is that of the settings if None; the names in it are looked up by `resolver`."""
        self.running = 0
        self.waiting = 0
        self.pin: str | None = None  # the weights that its requests are for, if it is told
        self._settings = settings
        self._error = error
        self._dead = dead
        self._base = (url or settings.url).rstrip("/")
        self._resolver = resolver
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

    async def cards(self, model: str, *, required: bool) -> dict[str, dict[str, Any]]:
        """What the server says of its models, by their names; `model` is among them if required."""
        with boundary(self._error, "/v1/models"):
            answer = await self.get("/v1/models")
            cards = {card["id"]: card for card in (answer or {}).get("data", ())}
        if required and model not in cards:
            raise self._error(f"no model {model!r}; served are {sorted(cards)}")
        return cards

    async def post(self, path: str, body: dict[str, Any], *, retries: int | None = None) -> Any:
        """The JSON answer to `body`. Cancelling it closes the connection. It is tried again as
        often as the settings say, if `retries` do not."""
        pin = self.pin
        with boundary(self._error, path):
            async with self._slot():
                reply = await self._send("POST", path, body, retries=retries, pin=pin)
                return await self._json(reply)

    async def tell(self, path: str, body: dict[str, Any], *, within: float) -> Any:
        """The JSON answer to what is no request of a search: one try, of so many seconds; takes no
        slot."""
        with boundary(self._error, path):
            async with asyncio.timeout(within):
                return await self._json(await self._send("POST", path, body, retries=0))

    @asynccontextmanager
    async def events(
        self, path: str, body: dict[str, Any], *, retries: int | None = None
    ) -> AsyncIterator[Events]:
        """The event stream that answers `body`; leaving the block closes its connection, unless
        the stream was read to its end, which frees it for the next request."""
        pin = self.pin
        with boundary(self._error, path):
            async with self._slot():
                response = await self._send("POST", path, body, retries=retries, pin=pin)
                events = Events(response, self._error)
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
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        *,
        retries: int | None = None,
        pin: str | None = None,
    ) -> aiohttp.ClientResponse:
        """An open reply with status 2xx, or 404 to a GET."""
        left = self._settings.retries if retries is None else retries
        wait, stale = BACKOFF, False
        while True:
            try:
                response = await self._request(method, path, body, pin)
            except aiohttp.SocketTimeoutError:
                raise  # it may be at work on it
            except (aiohttp.ClientConnectionError, aiohttp.ClientResponseError) as error:
                if _is_stale(error) and not stale:
                    stale = True
                    continue
                if left == 0:
                    raise self._dead(f"{path}: {type(error).__name__}: {error}") from error
                delay = None
            else:
                if response.status // 100 == 2 or (method, response.status) == ("GET", 404):
                    return response
                if left == 0 or not passing(response.status):
                    raise await self._refusal(response, path) from Broken(response.status)
                delay = retry_after(response.headers.get("retry-after"))
                if delay is not None and delay > PATIENCE:
                    raise await self._refusal(response, path) from Broken(response.status)
                response.close()
            await asyncio.sleep(self._random.uniform(0, wait) if delay is None else delay)
            left -= 1
            wait *= 2

    async def _request(
        self, method: str, path: str, body: dict[str, Any] | None, pin: str | None
    ) -> aiohttp.ClientResponse:
        content = None if body is None else json.dumps(body).encode()
        headers = None if pin is None else {PIN: pin}
        if self._session is None:
            self._session = self._new_session()
        return await self._session.request(
            method, self._url(path), data=content, headers=headers, allow_redirects=False
        )

    def _new_session(self) -> aiohttp.ClientSession:
        # aiohttp rather than httpx, whose pool looks through all its connections at each request
        # and each answer: with 256 of them that is 5 ms of this process's time for one request.
        return aiohttp.ClientSession(
            headers=self._headers(),
            timeout=aiohttp.ClientTimeout(
                sock_connect=self._settings.connect_timeout, sock_read=self._settings.read_timeout
            ),
            connector=aiohttp.TCPConnector(
                limit=0,  # slots are the limit
                keepalive_timeout=IDLE,
                resolver=self._resolver,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=self._resolver is None,  # a proxy's name would be looked up there, too
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


def _is_stale(error: Exception) -> bool:
    """Whether the server closed a connection that it had: perhaps one that was idle for long, at
    the moment at which a request was sent. On a busy machine that is no failure."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return False
    return isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)


def passing(status: int) -> bool:
    """Whether trying again may help; 409: the server has other weights now (`PIN`)."""
    return status in (408, 409, 425, 429) or 500 <= status < 600


def is_servers_fault(error: PonderError) -> bool:
    """Whether it is the server that failed, and not the request, so that another one may do it."""
    cause = error.__cause__
    if isinstance(cause, Broken):
        # 404: it has the model no more, such as an adapter since it started anew; 409: it has other
        # weights than those that a search is pinned to (`server/handover`).
        return passing(cause.status) or cause.status == 404
    return isinstance(cause, aiohttp.ClientError | OSError)  # of which timeouts are one


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
