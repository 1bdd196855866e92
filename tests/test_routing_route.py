"""Where a search's requests go: to its own server, or to the next in its own order."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from server.config import HttpSettings
from server.engines import Routing
from server.errors import EngineDead, EngineError
from server.routing.fleet import Fleet
from server.routing.replica import Replica
from server.routing.route import Route
from server.types import Load


def busy(replica: Replica, requests: int) -> None:
    replica.in_flight = requests


def rank(servers: Fleet, key: bytes) -> tuple[Route, list[Replica]]:
    route = Route(servers, key)
    return route, route.servers()


@pytest.fixture
async def trio() -> AsyncIterator[Fleet]:
    """Three servers of which none runs, that are taken for up."""
    urls = [f"http://127.0.0.1:{port}/v1" for port in (1, 2, 3)]
    routing = Routing(factor=1.25, floor=32)
    settings = HttpSettings(url=urls[0], urls=tuple(urls[1:]), model="remote", routing=routing)
    servers = Fleet(settings, error=EngineError, dead=EngineDead)
    await servers._find()
    for replica in servers.replicas:
        replica.up = True
    yield servers
    await servers.close()


async def test_a_search_stays_until_its_server_is_hot(trio: Fleet) -> None:
    route, (first, second, third) = rank(trio, b"k")
    busy(first, 31)
    assert route.choose() is first, "below the floor nothing is hot"
    busy(first, 32)
    assert route.choose() is second
    assert (first.spilled, second.spilled) == (1, 0)
    for replica in trio.replicas:
        busy(replica, 60)
    assert route.choose() is first, "so many are no more than the others have"
    busy(first, 200)
    assert route.choose() is second
    busy(second, 200)
    assert route.choose() is third


async def test_a_full_cache_and_the_requests_of_others_are_hot_too(trio: Fleet) -> None:
    route, (first, second, third) = rank(trio, b"k")
    first.gauges.used = 0.95
    assert route.choose() is second
    second.gauges.used = 0.7
    assert route.choose() is third, "what spills over needs room for its prefix"
    second.gauges.used = 0.0
    second.gauges.others = 40
    assert route.choose() is third
    third.gauges.used = 0.9
    assert route.choose() is first, "where none has room, its own has its prefix"


async def test_without_a_key_the_least_busy_is_asked(trio: Fleet) -> None:
    a, b, c = trio.replicas
    for replica, requests in ((a, 2), (b, 1), (c, 3)):
        busy(replica, requests)
    assert Route(trio).choose() is b
    assert not any(r.spilled for r in trio.replicas)


async def test_those_that_are_left_alone_are_asked_only_if_all_are(trio: Fleet) -> None:
    route, (first, second, third) = rank(trio, b"k")
    first.up = False
    assert route.choose() is second
    second.up = third.up = False
    assert route.choose() is first
    assert first.spilled == 0


async def test_a_search_may_be_kept_to_some_of_them(trio: Fleet) -> None:
    """As to those that serve the weights that it began with."""
    _, (_, second, third) = rank(trio, b"k")
    second.version = third.version = "v2"

    def admits(replica: Replica) -> bool:
        return replica.version == "v2"

    route = Route(trio, admits=admits).keyed(b"k")
    assert route.servers() == [second, third]
    busy(second, 32)
    assert route.choose() is third
    third.version = "v3"
    assert route.choose() is second, "its bound is that of those it may be sent to"
    second.version = "v3"
    with pytest.raises(EngineDead, match="may serve this search"), route.errand().begun():
        pass


async def test_those_that_come_are_ranked_at_once(trio: Fleet) -> None:
    route, before = rank(trio, b"k")
    trio.replicas = [r for r in trio.replicas if r is not before[0]]
    assert route.servers() == before[1:]


async def test_the_load_of_all(trio: Fleet) -> None:
    a, b, c = trio.replicas
    a.upstream.running, b.upstream.running, c.upstream.waiting = 3, 4, 2
    assert trio.load() == Load(7, 2, 3 * 256)
    a.gauges.used, a.gauges.tokens, a.gauges.preempted = 0.9, 1000, 5
    b.gauges.used, b.gauges.tokens = 0.1, 1000
    assert trio.load() == Load(7, 2, 768, kv=0.5, kv_tokens=3000, preempted=5)
    a.upstream.running = b.upstream.running = 0
    assert trio.load() == Load(0, 2, 768)
