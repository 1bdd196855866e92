"""Reward models over several servers, and a search that asks all its models where it belongs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from server.config import HttpSettings
from server.engine.http import HttpEngine
from server.errors import ScorerError
from server.profiles import shipped
from server.reward import Models
from server.reward.remote import HttpPrm
from server.types import Message
from tests.routed import Servers, name_of, policy, three
from tests.scripted import Reply, Scripted, document, refusal


@pytest.fixture(scope="module")
async def running() -> AsyncIterator[Servers]:
    async with three() as servers:
        yield servers


@pytest.fixture
def servers(running: Servers) -> Servers:
    running.reset()
    return running


def verdicts(value: float) -> Reply:
    """Of a classifier, on one path."""
    return document({"data": [{"index": 0, "data": [1 - value, value]}]})


def packed(server: Scripted) -> Reply:
    async def reply(receive: Any, send: Any) -> None:
        count = len(server.requests[-1]["input"])
        good = "AAAAAAAAgD8="  # 0.0 and 1.0, little endian
        items = [{"index": i, "data": good} for i in range(count)]
        await document({"data": items})(receive, send)

    return reply


@asynccontextmanager
async def prm(servers: Servers, **more: Any) -> AsyncIterator[HttpPrm]:
    known = {"model": "remote", "tokenizer": "models/prm", "retries": 0}
    min(servers.all, key=name_of).replies.appendleft(verdicts(0.5))
    settings = HttpSettings.model_validate(known | servers.urls | more)
    model = HttpPrm(settings, shipped()["reference"].prm)
    await model.start()
    for server in servers.all:
        server.requests.clear()
    try:
        yield model
    finally:
        await model.close()


async def test_a_searchs_paths_are_scored_where_their_prefix_is(servers: Servers) -> None:
    servers.own.will(*[packed(servers.own)] * 2)
    async with prm(servers) as model:
        search = model.routed(servers.key)
        found = await asyncio.gather(*(search.rows((1, i), (1,)) for i in range(6)))
        assert [dict(rows.scores) for rows in found] == [{1: 1.0}] * 6
        assert servers.asked == [1, 0, 0], "they went together"
        assert len(servers.own.requests[0]["input"]) == 6
        assert search.memory is model.memory


async def test_paths_that_a_server_fails_are_scored_by_the_next(servers: Servers) -> None:
    servers.own.will(refusal(500, "no"))
    servers.next.will(packed(servers.next))
    async with prm(servers) as model:
        search = model.routed(servers.key)
        # One, if it is the server that was tried at the start.
        begun = next(s for s in model.replicas() if s.name == name_of(servers.own)).requests
        found = await asyncio.gather(*(search.rows((1, i), (1,)) for i in range(6)))
        assert [dict(rows.scores) for rows in found] == [{1: 1.0}] * 6
        own = next(s for s in model.replicas() if s.name == name_of(servers.own))
        assert (own.requests - begun, own.failures, own.moved) == (1, 1, 6)
        servers.own.will(refusal(400, "too long"))
        with pytest.raises(ScorerError, match="too long"):
            await search.rows((1, 2), (1,))


async def test_a_search_asks_all_its_models_by_the_conversation(servers: Servers) -> None:
    async with prm(servers) as model, policy(servers) as engine:
        models = Models(engine, shipped()["default"], model, judge=engine)
        assert models.remote == {"policy": engine, "prm": model, "judge": engine}
        opening = [Message("user", "24?")]
        later = [*opening, Message("assistant", "6*4"), Message("user", "Why?")]
        first, second = models.routed(opening), models.routed(later)
        assert isinstance(first.policy, HttpEngine) and isinstance(second.policy, HttpEngine)
        assert first.policy._route.key == second.policy._route.key
        assert isinstance(first.prm, HttpPrm)
        assert first.prm._route.key == first.policy._route.key
        other = models.routed([Message("user", "25?")]).policy
        assert isinstance(other, HttpEngine) and other._route.key != first.policy._route.key
