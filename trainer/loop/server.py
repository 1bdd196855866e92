"""The server that a loop asks: one that runs already, or a `ponder serve` of our own."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

from trainer.errors import ServerError
from trainer.loop.children import Children, size, tail
from trainer.loop.client import Client, connected
from trainer.loop.config import Serve

LOG = "server.log"
SHOWN = 2000  # characters of a log
SERVING = re.compile(r"serving at (\S+) after")


@dataclass
class Server:
    """Started when it is first asked for; `close` ends what was started."""

    settings: Serve
    folder: Path
    children: Children
    key: str | None
    _client: Client | None = None
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def client(self) -> Client:
        if self._client is None:
            self._client = await self._stack.enter_async_context(self._connected())
        return self._client

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Client]:
        settings = self.settings
        if settings.url is not None:
            async with connected(settings.url, self.key) as client:
                yield client
            return
        assert settings.config is not None
        own = ponder_serve(
            settings.config, settings.set, self.folder, self.children, settings.seconds
        )
        async with own as (url, key), connected(url, key) as client:
            yield client

    async def rest(self) -> None:
        """Free its memory for training, if it may not stay."""
        if not self.settings.idle:
            await self.close()

    async def close(self) -> None:
        self._client = None
        await self._stack.aclose()


@asynccontextmanager
async def ponder_serve(
    config: Path, changes: Mapping[str, Any], folder: Path, children: Children, seconds: float
) -> AsyncIterator[tuple[str, str]]:
    """The address of a server of these settings on a free port, and the key of its admin; its
    traces and its log go to `folder`. It follows no published weights: it is told."""
    key = token_urlsafe()
    own = {
        "server.host": "127.0.0.1",
        "server.port": 0,
        "traces.enabled": True,
        "traces.folder": str(folder / "traces"),
        "weights.folder": None,
    }
    words = [f"--set={key}={_text(value)}" for key, value in {**flat(changes), **own}.items()]
    command = (sys.executable, "-m", "server", "serve", "--config", str(config), *words)
    log = folder / LOG
    begin = size(log)
    # Not on the command line, which everybody may read.
    environment = {"PONDER_SERVER__ADMIN_KEYS": json.dumps([key])}
    async with children.started(*command, log=log, environment=environment) as process:
        yield await _address(process, log, begin, seconds), key


async def _address(process: Process, log: Path, begin: int, seconds: float) -> str:
    """What the server says in its log, from byte `begin` on. Raises `ServerError`."""
    try:
        async with asyncio.timeout(seconds):
            while True:
                ended = process.returncode is not None
                if found := SERVING.search(tail(log, begin)):
                    return found[1]
                if ended:
                    raise ServerError(f"ponder serve ended: {log}:\n{tail(log, begin)[-SHOWN:]}")
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise ServerError(f"ponder serve did not start in {seconds:g} s: {log}") from None


def flat(changes: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Settings by their dotted keys, however they are nested."""
    found: dict[str, Any] = {}
    for key, value in changes.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{key}.")
        else:
            found[above + key] = value
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
