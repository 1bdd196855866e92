"""What replicas share, and where: in one process (`redis` unset), or in Redis or Valkey."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
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
TLS_FILES = ("ca_file", "cert_file", "key_file")


def _is_redis(url: SecretStr) -> SecretStr:
    """Never tells the address, in which there may be a password."""
    parts = urlsplit(url.get_secret_value())
    try:
        named = parts.path if parts.scheme == "unix" else parts.hostname and parts.port != 0
    except ValueError:  # tells what it takes for a port
        named = None
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
    ca_file: Path | None = Field(
        None, description="rediss: PEM of who signed its certificate; the system's if unset"
    )
    cert_file: Path | None = Field(
        None, description="rediss: PEM of the certificate that it asks its clients for"
    )
    key_file: Path | None = Field(None, description="rediss: PEM of that one's key")
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
    def _agrees(self) -> RedisSettings:
        parts = urlsplit(self.url.get_secret_value())
        given = [bool(parts.password), self.password is not None, self.password_file is not None]
        if sum(given) > 1:
            raise ValueError("only one of password, password_file and the url may have a password")
        if parts.username and self.username:
            raise ValueError("only one of username and the url may have a user")
        for name in TLS_FILES:
            if getattr(self, name) is not None and parts.scheme != "rediss":
                raise ValueError(f"{name} is for rediss:// only")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        return self


class Quota(BaseModel):
    """What one key's searches may take; unset: as much as they like."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    requests_per_minute: int | None = Field(None, ge=1, description="searches; refills steadily")
    tokens_per_minute: int | None = Field(
        None, ge=1, description="that the policy generates; refills steadily"
    )
    tokens_per_day: int | None = Field(None, ge=1, description="the same; days of UTC")

    def over(self, default: Quota) -> Quota:
        """This one, with `default`'s where it says nothing."""
        own = {name: getattr(self, name) for name in self.model_fields_set}
        return Quota(**{name: getattr(default, name) for name in Quota.model_fields} | own)

    @property
    def unlimited(self) -> bool:
        return all(getattr(self, name) is None for name in Quota.model_fields)


class QuotaSettings(Quota):
    """Of every key that does not say otherwise itself."""

    away: Literal["local", "open", "closed"] = Field(
        "local",
        description="while Redis does not answer. local: each replica counts for itself, from what "
        "it last knew; open: nothing is refused; closed: searches under a quota are, with 503",
    )


class IdempotencySettings(BaseModel):
    """What becomes of a request that is sent again (`server/api/once.py`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    enabled: bool = True
    # Replies are in the Redis that traces and quotas need, which must not run full.
    seconds: float = Field(3600.0, gt=0, description="that the reply to an Idempotency-Key is kept")
    sdk_retries: bool = Field(
        True, description="recognize retries of OpenAI's SDKs, which send no key"
    )
    sdk_seconds: float = Field(120.0, gt=0, description="that a reply is kept for those")
    linger_seconds: float = Field(
        30.0, ge=0, description="that a search with a key goes on without its client"
    )
    sdk_linger_seconds: float = Field(
        10.0, ge=0, description="the same for an SDK's search, before a reply begins"
    )
    lease_seconds: float = Field(
        15.0, ge=0.1, description="until others take over from a replica that died"
    )
    reply_bytes: int = Field(256 << 10, ge=1024, description="a larger reply is not kept")
    memory_bytes: int = Field(
        64 << 20, ge=1 << 20, description="for replies, where there is no Redis"
    )
