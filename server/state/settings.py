"""Where replicas keep what they share: `redis` of the settings; unset: in the one process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    model_validator,
)

SCHEMES = ("redis", "rediss", "unix")


def _is_redis(url: SecretStr) -> SecretStr:
    """Never tells the address, in which there may be a password."""
    parts = urlsplit(url.get_secret_value())
    named = parts.path if parts.scheme == "unix" else parts.hostname
    if parts.scheme not in SCHEMES or not named:
        raise ValueError(
            "must be like redis://host:6379/0, rediss://host:6379/0 (TLS) or unix:///path"
        )
    if parts.query or parts.fragment:
        raise ValueError("must have no ?query and no #fragment: there are settings for those")
    return url


class RedisSettings(BaseModel):
    """A Redis 7.0 or newer, or a Valkey; one server, not a cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    url: Annotated[SecretStr, AfterValidator(_is_redis)] = Field(
        description="redis://host:6379/0, rediss:// for TLS, or unix:///path; may hold user:secret"
    )
    username: str | None = Field(None, description="of an ACL; not where the url has one")
    password: SecretStr | None = Field(None, description="not where the url has one")
    password_file: Path | None = Field(
        None,
        description="whose text is the password, read when it starts; such as a mounted Secret",
    )
    ca_file: Path | None = Field(None, description="rediss: who signed; the system's if unset")
    prefix: Annotated[str, StringConstraints(pattern=r"^[\w.:/{}-]{0,64}$")] = Field(
        "ponder:", description="before every key: two deployments may share a server"
    )
    connect_seconds: float = Field(1.0, gt=0, le=60, description="to connect")
    seconds: float = Field(1.0, gt=0, le=60, description="for one command")
    connections: int = Field(64, ge=2, description="open at once, at most")
    check_seconds: float = Field(
        1.0,
        gt=0,
        le=60,
        description="between looks whether it answers; meanwhile none waits for it",
    )

    @model_validator(mode="after")
    def _one_password(self) -> RedisSettings:
        parts = urlsplit(self.url.get_secret_value())
        given = [bool(parts.password), self.password is not None, self.password_file is not None]
        if sum(given) > 1:
            raise ValueError("only one of password, password_file and the url may have a password")
        if parts.username and self.username:
            raise ValueError("only one of username and the url may have a user")
        if self.ca_file is not None and parts.scheme != "rediss":
            raise ValueError("ca_file is for rediss:// only")
        return self
