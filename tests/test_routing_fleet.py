"""The servers of one model: which there are, which are left alone, and which come back."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from starlette.types import Receive, Send

from server.config import HttpSettings
from server.errors import EngineDead, EngineError
from server.routing.addresses import lookup, places
from server.routing.fleet import Fleet
from server.routing.replica import LONGER, Replica
from server.routing.route import Route
from server.types import Load
from tests.scripted import Reply, Scripted, document, free_port, refusal, serving
from tests.serving import until

ANSWER = {"done": True}


@pytest.fixture
async def pair() -> AsyncIterator[list[Scripted]]:
    """Two servers."""
    async with AsyncExitStack() as stack:
        both = [Scripted(), Scripted()]
        for server in both:
            server.url = await stack.enter_async_context(serving(server))
        yield both


def settings(*urls: str, routing: dict[str, Any] | None = None, **more: Any) -> HttpSettings:
    known: dict[str, Any] = {"url": urls[0], "urls": urls[1:], "model": "remote", "retries": 0}
    return HttpSettings.model_validate(
        known | {"routing": {"probe_seconds": 0.01} | (routing or {})} | more
    )


@asynccontextmanager
async def fleet(*urls: str, **more: Any) -> AsyncIterator[Fleet]:
    look_up = more.pop("look_up", lookup)
    found = Fleet(settings(*urls, **more), error=EngineError, dead=EngineDead, look_up=look_up)
    try:
        await found.start()
        yield found
    finally:
        await found.close()


def of(servers: Fleet, server: Scripted) -> Replica:
    return next(r for r in servers.replicas if r.place.url == server.url)


async def test_each_is_asked_what_it_serves(pair: list[Scripted]) -> None:
    async with fleet(*(s.url for s in pair)) as servers:
        assert [r.name for r in servers.replicas] == [
            s.url.removeprefix("http://").removesuffix("/v1") for s in pair
        ]
        assert [(r.up, r.version, r.models) for r in servers.replicas] == [
            (True, "step-7", frozenset({"remote"}))
        ] * 2
        assert servers.load() == Load(0, 0, 512)


async def test_one_that_serves_is_enough_to_start(
    pair: list[Scripted], caplog: pytest.LogCaptureFixture
) -> None:
    pair[1].pages["/v1/models"] = document({"data": [{"id": "other"}]})
    with caplog.at_level(logging.INFO):
        async with fleet(*(s.url for s in pair), f"http://127.0.0.1:{free_port()}/v1") as servers:
            assert [r.up for r in servers.replicas] == [True, False, False]
            assert servers.load().capacity == 256
    assert "no model 'remote'; served are ['other']" in caplog.text


async def test_none_that_serves_is_an_error(pair: list[Scripted]) -> None:
    gone = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(EngineDead, match="/v1/models"):
        async with fleet(gone, f"http://127.0.0.1:{free_port()}/v1"):
            pass
    pair[0].pages["/v1/models"] = document({"data": []})
    with pytest.raises(EngineError, match="no model 'remote'"):
        async with fleet(pair[0].url, gone):
            pass


async def post(replica: Replica) -> Any:
    return await replica.post("/v1/x", {})


async def failing(server: Scripted, replica: Replica, times: int, status: int = 500) -> None:
    for _ in range(times):
        server.will(refusal(status, "no"))
        with pytest.raises(EngineError):
            await post(replica)


async def test_failures_in_a_row_have_it_left_alone_until_it_answers(pair: list[Scripted]) -> None:
    server, other = pair
    async with fleet(server.url, other.url) as servers:
        replica = of(servers, server)
        await failing(server, replica, 2)
        server.will(document(ANSWER))
        assert await post(replica) == ANSWER
        await failing(server, replica, 2)
        assert replica.up, "they were not in a row"
        server.pages["/health"] = refusal(503, "loading")
        server.will(refusal(500, "no"))
        with pytest.raises(EngineError):
            await post(replica)
        assert (replica.up, replica.failures, of(servers, other).up) == (False, 5, True)
        await until(lambda: replica.patience == LONGER * 0.01)
        assert not replica.up
        card = {"id": "remote", "root": "/weights/step-8", "max_model_len": 512}
        server.pages["/v1/models"] = document({"data": [card]})
        server.pages["/health"] = document({})
        await until(lambda: replica.up)
        assert (replica.version, servers.version) == ("step-8", "step-8")


async def test_one_that_comes_back_and_fails_again_is_left_alone_for_longer(
    pair: list[Scripted],
) -> None:
    server = pair[0]
    async with fleet(server.url, pair[1].url) as servers:
        replica = of(servers, server)
        rests = []
        for _ in range(5):
            await failing(server, replica, 3)
            assert not replica.up
            rests.append(replica.patience)
            await until(lambda: replica.up)
        assert rests == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.08])
        server.will(document(ANSWER))
        await post(replica)
        assert replica.patience == 0


async def test_enough_to_do_and_a_wrong_request_are_no_failures(pair: list[Scripted]) -> None:
    async with fleet(pair[0].url, pair[1].url) as servers:
        replica = of(servers, pair[0])
        await failing(pair[0], replica, 4, 429)
        await failing(pair[0], replica, 4, 400)
        assert (replica.up, replica.failures, replica.requests) == (True, 0, 8)


async def test_one_that_lost_the_model_is_left_alone_until_all_is_done_that_it_takes(
    pair: list[Scripted],
) -> None:
    """As a server that started anew lacks an adapter."""
    told: list[str] = []

    async def tell(replica: Replica) -> None:
        told.append(replica.name)

    async with fleet(pair[0].url, pair[1].url) as servers:
        route = Route(servers)
        first = route.servers()[0]
        await servers.prepare(tell)
        told.clear()
        for server in pair:
            lost = refusal(404, "no such model")
            server.will(*[lost if of(servers, server) is first else document(ANSWER)] * 3)
        for _ in range(3):
            assert await route.post("/v1/x", {}) == ANSWER
        assert (first.moved, first.failures) == (3, 3)
        await until(lambda: told == [first.name] and first.up)


async def test_one_that_works_is_ready_for_all(pair: list[Scripted]) -> None:
    async with fleet(pair[0].url, pair[1].url) as servers:
        pair[0].pages["/health"] = refusal(503, "loading")
        await servers.check()
        pair[1].pages["/health"] = refusal(503, "loading")
        with pytest.raises(EngineDead, match="loading"):
            await servers.check()


def after(event: asyncio.Event, reply: Reply) -> Reply:
    async def late(receive: Receive, send: Send) -> None:
        await event.wait()
        await reply(receive, send)

    return late


async def test_one_that_does_not_answer_keeps_no_other_from_being_ready(
    pair: list[Scripted],
) -> None:
    """Whichever of them it is."""
    async with fleet(pair[0].url, pair[1].url, connect_timeout=60) as servers:
        for silent, other in (pair, pair[::-1]):
            silent.pages["/health"] = silent.hanging()
            other.pages["/health"] = after(silent.waiting, document({}))
            async with asyncio.timeout(10):
                await servers.check()
                await silent.dropped.wait()
        assert [r.up for r in servers.replicas] == [True, True]


async def test_what_is_to_be_done_before_one_serves(pair: list[Scripted]) -> None:
    told: list[str] = []

    async def tell(replica: Replica) -> None:
        told.append(replica.name)

    async with fleet(*(s.url for s in pair)) as servers:
        first, second = servers.replicas
        await servers.prepare(tell)
        assert sorted(told) == sorted([first.name, second.name])
        await failing(pair[0], first, 3)
        await until(lambda: first.up)
        assert told[2:] == [first.name]
        servers.forget(tell)
        await failing(pair[0], first, 3)
        await until(lambda: first.up)
        assert len(told) == 3


async def test_what_cannot_be_done_everywhere_is_not_done_later(pair: list[Scripted]) -> None:
    async def refuse(replica: Replica) -> None:
        raise EngineError("not here")

    async with fleet(*(s.url for s in pair)) as servers:
        with pytest.raises(EngineError, match="not here"):
            await servers.prepare(refuse)
        await failing(pair[0], servers.replicas[0], 3)
        await until(lambda: servers.replicas[0].up)


NAME = "policy.test"


@asynccontextmanager
async def pods(*hosts: str) -> AsyncIterator[tuple[int, dict[str, Scripted]]]:
    """Servers at several addresses of this machine, all on one port, as pods are."""
    with socket.create_server((hosts[0], 0)) as listener:
        port = listener.getsockname()[1]
    async with AsyncExitStack() as stack:
        servers = {host: Scripted() for host in hosts}
        for host, server in servers.items():
            server.url = await stack.enter_async_context(serving(server, host, port))
        yield port, servers


class Names:
    """A name service, of which a test says what it knows."""

    def __init__(self, *addresses: str):
        self.addresses = list(addresses)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> list[str]:
        assert host == NAME
        self.asked += 1
        if not self.addresses:
            raise OSError("Name or service not known")
        return self.addresses


def ups(servers: Fleet) -> list[str]:
    return sorted(r.name for r in servers.up)


async def test_each_address_of_a_name_is_a_server_as_they_come_and_go() -> None:
    hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    async with pods(*hosts) as (port, scripted):
        names = Names(*hosts[:2])
        url = f"http://{NAME}:{port}/v1"
        async with fleet(url, resolve_seconds=0.01, look_up=names) as servers:
            assert ups(servers) == [f"127.0.0.1:{port}", f"127.0.0.2:{port}"]
            scripted["127.0.0.2"].will(document(ANSWER))
            assert await post(servers.replicas[1]) == ANSWER
            assert scripted["127.0.0.2"].headers[0]["host"] == f"{NAME}:{port}"
            kept = servers.replicas[0]
            names.addresses = [hosts[2], hosts[0]]
            await until(lambda: ups(servers) == [f"127.0.0.1:{port}", f"127.0.0.3:{port}"])
            assert kept in servers.replicas, "it is the same one as before"
            names.addresses = []  # as while no pod is ready
            asked = names.asked
            await until(lambda: names.asked > asked + 2)
            assert len(ups(servers)) == 2


async def test_one_that_leaves_ends_what_it_has_begun() -> None:
    async with pods("127.0.0.1", "127.0.0.2") as (port, scripted):
        names = Names("127.0.0.1", "127.0.0.2")
        url = f"http://{NAME}:{port}/v1"
        async with fleet(url, resolve_seconds=0.01, look_up=names) as servers:
            leaving = servers.replicas[1]
            server = scripted["127.0.0.2"]
            server.will(server.hanging(b"data: {}\n\n"))
            with leaving.taken():
                async with leaving.events("/v1/x", {}) as events:
                    names.addresses = ["127.0.0.1"]
                    await until(lambda: leaving not in servers.replicas)
                    asked = names.asked
                    await until(lambda: names.asked > asked + 2)
                    assert await anext(events) == {}
                    assert leaving in servers._leaving
            await until(lambda: not servers._leaving)


async def test_a_name_without_addresses_is_an_error_at_the_start() -> None:
    with pytest.raises(EngineDead, match=r"policy\.test.*no address"):
        async with fleet(f"http://{NAME}:1/v1", resolve_seconds=1, look_up=Names()):
            pass


async def test_names_are_looked_up_by_the_system() -> None:
    assert "127.0.0.1" in await lookup("localhost", 80)
    with pytest.raises(OSError, match="is no name"):
        await lookup("a" * 70, 80)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://policy/v1", "10.0.0.9:80"),
        ("https://policy/v1/", "10.0.0.9:443"),
        ("http://policy:8000/a/v1", "10.0.0.9:8000/a"),
    ],
)
async def test_a_server_is_named_by_its_address(url: str, name: str) -> None:
    async def one(host: str, port: int) -> list[str]:
        assert host == "policy"
        return ["10.0.0.9"]

    async def six(host: str, port: int) -> list[str]:
        return ["fd00::9"]

    assert [p.name for p in await places(url, one)] == [name]
    assert [p.name for p in await places(url, six)] == [name.replace("10.0.0.9", "[fd00::9]")]
    assert [p.address for p in await places(url, None)] == [None]
