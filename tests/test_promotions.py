"""What is to be served, by the folder and by a real Redis; and what is announced there."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from server.config import WeightSettings
from server.errors import StateError
from server.pod.settings import PodSettings
from server.pod.version import first
from server.promotions import Promotions
from server.published import MANIFEST, Promoted
from server.state.announced import KEY, Announced, Announcement
from server.state.connection import Connection
from tests.test_published import NOON, publish
from tests.valkey import Valkey

HOUR = timedelta(hours=1)
# As the target of a link: an `OSError` to all who look, as a volume that is away is.
UNREADABLE = "x" * 300


async def test_the_folder_alone(tmp_path: Path) -> None:
    promotions = Promotions(tmp_path)
    assert await promotions.newest() == {}
    first = publish(tmp_path, "a")
    publish(tmp_path, "c", at=None)
    assert await promotions.newest() == {"policy": Promoted(NOON, "a", first)}
    publish(tmp_path, "p", "prm")
    newest = await promotions.newest()
    assert {part: p.version for part, p in newest.items()} == {"policy": "a", "prm": "p"}
    assert promotions.versions() == {"policy": "a", "prm": "p"}


async def test_what_is_announced_is_followed_by_all_that_see_the_folder(
    tmp_path: Path, valkey: Valkey
) -> None:
    a, b = publish(tmp_path, "a"), publish(tmp_path, "b", at=None)
    connection = Connection(valkey.settings())
    async with connection.watched():
        announced = Announced(connection)
        promotions = Promotions(tmp_path, announced)
        assert (await promotions.newest())["policy"].folder == a
        await announced.announce("policy", Announcement(version="b", at=NOON + HOUR))
        assert (await promotions.newest())["policy"] == Promoted(NOON + HOUR, "b", b)
        assert await announced.all() == {"policy": Announcement(version="b", at=NOON + HOUR)}
        await announced.announce("policy", Announcement(version="new", at=NOON + 2 * HOUR))
        assert (await promotions.newest())["policy"].folder == b, "it is not in the folder yet"
        assert promotions.versions() == {"policy": "new"}
        new = publish(tmp_path, "new", at=None)
        assert (await promotions.newest())["policy"].folder == new
        publish(tmp_path, "marked", at=NOON + 3 * HOUR)
        assert (await promotions.newest())["policy"].version == "marked"


async def test_a_redis_that_goes_leaves_what_was_known(
    tmp_path: Path, valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    publish(tmp_path, "a")
    b = publish(tmp_path, "b", at=None)
    connection = Connection(valkey.settings())
    async with connection.watched():
        promotions = Promotions(tmp_path, Announced(connection))
        await Announced(connection).announce("policy", Announcement(version="b", at=NOON + HOUR))
        await promotions.newest()
        valkey.kill()
        for _ in range(3):
            assert (await promotions.newest())["policy"].folder == b
        assert len([r for r in caplog.records if r.message.startswith("announcements:")]) == 1
        valkey.start()  # with nothing in it
        await connection.check()
        assert (await promotions.newest())["policy"].folder == b
        assert (await Promotions(tmp_path).newest())["policy"].version == "a", "as one that starts"


async def test_a_folder_that_cannot_be_read_leaves_what_was_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    volume, root = tmp_path / "volume", tmp_path / "weights"
    publish(volume, "a")
    root.symlink_to(volume)
    promotions = Promotions(root)
    known = await promotions.newest()
    publish(volume, "b", at=NOON + HOUR)
    root.unlink()
    root.symlink_to(UNREADABLE)
    with pytest.raises(OSError):
        root.is_dir()
    for _ in range(3):
        assert await promotions.newest() == known
    assert promotions.versions() == {"policy": "a"}
    assert [r.message for r in caplog.records if r.message.startswith("published weights:")]
    root.unlink()
    root.symlink_to(volume)
    assert (await promotions.newest())["policy"].version == "b"
    assert len(caplog.records) == 1


async def test_a_server_starts_with_its_own_weights_where_those_promoted_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, model = tmp_path / "weights", "models/policy"
    settings = PodSettings(part="policy", weights=WeightSettings(folder=root))
    manifest = publish(root, "a") / MANIFEST
    manifest.unlink()
    manifest.symlink_to(UNREADABLE)
    assert await first(settings, model) == model
    assert "announced, but not served: a: " in caplog.text


async def test_what_is_no_announcement_is_told(valkey: Valkey) -> None:
    connection = Connection(valkey.settings())
    async with connection.watched():
        await connection.redis.hset(connection.key(KEY), "prm", b'{"version": "../../etc"}')
        with pytest.raises(StateError, match="ponder:weights, field prm: version: "):
            await Announced(connection).all()
