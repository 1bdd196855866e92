"""Quotas as a service sees them, and what becomes of them while Redis is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from server.errors import StateError
from server.keys import KeySettings
from server.state.connection import Connection
from server.state.quotas import Quotas
from server.state.settings import QuotaSettings
from server.state.standing import RateLimited, spell
from tests.serving import until
from tests.valkey import Valkey

DAILY = {"tokens_per_day": 1000}


@dataclass
class Seen:
    """An observer that remembers."""

    tokens: dict[str, int] = field(default_factory=dict)
    refusals: list[tuple[str, str]] = field(default_factory=list)
    away: list[str] = field(default_factory=list)

    def took(self, tenant: str, tokens: int) -> None:
        self.tokens[tenant] = self.tokens.get(tenant, 0) + tokens

    def refused(self, tenant: str, limit: str) -> None:
        self.refusals.append((tenant, limit))

    def uncounted(self, away: str) -> None:
        self.away.append(away)


async def search(
    quotas: Quotas, tokens: int, used: int | None = None, tenant: str | None = "a"
) -> dict[str, str]:
    """One that might take `tokens`; the headers of its reply."""
    told: dict[str, str] = {}
    async with quotas.held(tenant, tokens, 1.0, told.update) as hold:
        hold.used = tokens if used is None else used
    return told


def alone(**quota: Any) -> Quotas:
    return Quotas(QuotaSettings(**quota))


async def test_without_limits_nothing_is_counted_and_nothing_is_told() -> None:
    seen = Seen()
    assert await search(Quotas(QuotaSettings(), observer=seen), 10**9) == {}
    assert seen.tokens == {"a": 10**9}


async def test_the_headers_say_where_a_tenant_stands() -> None:
    quotas = alone(requests_per_minute=60, tokens_per_minute=6000, **DAILY)
    told = await search(quotas, 600)
    assert told["x-ratelimit-limit-requests"] == "60"
    assert told["x-ratelimit-remaining-requests"] == "59"
    assert told["x-ratelimit-reset-requests"] == "1s"
    assert told["x-ratelimit-limit-tokens"] == "6000"
    assert told["x-ratelimit-remaining-tokens"] == "5400"
    assert told["x-ratelimit-reset-tokens"] == "6s"
    assert told["x-ratelimit-limit-tokens-day"] == "1000"
    assert told["x-ratelimit-remaining-tokens-day"] == "400"
    assert "x-ratelimit-reset-tokens-day" in told


async def test_a_rate_is_refused_with_the_time_to_wait() -> None:
    quotas = alone(requests_per_minute=2)
    for _ in range(2):
        await search(quotas, 1)
    with pytest.raises(
        RateLimited, match="requests_per_minute: limit 2, 0 searches left"
    ) as caught:
        await search(quotas, 1)
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    assert caught.value.retry and caught.value.headers["retry-after"] == "30"
    assert caught.value.headers["x-ratelimit-remaining-requests"] == "0"


async def test_a_day_is_refused_until_midnight_and_not_tried_again() -> None:
    quotas = alone(**DAILY)
    await search(quotas, 900)
    with pytest.raises(RateLimited, match="1000, 100 tokens left, 200 asked for") as caught:
        await search(quotas, 200)
    assert caught.value.code == "insufficient_quota" and not caught.value.retry
    assert 0 < int(caught.value.headers["retry-after"]) <= 86_400


async def test_a_search_larger_than_the_limit_is_told_so() -> None:
    with pytest.raises(
        RateLimited, match=r"ask for fewer: a lower max_tokens or budget\.tokens"
    ) as e:
        await search(alone(tokens_per_minute=100), 101)
    assert e.value.code == "request_too_large" and not e.value.retry
    assert "retry-after" not in e.value.headers


async def test_each_tenant_has_its_own_and_a_key_may_differ_from_the_default() -> None:
    keys = (
        KeySettings.model_validate({"key": "x", "name": "rich", "quota": {"tokens_per_day": 5000}}),
        KeySettings.model_validate({"key": "y", "name": "free", "quota": {"tokens_per_day": None}}),
    )
    seen = Seen()
    quotas = Quotas(QuotaSettings(**DAILY), keys, observer=seen)
    for tenant, tokens in (("rich", 5000), ("free", 10**6), ("poor", 1000), (None, 1000)):
        await search(quotas, tokens, tenant=tenant)
    for tenant in ("rich", "poor", None):
        with pytest.raises(RateLimited):
            await search(quotas, 1, tenant=tenant)
    assert [who for who, _ in seen.refusals] == ["rich", "poor", "everyone"]


async def test_a_search_that_fails_or_is_cancelled_pays_for_what_it_used() -> None:
    quotas = alone(**DAILY)
    with pytest.raises(ZeroDivisionError):
        async with quotas.held("a", 1000, 1.0) as hold:
            hold.used = 300
            raise ZeroDivisionError
    began = asyncio.Event()

    async def searching() -> None:
        async with quotas.held("a", 700, 1.0) as hold:
            hold.used = 100
            began.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(searching())
    await began.wait()
    task.cancel()
    await asyncio.wait({task})
    await quotas.close()
    assert (await search(quotas, 600))["x-ratelimit-remaining-tokens-day"] == "0"


@asynccontextmanager
async def sharing(
    valkey: Valkey, observer: Seen | None = None, **quota: Any
) -> AsyncIterator[tuple[Quotas, Connection]]:
    """One replica's."""
    connection = Connection(valkey.settings())
    async with connection.watched():
        quotas = Quotas(QuotaSettings(**{**DAILY, **quota}), (), connection, observer)
        try:
            yield quotas, connection
        finally:
            await quotas.close()


