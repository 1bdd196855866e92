"""The connection to Redis, and whether it answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, RedisError, ResponseError, TimeoutError

from server.errors import StateError
from server.state.settings import RedisSettings

log = logging.getLogger("ponder.state")
# A server that starts, fails over or is a replica says so in a reply.
AWAY = (
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "MISCONF",
    "NOAUTH",
    "WRONGPASS",
    "NOPERM",
    "CLUSTERDOWN",
)


def connect(settings: RedisSettings) -> Redis:
    """A pool of connections, none of which is open yet; replies are bytes.

    A command is sent again once if its connection broke, so that it may be done twice. Raises
    `OSError` for a file of the settings that cannot be read.
    """
    pool = BlockingConnectionPool.from_url(
        settings.url.get_secret_value(),
        timeout=settings.seconds,  # for one of them to be free
        **credentials(settings),
        socket_connect_timeout=settings.connect_seconds,
        socket_timeout=settings.seconds,
        max_connections=settings.connections,
        retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionError,)),
        health_check_interval=15,
        client_name="ponder",
    )
    return Redis.from_pool(pool)


def credentials(settings: RedisSettings) -> dict[str, Any]:
    """Who asks, and how the server's certificate is checked, as redis-py's clients take them.
    Raises `OSError` for a file that cannot be read."""
    said = {"username": settings.username, "password": _password(settings)}
    return {name: value for name, value in said.items() if value is not None} | _tls(settings)


def _password(settings: RedisSettings) -> str | None:
    if settings.password_file is not None:
        return settings.password_file.read_text(encoding="utf-8").strip()
    return settings.password.get_secret_value() if settings.password else None


def _tls(settings: RedisSettings) -> dict[str, str]:
    """The files are read at each connection, since certificates are renewed; but one that is not
    there at the beginning is a mistake, not a Redis that is away."""
    files = {
        "ssl_ca_certs": settings.ca_file,
        "ssl_certfile": settings.cert_file,
        "ssl_keyfile": settings.key_file,
    }
    for file in filter(None, files.values()):
        file.read_bytes()
    return {name: str(file) for name, file in files.items() if file is not None}


class Connection:
    """One replica's Redis, and its health: `up`, and why not.

    While it is down nobody waits for it: `asking` fails at once, until `watched` has it answer.
    """

    def __init__(self, settings: RedisSettings):
        """Raises `OSError` for a file of the settings that cannot be read."""
        self.settings = settings
        self.redis = connect(settings)
        self.up = True
        self.error: str | None = None
        self.listeners: list[Callable[[bool], None]] = []  # told when it goes up or down

    def key(self, *names: str) -> str:
        return self.settings.prefix + ":".join(names)

    @contextmanager
    def asking(self, what: str) -> Iterator[Redis]:
        """The client, whose failures are `StateError`s. At once, if it is known to be down."""
        if not self.up:
            raise StateError(f"{what}: Redis does not answer: {self.error}")
        try:
            with _cancellable():
                yield self.redis
        except (RedisError, OSError) as error:
            if _is_away(error):
                self._turn(up=False, error=error)
            raise StateError(f"{what}: {type(error).__name__}: {error}") from error

    async def check(self) -> bool:
        """Ask it now."""
        try:
            with _cancellable():
                await self.redis.ping()
        except (RedisError, OSError) as error:
            self._turn(up=False, error=error)
        else:
            self._turn(up=True)
        return self.up

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Inside, it is asked every `check_seconds`; closed on the way out."""
        await self.check()
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            while not task.done():  # the client may take a cancellation for its own timeout
                task.cancel()
                await asyncio.wait([task], timeout=1)
            await self.redis.aclose()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.settings.check_seconds)
            await self.check()

    def _turn(self, *, up: bool, error: BaseException | None = None) -> None:
        self.error = f"{type(error).__name__}: {error}" if error else None
        if self.up == up:
            return
        self.up = up
        if up:
            log.info("Redis answers again")
        else:
            log.warning("Redis does not answer: %s", self.error)
        for listener in self.listeners:
            listener(up)


@contextmanager
def _cancellable() -> Iterator[None]:
    """redis-py now and then loses a cancellation, after which a loop would never end."""
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        yield
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError


def _is_away(error: BaseException) -> bool:
    """Not if one command was wrong: the others may be right."""
    if isinstance(error, ResponseError):
        return str(error).startswith(AWAY)
    return isinstance(error, ConnectionError | TimeoutError | OSError)
