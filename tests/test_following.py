"""What is promoted in a folder is served."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from server.following import Follower
from server.promotions import Promotions
from tests.serving import until
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
