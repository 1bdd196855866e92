"""API keys: how one is made, and how the settings hold it: only ever as a hash.

A key of ours has 256 random bits. Nobody can try them all, so that one round of SHA-256 is as good
as a slow hash, and costs a request nothing.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)

from server.state.settings import Quota

HASHED = "sha256:"
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][\w.@-]{0,63}", re.ASCII)


def new_key() -> str:
    return f"ponder-{secrets.token_urlsafe(32)}"


def digest(key: str) -> bytes:
    """Keys are compared by digest, so that lengths tell nothing either."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def hashed(key: str) -> str:
    """As a settings file may hold it."""
    return HASHED + digest(key).hex()


def _hashed_at_once(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if not text.startswith(HASHED):
        if text != text.strip() or not text:
            raise ValueError("a key has neither spaces at its ends nor nothing at all in it")
        return SecretStr(hashed(text))
    if not _HASH.fullmatch(text):
        raise ValueError("a hash is sha256: and 64 digits of 0-9a-f, as `ponder key` writes it")
    return key


def _is_a_name(name: str) -> str:
    if not _NAME.fullmatch(name) or name.startswith("key-"):
        raise ValueError("a name is 1 to 64 letters, digits and . _ - @, and does not begin key-")
    return name


class KeySettings(BaseModel):
    """One who may enter. In place of an object its key alone may stand."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: Annotated[SecretStr, AfterValidator(_hashed_at_once)] = Field(
        description="its hash, of `ponder key`; or itself, of which only the hash is kept"
    )
    name: Annotated[str, AfterValidator(_is_a_name)] | None = Field(
        None,
        description="of its tenant, in traces, metrics and scheduling.weights; keys of the same "
        "name are one tenant's. key- and a part of its hash, if unset",
    )
    quota: Quota | None = Field(None, description="where it differs from quotas")

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, given: Any) -> Any:
        return {"key": given} if isinstance(given, str | SecretStr) else given

    @property
    def digest(self) -> bytes:
        return bytes.fromhex(self.key.get_secret_value().removeprefix(HASHED))

    @property
    def tenant(self) -> str:
        return self.name or f"key-{self.digest.hex()[:12]}"


def contradiction(keys: tuple[KeySettings, ...]) -> str | None:
    """What two entries say differently of the same key or tenant."""
    names: dict[bytes, str] = {}
    quotas: dict[str, Quota | None] = {}
    for key in keys:
        if names.setdefault(key.digest, key.tenant) != key.tenant:
            return f"one key has two names: {names[key.digest]}, {key.tenant}"
        if quotas.setdefault(key.tenant, key.quota) != key.quota:
            return f"the keys of {key.tenant} differ in their quota"
    return None
