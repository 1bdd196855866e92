"""What every route is given, and the one way in which they run a search."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from server.api.once import Once
from server.ask import Ask
from server.config import Settings
from server.errors import BadRequest
from server.metrics import Metrics
from server.reward import GetsReady
from server.search.events import Listener
from server.service import Outcome, Service
from server.state.quotas import Told
from server.traces import TraceStore
from server.types import Message

LONG = 8192  # characters; what is longer takes milliseconds to tokenize
LONGEST_TOKEN = 128  # characters, in any vocabulary that we know of


@dataclass(frozen=True, slots=True)
class Parts:
    service: Service
    settings: Settings
    traces: TraceStore | None
    metrics: Metrics
    created: int  # Unix seconds; the models' creation date
    once: Once

    async def prepare(self, messages: Sequence[Message], **request: Any) -> Ask:
        """`Service.prepare`, aside from the event loop where the text is long; and what a reward
        can find out only by work, such as whether an expected answer can be read.

        What cannot fit the context is refused untokenized: a megabyte takes seconds.
        """
        size = sum(len(message.content) for message in messages)
        context = self.service.models.policy.context
        if size > context * LONGEST_TOKEN:
            raise BadRequest(
                f"the prompt has {size} characters; the context holds {context} tokens",
                param="messages",
                code="context_length_exceeded",
            )
        if size <= LONG:
            ask = self.service.prepare(messages=messages, **request)
        else:
            ask = await asyncio.to_thread(self.service.prepare, messages=messages, **request)
        for name, part in (("reward", ask.scorer), ("verify", ask.judge)):
            if isinstance(part, GetsReady):
                await _ready(part, name)
        return ask

    async def search(
        self, ask: Ask, listener: Listener | None = None, told: Told | None = None
    ) -> Outcome:
        """Run one search, timing its first event. Raises what `Service.reason` does."""
        timed = self.metrics.timed(ask.strategy.kind, listener)
        return await self.service.reason(ask, timed, told)


async def _ready(part: GetsReady, name: str) -> None:
    """Raises `BadRequest` under the name by which the caller gave that part."""
    try:
        await part.ready()
    except BadRequest as error:
        error.param = name + (error.param or "").removeprefix("reward")
        raise
