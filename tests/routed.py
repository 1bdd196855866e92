"""Three scripted servers of one model, ranked as a search ranks them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from server.config import HttpSettings
from server.engine.http import HttpEngine
from server.routing.hashing import ranked
from tests.scripted import Scripted, serving


def name_of(server: Scripted) -> str:
    return server.url.removeprefix("http://").removesuffix("/v1")


class Servers:
    """Three of them: a search's own, its next one, and the last."""

    def __init__(self, scripted: list[Scripted]):
        by_name = {name_of(s): s for s in scripted}
        self.key = b"search"
        self.own, self.next, self.last = (by_name[n] for n in ranked(self.key, by_name))
        self.all = scripted
        self.urls = {"url": scripted[0].url, "urls": tuple(s.url for s in scripted[1:])}

    @property
    def asked(self) -> list[int]:
        return [len(s.requests) for s in (self.own, self.next, self.last)]

    def reset(self) -> None:
        for server in self.all:
            server.reset()


@asynccontextmanager
async def three() -> AsyncIterator[Servers]:
    async with AsyncExitStack() as stack:
        scripted = [Scripted() for _ in range(3)]
        for server in scripted:
            server.url = await stack.enter_async_context(serving(server))
        yield Servers(scripted)


@asynccontextmanager
async def policy(servers: Servers, **more: Any) -> AsyncIterator[HttpEngine]:
    """The policy as the search sees it."""
    known = {"model": "remote", "dialect": "chat", "prefill": "trailing", "retries": 0}
    engine = HttpEngine(HttpSettings.model_validate(known | servers.urls | more))
    await engine.start()
    try:
        yield engine.routed(servers.key)
    finally:
        await engine.close()
