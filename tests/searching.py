"""Build and run a search over the fakes on the virtual clock."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from server.budget import Budget
from server.search import Strategy
from server.search.core import Search
from server.search.events import Event
from server.search.run import run_search
from server.search.writer import Shape
from server.types import Cut, Message, Prompt
from tests.fakes import CodePoints, FakeEngine, FakeScorer
from tests.virtual import run

PROMPT = Prompt((Message("user", "Q"),), CodePoints().render([Message("user", "Q")]))


@dataclass
class Ran:
    search: Search
    engine: FakeEngine
    scorer: FakeScorer
    seconds: float
    tasks: int  # alive after the search, beside the one that ran it
    events: list[Event] = field(default_factory=list)

    @property
    def keys(self) -> list[tuple[int, ...]]:
        return sorted(n.key for n in self.search.nodes)

    @property
    def texts(self) -> list[tuple[tuple[int, ...], str]]:
        return sorted((n.place, n.text()) for n in self.search.nodes)


def searched(
    strategy: Strategy | Any,
    *,
    seed: int | None = 0,
    budget: dict[str, Any] | None = None,
    engine: FakeEngine | None = None,
    scorer: FakeScorer | None = None,
    max_tokens: int = 400,
    max_step_tokens: int = 48,
    lookahead: int = 0,
    chunk: int = 128,
    **options: Any,
) -> Ran:
    """`options` are those of `Search`."""
    engine, scorer = engine or FakeEngine(), scorer or FakeScorer()
    events: list[Event] = []
    depth = getattr(strategy, "depth", None) or 1 << 30

    async def go() -> Ran:
        search = Search(
            PROMPT,
            engine,
            scorer,
            Budget(**{"tokens": 10**9, **(budget or {})}),
            shape=Shape(
                Cut("\n", max_step_tokens),
                max_tokens,
                chunk,
                lookahead,
                depth,
                getattr(strategy, "top_logprobs", 0),
            ),
            seed=seed,
            listener=events.append,
            actions=getattr(strategy, "behaviours", ()),
            **options,
        )
        await run_search(strategy, search)
        loop = asyncio.get_running_loop()
        return Ran(search, engine, scorer, loop.time(), len(asyncio.all_tasks()) - 1, events)

    return run(go())