async def test_replicas_have_one_quota(valkey: Valkey) -> None:
    async with sharing(valkey) as (first, _), sharing(valkey) as (second, _):
        await search(first, 800, used=500)
        assert (await search(second, 500))["x-ratelimit-remaining-tokens-day"] == "0"
        with pytest.raises(RateLimited):
            await search(first, 1)


async def remaining(quotas: Quotas) -> int:
    try:
        told = await search(quotas, 0)
    except RateLimited as error:
        told = dict(error.headers)
    return int(told["x-ratelimit-remaining-tokens-day"])


@pytest.mark.parametrize("away", ["local", "open", "closed"])
async def test_while_redis_is_away_the_policy_holds_and_afterwards_all_is_paid(
    durable_valkey: Valkey, away: str
) -> None:
    """A search runs while Redis is killed; then others begin; then it comes back."""
    seen = Seen()
    async with sharing(durable_valkey, seen, away=away) as (quotas, connection):
        async with quotas.held("a", 600, 1.0) as running:
            durable_valkey.kill()
            running.used = 200
        assert quotas.owed == 1
        if away == "closed":
            for _ in range(3):
                with pytest.raises(StateError):
                    await search(quotas, 1)
            assert quotas.owed == 1  # no search that was refused pushes it out
            used = 0
        elif away == "open":
            assert await search(quotas, 5000) == {}
            assert seen.away == ["open"]
            used = 5000
        else:
            await search(quotas, 300)  # it remembers that 600 were held
            with pytest.raises(RateLimited):
                await search(quotas, 200)
            assert seen.away == ["local", "local"]
            used = 300
        durable_valkey.start()
        await until(lambda: connection.up and quotas.owed == 0)
        await quotas.close()
        assert await remaining(quotas) == max(0, 1000 - 200 - used)


async def test_a_hold_that_redis_forgot_is_paid_all_the_same(valkey: Valkey) -> None:
    """It is started anew, empty, while a search runs."""
    async with sharing(valkey) as (quotas, connection):
        async with quotas.held("a", 600, 1.0) as running:
            valkey.kill()
            valkey.start()
            running.used = 200
        await until(lambda: connection.up and quotas.owed == 0)
        await quotas.close()
        assert await remaining(quotas) == 800


async def test_what_was_held_by_a_command_whose_answer_was_lost_is_given_back(
    valkey: Valkey,
) -> None:
    """The caller leaves while Redis is being asked."""
    async with sharing(valkey) as (quotas, _):
        for _ in range(20):
            task = asyncio.create_task(search(quotas, 900))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
        await quotas.close()
        assert await remaining(quotas) == 1000


async def test_what_a_full_redis_refused_is_paid_when_there_is_room(valkey: Valkey) -> None:
    """It answers all the while, so that nobody says it is back."""
    async with sharing(valkey) as (quotas, connection):
        await connection.redis.config_set("maxmemory", "1")
        await search(quotas, 100)
        await search(quotas, 200)
        assert quotas.owed == 2 and connection.up
        await connection.redis.config_set("maxmemory", "0")
        await search(quotas, 50)
        await until(lambda: quotas.owed == 0)
        await quotas.close()
        assert await remaining(quotas) == 650


async def test_two_may_pay_at_once(durable_valkey: Valkey) -> None:
    """As when Redis comes, goes and comes again."""
    async with sharing(durable_valkey) as (quotas, connection):
        durable_valkey.kill()
        for _ in range(3):
            await search(quotas, 100)
        durable_valkey.start()
        await connection.check()
        await asyncio.gather(*(quotas.pay() for _ in range(3)))
        assert quotas.owed == 0 and await remaining(quotas) == 700


async def test_a_server_that_is_not_there_at_the_start_is_found_later(
    durable_valkey: Valkey,
) -> None:
    durable_valkey.kill()
    async with sharing(durable_valkey) as (quotas, connection):
        assert not connection.up and connection.error
        await search(quotas, 100)
        durable_valkey.start()
        await until(lambda: connection.up and quotas.owed == 0)
        await quotas.close()
        assert await remaining(quotas) == 900


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0201, "21ms"), (1, "1s"), (59.5, "1m0s"), (360, "6m0s"), (7260, "2h1m0s")],
)
def test_a_time_is_spelled_as_openai_does(seconds: float, text: str) -> None:
    assert spell(seconds) == text
