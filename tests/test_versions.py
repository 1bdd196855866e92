"""Gateways and servers that follow announced weights: every search keeps the version that it began
with, all servers come to the new one, and no request fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from server.engines import HttpSettings
from server.errors import EngineDead, EngineError
from server.handover.held import Held
from server.promotions import Promotions
from server.routing.fleet import Fleet
from server.routing.route import Route
from server.routing.versions import Versions
from tests.pods import MODEL, FakeVllm, Running, running
from tests.scripted import Scripted, document, serving
from tests.serving import until
from tests.test_published import NOON, promote, publish

HOUR = timedelta(hours=1)
HOLD = 8.0  # seconds; a server that does not answer within a quarter of them is taken to be lost


@dataclass
class Gateway:
    """As a service does it: searches begin with what is served now, and are counted."""

    fleet: Fleet
    versions: Versions
    version: str = ""
    route: Route | None = None
    open: dict[str, int] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    number: int = 0

    async def start(self) -> None:
        await self.fleet.start()
        self._serve(await self.versions.start())

    def _serve(self, version: str) -> None:
        self.version, self.route = version, self.versions.route(version)

    async def aclose(self) -> None:
        await self.versions.close()
        await self.fleet.close()

    async def search(self, steps: int = 8, pause: float = 0.002) -> None:
        """Some requests, one after the other; each must have the same weights."""
        version, route = self.version, self.route
        assert route is not None
        self.number += 1
        route = route.keyed(self.number.to_bytes(4))
        self.open[version] = self.open.get(version, 0) + 1
        for _ in range(steps):
            assert (await route.post("/v1/completions", {}))["version"] == version
            await asyncio.sleep(pause)
        self.done.append(version)
        self.open[version] -= 1
        if version != self.version and not self.open[version]:
            await self.versions.left(version)

    async def follow(self) -> str:
        """Go over to what the servers say is coming."""
        coming = await self.versions.coming()
        if coming != self.version:
            assert not self.versions.drains(coming)
            await self.versions.go(coming)
            before = self.version
            self._serve(coming)
            if not self.open.get(before):
                await self.versions.left(before)
        return coming


@asynccontextmanager
async def gateway(*servers: Running, hold: float = HOLD) -> AsyncIterator[Gateway]:
    urls = [server.url for server in servers]
    settings = HttpSettings(url=urls[0], urls=tuple(urls[1:]), model=MODEL, retries=0)
    fleet = Fleet(settings, error=EngineError, dead=EngineDead)
    it = Gateway(fleet, Versions(fleet, hold=hold, renewal=0.02, poll=0.01))
    async with aclosing(it):
        await it.start()
        yield it


@asynccontextmanager
async def world(
    root: Path, servers: int, gateways: int, hold: float = HOLD
) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        there = [await stack.enter_async_context(running(Promotions(root))) for _ in range(servers)]
        ways = [
            await stack.enter_async_context(gateway(*there, hold=hold)) for _ in range(gateways)
        ]
        yield World(there, ways)


@dataclass
class World:
    servers: list[Running]
    gateways: list[Gateway]

    @asynccontextmanager
    async def searching(self, at_once: int = 6) -> AsyncIterator[None]:
        """Searches one after another at each gateway, until the block is left."""
        over = asyncio.Event()

        async def one(it: Gateway) -> None:
            while not over.is_set():
                await it.search()

        async with asyncio.TaskGroup() as group:
            for it in self.gateways * at_once:
                group.create_task(one(it))
            try:
                await until(lambda: all(len(it.done) > at_once for it in self.gateways))
                yield
                seen = [len(it.done) for it in self.gateways]
                await until(
                    lambda: all(
                        len(it.done) > n + 2 * at_once
                        for it, n in zip(self.gateways, seen, strict=True)
                    )
                )
            finally:
                over.set()

    async def followed(self, version: str) -> None:
        """By all gateways at once, as soon as the servers say so; and by all servers."""
        said = [s.pod.word() for s in self.servers]
        assert {word.goal for word in await asyncio.gather(*said)} == {version}
        assert {*await asyncio.gather(*(it.follow() for it in self.gateways))} == {version}
        held = [it.versions._handover for it in self.gateways]
        await until(lambda: all(len(h.serve(version)) == len(self.servers) for h in held))


@pytest.mark.parametrize(("servers", "gateways"), [(2, 1), (2, 3), (3, 2), (5, 2)])
async def test_all_go_over_and_back_under_load(tmp_path: Path, servers: int, gateways: int) -> None:
    old = publish(tmp_path, "v0")
    async with world(tmp_path, servers, gateways) as it:
        async with it.searching():
            publish(tmp_path, "v1", at=NOON + HOUR)
            await it.followed("v1")
            promote(old, NOON + 2 * HOUR)
            await it.followed("v0")
        assert [s.vllm.exchanges for s in it.servers] == [2] * servers
        for way in it.gateways:
            assert {"v0", "v1"} == set(way.done)


async def test_each_server_serves_again_afterwards(tmp_path: Path) -> None:
    async with world(tmp_path, 2, 1) as it:
        async with it.searching():
            publish(tmp_path, "v1")
            await it.followed("v1")
        (way,) = it.gateways
        assert way.route is not None
        await until(lambda: len(way.route.servers()) == 2)  # type: ignore[union-attr]


async def test_a_search_keeps_its_version_however_long_it_is(tmp_path: Path) -> None:
    async with world(tmp_path, 2, 1) as it:
        (way,) = it.gateways
        long = asyncio.create_task(way.search(steps=60, pause=0.01))
        await until(lambda: way.open.get("v0", 0) == 1)
        publish(tmp_path, "v1")
        await asyncio.gather(*(s.pod.look() for s in it.servers))
        await way.follow()
        assert not long.done() and way.version == "v1"
        assert sorted(s.pod.version for s in it.servers) == ["v0", "v1"]
        await way.search()
        assert way.done == ["v1"]
        await long
        assert way.done == ["v1", "v0"]
        await until(lambda: all(s.pod.version == "v1" for s in it.servers))


async def test_a_gateway_that_died_keeps_nobody_from_anything(tmp_path: Path) -> None:
    async with world(tmp_path, 2, 2, hold=2.0) as it:
        dead, alive = it.gateways
        assert dead.versions._handover._keeper is not None
        dead.versions._handover._keeper.cancel()
        publish(tmp_path, "v1")
        await asyncio.gather(*(s.pod.look() for s in it.servers))
        await alive.follow()
        await until(lambda: all(s.pod.version == "v1" for s in it.servers))


async def test_a_version_that_is_called_back_before_any_server_has_it(tmp_path: Path) -> None:
    old = publish(tmp_path, "v0")
    async with world(tmp_path, 2, 2) as it:
        going, other = it.gateways
        publish(tmp_path, "v1", at=NOON + HOUR)
        assert await going.versions.coming() == "v1"
        gone = asyncio.create_task(going.follow())  # which waits for the other
        await until(lambda: len(going.versions._handover.serve("v0")) == 1)
        promote(old, NOON + 2 * HOUR)
        with pytest.raises(EngineError, match="no server is to serve v1 any more"):
            await gone
        for way in (going, other):
            assert way.version == "v0"
            await way.search()
        await until(lambda: len(going.versions._handover.serve("v0")) == 2)
        assert [s.vllm.exchanges for s in it.servers] == [0, 0]


async def test_what_the_servers_refuse_is_not_gone_to(tmp_path: Path) -> None:
    async with world(tmp_path, 2, 1) as it:
        publish(tmp_path, "bad")
        await asyncio.gather(*(s.pod.look() for s in it.servers))
        (way,) = it.gateways
        assert await way.versions.coming() == "v0"


@pytest.mark.parametrize("known", [True, False])
async def test_a_server_that_refuses_keeps_no_other_from_going_over(
    tmp_path: Path, known: bool
) -> None:
    """It would be the first to be let go. It serves those that stay, though its refusal may be
    known only after it was let go."""
    async with world(tmp_path, 2, 1) as it:
        (way,) = it.gateways
        first, second = sorted(it.servers, key=lambda server: server.url)
        first.vllm.refuses.add("v1")
        long = asyncio.create_task(way.search(steps=60, pause=0.01))
        await until(lambda: way.open.get("v0", 0) == 1)
        if not known:
            first.vllm.may_look.clear()
        publish(tmp_path, "v1")
        await second.pod.look()
        if known:
            await first.pod.look()
        async with asyncio.timeout(20):
            going = asyncio.create_task(way.follow())
            if not known:
                held = way.versions._handover
                await until(lambda: [s.name in first.url for s in held.serve("v0")] == [False])
                first.vllm.may_look.set()
            await going
        assert (first.pod.version, second.pod.version, way.version) == ("v0", "v1", "v1")
        await way.search()
        await long
        assert sorted(way.done) == ["v0", "v1"]


async def test_a_server_that_was_never_held_is_asked_by_no_search(tmp_path: Path) -> None:
    """Its requests would carry no pin, and be answered by whatever it serves by then."""
    async with running(Promotions(tmp_path)) as server:
        settings = HttpSettings(url=server.url, model=MODEL)
        fleet = Fleet(settings, error=EngineError, dead=EngineDead)
        await fleet.start()
        held = Held(fleet.replicas[0])
        await held.ask()
        assert held.word is not None and held.word.version == "v0" and not held.serves("v0")
        await held.hold("v0")
        assert held.serves("v0")
        held.version = None  # lost
        assert held.serves("v0"), "it is pinned"
        await fleet.close()


async def test_a_single_server_takes_a_drain(tmp_path: Path) -> None:
    async with world(tmp_path, 1, 1) as it:
        (way,) = it.gateways
        await way.search()
        publish(tmp_path, "v1")
        assert await way.versions.coming() == "v1"
        assert way.versions.drains("v1")
        await way.versions.go("v1")
        assert it.servers[0].pod.version == "v1"


async def test_it_begins_with_what_is_to_be_served_where_a_server_has_it(tmp_path: Path) -> None:
    """A gateway that starts while others are half-way over."""
    async with world(tmp_path, 2, 1) as it:
        (way,) = it.gateways
        slow = asyncio.create_task(way.search(steps=100, pause=0.01))
        await until(lambda: way.open.get("v0", 0) == 1)
        publish(tmp_path, "v1")
        await asyncio.gather(*(s.pod.look() for s in it.servers))
        await way.follow()
        async with gateway(*it.servers) as late:
            assert late.version == "v1"
            await late.search()
        await slow


async def test_a_gateway_that_starts_while_the_only_server_goes_over_waits_for_it(
    tmp_path: Path,
) -> None:
    vllm = FakeVllm(load_seconds=0.3)
    async with running(Promotions(tmp_path), vllm) as server:
        publish(tmp_path, "v1")
        await until(lambda: server.pod.gate.is_shut)
        async with gateway(server) as way:
            assert way.version == "v1"
            await way.search()


async def test_servers_that_are_gone_are_not_waited_for(tmp_path: Path) -> None:
    """The half that is to go over first is lost: the other one, with no search on it, goes."""
    async with AsyncExitStack() as stack:
        ends = [AsyncExitStack() for _ in range(2)]
        there = [await end.enter_async_context(running(Promotions(tmp_path))) for end in ends]
        way = await stack.enter_async_context(gateway(*there))
        by_name = sorted(zip(there, ends, strict=True), key=lambda pair: pair[0].url)
        (_, lost), (kept, end) = by_name
        stack.push_async_callback(end.aclose)
        await lost.aclose()
        publish(tmp_path, "v1")
        await kept.pod.look()
        assert await way.versions.coming() == "v1" and not way.versions.drains("v1")
        with pytest.raises(EngineError, match="to go over to v1 first are gone"):
            await way.versions.go("v1")
        await way.search()
        assert way.versions.drains("v1")
        await way.versions.go("v1")
        assert (kept.pod.version, way.done) == ("v1", ["v0"])


async def test_a_server_that_started_anew_with_other_weights_gets_no_old_search(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, 2, 1) as it:
        (way,) = it.gateways
        new = it.servers[0]
        new.vllm.loaded = new.pod.version = "v7"  # as after a start
        for _ in range(10):
            await way.search(steps=3)
        assert way.route is not None
        await until(lambda: len(way.route.servers()) == 1)  # type: ignore[union-attr]


async def test_servers_that_follow_nothing_are_as_they_were() -> None:
    plain = Scripted()
    plain.pages["/v1/models"] = document({"data": [{"id": MODEL, "root": "/weights/step-7"}]})
    async with serving(plain) as url:
        fleet = Fleet(HttpSettings(url=url, model=MODEL), error=EngineError, dead=EngineDead)
        await fleet.start()
        versions = Versions(fleet)
        assert (await versions.start(), versions.follows) == ("step-7", False)
        assert versions.route("step-7").servers() == list(fleet.replicas)
        await versions.left("step-7")
        await versions.close()
        await fleet.close()


async def test_servers_of_both_kinds_are_refused(tmp_path: Path) -> None:
    plain = Scripted()
    plain.pages["/v1/models"] = document({"data": [{"id": MODEL}]})
    async with serving(plain) as url, running(Promotions(tmp_path), FakeVllm()) as ours:
        settings = HttpSettings(url=url, urls=(ours.url,), model=MODEL)
        fleet = Fleet(settings, error=EngineError, dead=EngineDead)
        await fleet.start()
        with pytest.raises(EngineError, match=r"others do not: \['127.0.0.1:"):
            await Versions(fleet).start()
        await fleet.close()
