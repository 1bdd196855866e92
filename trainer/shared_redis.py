"""The servers' Redis, as the trainer reaches it: by a URL, and the rest from the environment."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from pydantic import ValidationError

from server.state.settings import TLS_FILES, RedisSettings
from trainer.errors import ConfigError

PREFIX = "PONDER_REDIS__"  # as servers name the other settings of their Redis
USER, PASSWORDS = ("username",), ("password", "password_file")


def redis_settings(url: str) -> RedisSettings:
    """What the URL says goes before the environment. Raises `ConfigError`."""
    parts = urlsplit(url)
    known = {
        *(USER if parts.username else ()),
        *(PASSWORDS if parts.password else ()),
        *(TLS_FILES if parts.scheme != "rediss" else ()),
    }
    wanted = RedisSettings.model_fields.keys() - known
    named = {name: os.environ.get(PREFIX + name.upper()) for name in wanted}
    given = {name: value for name, value in named.items() if value is not None}
    try:
        return RedisSettings.model_validate(given | {"url": url})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ConfigError(f"redis.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
