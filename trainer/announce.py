"""What is promoted is announced to all that share a Redis, which they follow."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from pydantic import ValidationError

from server.errors import StateError
from server.published import MOMENT, STABLE, Kind
from server.state.announced import Announced, Announcement
from server.state.connection import Connection
from server.state.settings import RedisSettings
from trainer.errors import ConfigError, ReloadError

PREFIX = "PONDER_REDIS__"  # as servers name the other settings of their Redis


def announce(url: str, kind: Kind, folder: Path) -> None:
    """The promoted version in `folder`. Raises `ConfigError`, `ReloadError`."""
    at = MOMENT.validate_python((folder / STABLE).read_text().strip())
    asyncio.run(_announce(_settings(url), kind, Announcement(version=folder.name, at=at)))


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


def _settings(url: str) -> RedisSettings:
    """The prefix, password and the like are those that servers take from the environment."""
    named = {name: os.environ.get(PREFIX + name.upper()) for name in RedisSettings.model_fields}
    given = {name: value for name, value in named.items() if value is not None}
    try:
        return RedisSettings.model_validate(given | {"url": url})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ConfigError(f"redis.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
