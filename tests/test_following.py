"""What is promoted in a folder is served."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import pytest

from server.admission import Admission
from server.config import Limits
from server.engine.checkpoint import Checkpoint
from server.following import LONGEST, Failed, Follower
from server.promotions import Promotions
from server.published import Kind, Promoted
from server.reward import Models
from server.weights import Weights
from tests.exchanging import Exchange, FakeJudge, FakePolicy
from tests.serving import PROFILE, until
from tests.test_exchange import World
from tests.test_published import NOON, promote, publish


def following(tmp_path: Path) -> tuple[World, Follower, Path]:
    it, root = World(tmp_path), tmp_path / "published"
    return it, Follower(it.weights, Promotions(root), 0.01), root


async def test_the_newest_promoted_is_served_from_the_start_on(tmp_path: Path) -> None:
    it, follower, root = following(tmp_path)
    publish(root, "v5")
    publish(root, "v6", at=NOON + timedelta(hours=1))
    publish(root, "v7", at=None)
    publish(root, "p5", "prm")
    await follower.start()
    assert it.versions == ("v6", "p5")
    publish(root, "v8", at=NOON + timedelta(hours=2))
    await until(lambda: it.versions == ("v8", "p5"))
    await follower.close()


async def test_promoting_an_older_one_again_rolls_back(tmp_path: Path) -> None:
    it, follower, root = following(tmp_path)
    old = publish(root, "v5")
    publish(root, "v6", at=NOON + timedelta(hours=1))
    await follower.look()
    promote(old, NOON + timedelta(hours=2))
    await follower.look()
    assert it.versions[0] == "v5"


async def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    it, follower, root = following(tmp_path)
    await follower.look()
    publish(root, "v5")
    await follower.look()
    assert it.versions[0] == "v5"


async def test_what_is_refused_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    it, follower, root = following(tmp_path)
    publish(root, "bad")
    for _ in range(3):
        await follower.look()
    (said,) = caplog.records
    assert "policy bad: bad is bad" in said.message
    assert it.versions[0] == "v1"
    publish(root, "p5", "prm", NOON + timedelta(hours=1))
    await follower.look()
    assert it.versions == ("v1", "p5")


async def test_what_was_called_back_stays_back(tmp_path: Path) -> None:
    it, follower, root = following(tmp_path)
    publish(root, "v5")
    await follower.look()
    await it.weights.load({"policy": "v1"})
    publish(root, "p5", "prm")
    await follower.look()
    assert it.versions == ("v1", "p5")


async def test_a_part_that_this_server_lacks_keeps_no_other_from_it(tmp_path: Path) -> None:
    it, root = World(tmp_path), tmp_path / "published"
    weights = Weights(Models(it.policy, PROFILE), Admission(Limits(), {}))
    publish(root, "v5")
    publish(root, "p5", "prm")
    await Follower(weights, Promotions(root), 0.01).look()
    assert {part: s.version for part, s in weights.serving.items()} == {"policy": "v5"}


async def test_what_fails_in_passing_is_tried_again(tmp_path: Path) -> None:
    it, _, root = following(tmp_path)
    follower = Follower(it.weights, Promotions(root), 0.005, pause=0.02)
    it.policy.device.fails = True
    publish(root, "v5")
    publish(root, "p5", "prm")
    await follower.start()
    assert it.versions == ("v1", "p1")
    await until(lambda: it.versions == ("v5", "p5"))
    await follower.close()
    assert it.told.count(("policy", "failed")) == 1


async def test_what_failed_is_left_alone_for_a_while_and_stays_if_something_is_called(
    tmp_path: Path,
) -> None:
    it, follower, root = following(tmp_path)
    it.policy.device.fails = True
    publish(root, "v5")
    for _ in range(3):
        await follower.look()
    assert (it.told.count(("policy", "failed")), it.versions) == (1, ("v1", "p1"))
    publish(root, "p5", "prm")
    await follower.look()
    assert it.versions == ("v1", "p5"), "what is new does not wait for it"
    await it.load(policy="v2")
    follower._failed._due = 0.0
    await follower.look()
    assert it.versions == ("v2", "p5")


def test_what_fails_again_waits_for_twice_as_long() -> None:
    failed = Failed(10.0)
    serving: dict[Kind, str] = {"policy": "v1", "prm": "p1"}
    v5: dict[Kind, Promoted] = {"policy": Promoted(NOON, "v5", Path("v5"))}
    p5: dict[Kind, Promoted] = {"prm": Promoted(NOON, "p5", Path("p5"))}
    now, waits = 0.0, []
    for _ in range(11):
        assert failed.due(v5, now) == v5
        failed.add(v5, serving, now)
        waits.append(next(s for s in range(5000) if failed.due(v5, now + s)))
        now += waits[-1]
    assert waits[:4] == [10, 20, 40, 80] and waits[-1] == LONGEST
    assert failed.due(v5 | p5, now - 1) == p5
    failed.add(p5, serving, now)
    assert (failed.due(v5 | p5, now + 9), failed.due(v5 | p5, now + 10)) == ({}, v5 | p5)


@dataclass
class Servers:
    """Of one part, which go over when `gateways` of them have let them go."""

    version: str
    gateways: int = 2
    letting: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def go(self, version: str) -> None:
        self.letting += 1
        if self.letting == self.gateways:
            self.gone.set()
        await self.gone.wait()
        self.version = version


@dataclass
class Followed(Exchange):
    """A part as one gateway sees it: what is to come is `told` to it at a time of its own."""

    servers: Servers = field(default_factory=lambda: Servers("v1"))
    told: str = "v1"
    follows: bool = True

    async def coming(self) -> Checkpoint:
        return Checkpoint(Path(self.told), self.told, "fake", {})

    async def reread(self) -> str:
        return self.servers.version

    async def successor(self, found: Checkpoint) -> Self:
        await self.servers.go(found.version)
        return await super().successor(found)


@dataclass
class FollowedPolicy(Followed, FakePolicy): ...


@dataclass
class FollowedJudge(Followed, FakeJudge): ...


async def test_gateways_that_hear_of_the_parts_in_another_order_do_not_wait_for_one_another(
    tmp_path: Path,
) -> None:
    servers = {"policy": Servers("v1"), "prm": Servers("v1")}
    gateways: list[dict[str, Any]] = []
    followers: list[Follower] = []
    for _ in range(2):
        parts: dict[str, Any] = {
            "policy": FollowedPolicy(servers=servers["policy"]),
            "prm": FollowedJudge(servers=servers["prm"]),
        }
        weights = Weights(Models(parts["policy"], PROFILE, parts["prm"]), Admission(Limits(), {}))
        followers.append(Follower(weights, Promotions(None), 0.005))
        gateways.append(parts | {"weights": weights})
        await followers[-1].start()
    gateways[0]["policy"].told = "v2"
    gateways[1]["prm"].told = "v2"
    await until(lambda: all(s.letting == 1 for s in servers.values()))
    for it in gateways:
        it["policy"].told = it["prm"].told = "v2"
    serving = [it["weights"] for it in gateways]
    await until(lambda: all(s.version == "v2" for w in serving for s in w.serving.values()))
    assert [s.letting for s in servers.values()] == [2, 2], "each gateway went over once"
    for follower, it in zip(followers, gateways, strict=True):
        await follower.close()
        await it["weights"].close()
