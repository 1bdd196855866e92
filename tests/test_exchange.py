"""Other weights while searches run: who waits, who finishes on what, and what is undone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from server.ask import BudgetSpec
from server.config import HttpSettings, Limits, Settings, WeightSettings
from server.errors import BadRequest, EngineError
from server.reward import Models
from server.search import Beam
from server.service import Service
from server.traces.schema import Trace
from server.types import Message
from tests.exchanging import FakeJudge, FakePolicy
from tests.serving import PROFILE, until
from tests.test_published import publish

ASKED = [Message("user", "Say something.")]


@dataclass
class World:
    """The real service over fakes that exchange their weights."""

    root: Path
    in_place: bool = True
    pace: float = 2e-4
    traces: list[Trace] = field(default_factory=list)
    told: list[tuple[str, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("v1", "v2", "v3", "bad", "p1", "p2", "badp"):
            (self.root / name).mkdir()
        home = self.root / "v1"
        self.policy = FakePolicy(pace=self.pace, in_place=self.in_place, home=home)
        self.prm = FakeJudge(delay=1e-3, in_place=self.in_place, version="p1")
        self.prm.home = self.root / "p1"
        self.prm.device.loaded = "p1"
        settings = Settings(
            policy=HttpSettings(url="http://nowhere", model="fake"),
            limits=Limits(searches=4),
            weights=WeightSettings(folder=self.root / "published"),
        )
        models = Models(self.policy, PROFILE, self.prm)
        self.service = Service(settings, models, traces=self, observer=self)
        self.weights = self.service.weights

    def put(self, trace: Trace) -> None:
        self.traces.append(trace)

    def queued(self, waiting: int) -> None: ...

    def started(self, ask: Any) -> None: ...

    def finished(self, ask: Any, usage: Any, error: Any) -> None: ...

    def took(self, tenant: str, tokens: int) -> None: ...

    def refused(self, tenant: str, limit: str) -> None: ...

    def uncounted(self, away: str) -> None: ...

    def serves(self, part: str, version: str) -> None:
        self.told.append((part, version))

    def exchanged(self, part: str, outcome: str, seconds: float) -> None:
        self.told.append((part, outcome))

    async def load(self, **parts: str) -> None:
        await self.weights.load({p: str(self.root / name) for p, name in parts.items()})  # type: ignore[misc]

    async def search(self, seconds: float = 60.0, seed: int = 1) -> Trace:
        ask = self.service.prepare(
            messages=ASKED, strategy=Beam(width=2, branch=2), budget=BudgetSpec(seconds=seconds),
            seed=seed,
        )  # fmt: skip
        return (await self.service.reason(ask)).trace

    @property
    def versions(self) -> tuple[str, ...]:
        return tuple(s.version for s in self.weights.serving.values())

    @property
    def running(self) -> bool:
        return self.service.models.policy.load().running > 0


def of(trace: Trace) -> tuple[str, str]:
    """The weights of a search; each of its steps must have them."""
    spans = {s.version for n in trace.nodes for s in n.policy_version_spans}
    assert spans == {trace.versions.policy_version}
    return trace.versions.policy_version, trace.versions.scorer_version


@asynccontextmanager
async def searching(it: World, at_once: int = 8) -> AsyncIterator[list[Trace]]:
    """Searches one after another, so many at a time, until the block is left."""
    done: list[Trace] = []
    over = asyncio.Event()

    async def one(seed: int) -> None:
        while not over.is_set():
            done.append(await it.search(seed=seed))

    async with asyncio.TaskGroup() as group:
        for seed in range(at_once):
            group.create_task(one(seed))
        await until(lambda: len(done) > 2)
        yield done
        seen = len(done)
        await until(lambda: len(done) > seen + 2 * at_once)
        over.set()


async def settled(it: World) -> None:
    while it.weights._tasks:
        await asyncio.wait(it.weights._tasks)


@pytest.mark.parametrize("in_place", [True, False])
async def test_searches_keep_the_weights_they_began_with(tmp_path: Path, in_place: bool) -> None:
    it = World(tmp_path, in_place)
    async with searching(it) as done:
        await it.load(policy="v2", prm="p2")
        assert it.versions == ("v2", "p2")
        await asyncio.sleep(0.02)
        await it.load(policy="v3")
    pairs = {of(trace) for trace in done}
    assert pairs >= {("v1", "p1"), ("v3", "p2")} and pairs <= {
        ("v1", "p1"), ("v2", "p2"), ("v3", "p2"),
    }  # fmt: skip
    await settled(it)
    assert it.policy.device.open == it.prm.device.open == 1
    await it.weights.close()
    assert it.policy.device.open == it.prm.device.open == 0


async def test_beside_nothing_waits(tmp_path: Path) -> None:
    it = World(tmp_path, in_place=False, pace=1e-3)
    long = asyncio.create_task(it.search())
    await until(lambda: it.running)
    await it.load(policy="v2")
    assert not long.done() and not it.policy.closed
    assert of(await it.search(seed=3))[0] == "v2"
    assert of(await long)[0] == "v1"
    await settled(it)
    assert it.policy.closed and it.policy.device.open == 1


async def test_in_place_those_that_come_wait(tmp_path: Path) -> None:
    it = World(tmp_path, pace=1e-3)
    long = asyncio.create_task(it.search())
    await until(lambda: it.running)
    loading = asyncio.create_task(it.load(policy="v2"))
    await until(lambda: it.service._admission._pauses > 0)
    traces = await asyncio.gather(*(it.search(seed=s) for s in range(6)))
    assert loading.done() and of(await long)[0] == "v1"
    assert {of(trace)[0] for trace in traces} == {"v2"}


async def test_what_is_bad_is_refused_before_anything_changes(tmp_path: Path) -> None:
    it = World(tmp_path)
    for wanted, part in (({"policy": "v2", "prm": "badp"}, "prm"), ({"policy": "bad"}, "policy")):
        with pytest.raises(BadRequest, match="is bad") as error:
            await it.load(**wanted)
        assert error.value.param == part
    assert it.versions == ("v1", "p1") and it.policy.device.exchanges == 0
    assert of(await it.search()) == ("v1", "p1")


@pytest.mark.parametrize("in_place", [True, False])
async def test_two_parts_go_over_together_or_not_at_all(tmp_path: Path, in_place: bool) -> None:
    it = World(tmp_path, in_place)
    it.prm.device.fails = True
    async with searching(it) as done:
        with pytest.raises(EngineError, match="did not load"):
            await it.load(policy="v2", prm="p2")
    assert {of(trace) for trace in done} == {("v1", "p1")}
    assert it.versions == ("v1", "p1")
    assert it.policy.device.loaded == "v1" and it.policy.device.open == 1
    await it.load(policy="v2", prm="p2")
    assert it.versions == ("v2", "p2")


async def test_a_version_that_served_is_called_by_its_name(tmp_path: Path) -> None:
    it = World(tmp_path)
    await it.load(policy="v2")
    await it.weights.load({"policy": "v1"})
    assert it.versions == ("v1", "p1") and it.policy.device.loaded == "v1"


async def test_a_promoted_version_is_called_by_its_name(tmp_path: Path) -> None:
    it = World(tmp_path)
    publish(tmp_path / "published", "v7")
    publish(tmp_path / "published", "v8", at=None)
    await it.weights.load({"policy": "v7"})
    assert it.versions == ("v7", "p1")
    for name in ("v8", "no/such/folder", "v9"):
        with pytest.raises(BadRequest, match=r"neither a version .* nor a folder"):
            await it.weights.load({"policy": name})


async def test_what_serves_already_is_left_alone(tmp_path: Path) -> None:
    it = World(tmp_path)
    await it.load(policy="v1", prm="p2")
    assert it.policy.device.exchanges == 0 and it.versions == ("v1", "p2")


async def test_exchanges_come_one_after_the_other(tmp_path: Path) -> None:
    it = World(tmp_path)
    async with searching(it) as done:
        await asyncio.gather(*(it.load(policy=v) for v in ("v2", "v3", "v2", "v1")))
    assert it.versions[0] == "v1" and it.policy.device.exchanges == 4
    assert {of(trace)[0] for trace in done} <= {"v1", "v2", "v3"}


async def test_who_asks_may_leave(tmp_path: Path) -> None:
    it = World(tmp_path)
    asked = asyncio.create_task(it.load(policy="v2"))
    await asyncio.sleep(0.01)
    asked.cancel()
    await settled(it)
    assert it.versions[0] == "v2"


async def test_a_part_that_is_not_there_or_elsewhere(tmp_path: Path) -> None:
    it = World(tmp_path)
    settings = it.service.settings
    alone = Service(settings, Models(it.policy, PROFILE))
    with pytest.raises(BadRequest, match="has no prm"):
        await alone.weights.load({"prm": str(tmp_path / "p2")})


async def test_the_observer_is_told(tmp_path: Path) -> None:
    it = World(tmp_path)
    await it.load(policy="v2")
    with pytest.raises(BadRequest):
        await it.load(prm="badp")
    it.policy.device.fails = True
    with pytest.raises(EngineError):
        await it.load(policy="v3")
    assert it.told == [
        ("policy", "v1"), ("prm", "p1"), ("policy", "v2"), ("policy", "loaded"),
        ("prm", "refused"), ("policy", "failed"),
    ]  # fmt: skip
