"""A model profile by the name that a setting gives."""

from __future__ import annotations

from server.profiles import Profile, shipped
from trainer.errors import ConfigError


def named(profile: str, field: str) -> Profile:
    """Raises `ConfigError`, which names the setting `field`."""
    if profile not in shipped():
        raise ConfigError(f"{field}: {profile!r}; allowed are {', '.join(sorted(shipped()))}")
    return shipped()[profile]
