"""What is promoted is announced to all that share a Redis, which they follow."""

from __future__ import annotations

import asyncio
from pathlib import Path

from server.errors import StateError
from server.published import MOMENT, STABLE, Kind
from server.state.announced import Announced, Announcement
from server.state.connection import Connection
from server.state.settings import RedisSettings
from trainer.errors import ConfigError, ReloadError
from trainer.shared_redis import redis_settings


def announce(url: str, kind: Kind, folder: Path) -> None:
    """The promoted version in `folder`. Raises `ConfigError`, `ReloadError`."""
    at = MOMENT.validate_python((folder / STABLE).read_text().strip())
    asyncio.run(_announce(redis_settings(url), kind, Announcement(version=folder.name, at=at)))


async def _announce(settings: RedisSettings, kind: Kind, announcement: Announcement) -> None:
    try:
        connection = Connection(settings)
    except OSError as error:
        raise ConfigError(f"redis: {error}") from error
    try:
        await Announced(connection).announce(kind, announcement)
    except StateError as error:
        raise ReloadError(error.message) from error
    finally:
        await connection.redis.aclose()
