"""A running search, told event by event."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from server.api.parts import Parts
from server.ask import Ask
from server.search.events import Event
from server.service import Outcome
from server.state.quotas import Told as Headers


@dataclass(frozen=True, slots=True)
class Told:
    """An event as it was when it happened: its node goes on changing."""

    kind: str
    data: dict[str, Any]


async def follow(
    parts: Parts, ask: Ask, tell: Callable[[Told], Awaitable[None]], headers: Headers | None = None
) -> Outcome:
    """Run a search and await `tell` for each of its events, in order; it does not wait for it.

    Cancelling it cancels the search. Raises what the search or `tell` raised.
    """
    told: asyncio.Queue[Told | None] = asyncio.Queue()  # the search's budget bounds it

    def listen(event: Event) -> None:
        told.put_nowait(Told(event.kind, event.data()))

    search = asyncio.create_task(parts.search(ask, listen, headers))
    search.add_done_callback(lambda _: told.put_nowait(None))
    try:
        while (event := await told.get()) is not None:
            await tell(event)
        return search.result()
    finally:
        search.cancel()
        await asyncio.gather(search, return_exceptions=True)
