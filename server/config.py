"""What can be set. `server.settings` reads it from a file, the environment and flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, ValidationInfo, field_validator

from server.engines import EngineSettings, Frozen, HttpSettings, ProfileName, VllmSettings
from server.keys import KeySettings, contradiction
from server.profiles import Aggregate, Style
from server.state.settings import IdempotencySettings, QuotaSettings, RedisSettings

__all__ = [
    "EngineSettings",
    "Frozen",
    "HttpSettings",
    "Limits",
    "OrmSettings",
    "PrmSettings",
    "ProfileName",
    "Scheduling",
    "ServerSettings",
    "Settings",
    "TraceSettings",
    "VerifierSettings",
    "VllmSettings",
    "WeightSettings",
]


def _drafts_nothing(engine: EngineSettings) -> EngineSettings:
    if isinstance(engine, VllmSettings) and engine.draft_tokens:
        raise ValueError("draft_tokens is for a policy: a reward model writes nothing")
    return engine


ScorerEngine = Annotated[EngineSettings, AfterValidator(_drafts_nothing)]


class PrmSettings(Frozen):
    """The process reward model: in this process, or behind a remote vLLM.

    How it is read is in a profile: that of `engine.profile`, else the one shipped for its name,
    else its policy's. The other fields here take the place of that profile's.
    """

    engine: ScorerEngine
    style: Style | None = None
    step_token: str | None = None
    step: str | None = None
    separator: str | None = None
    prompt: str | None = None
    system: str | None = None
    good: str | None = None
    bad: str | None = None
    aggregate: Aggregate | None = None


class OrmSettings(Frozen):
    """An outcome reward model: a sequence classifier that reads a chat and its whole answer.

    Its score has no bounds. An answer is worth 1 / (1 + exp(-(score - center) / scale)).
    """

    engine: ScorerEngine
    system: str | None = Field(None, description="put before a chat that has no system message")
    center: float = Field(0.0, description="the score that is worth 0.5")
    scale: float = Field(1.0, gt=0, description="how much more is worth 0.73")


class Limits(Frozen):
    """What one request, and all of them together, may ask for."""

    tokens: int = Field(65_536, ge=1, description="policy tokens of one search, at most")
    seconds: float = Field(120.0, gt=0, description="of one search, at most, and the default")
    calls: int = Field(16_384, ge=1, description="scorer calls of one search, at most")
    width: int = Field(256, ge=1, description="n, beam width, branch, simulations in parallel")
    simulations: int = Field(1024, ge=1)
    depth: int = Field(512, ge=1, description="steps of an answer; longer ones are truncated")
    max_tokens: int = Field(8192, ge=1, description="of one answer")
    choices: int = Field(16, ge=1, description="`n` of a chat completion, best candidates")
    concurrency: int = Field(64, ge=1, description="engine requests of one search at once")
    searches: int = Field(64, ge=1, description="running at once")
    queue: int = Field(256, ge=0, description="waiting to run; beyond that 429")
    body_bytes: int = Field(1 << 20, ge=1024)
    header_count: int = Field(100, ge=8)


class Scheduling(Frozen):
    """How the policy is shared between searches (`server/engine/share.py`)."""

    enabled: bool = Field(True, description="false: every request goes straight to the engine")
    kv_high: float = Field(
        0.9, gt=0, le=1, description="share of the KV cache in use from which nothing new is begun"
    )
    kv_low: float = Field(
        0.8, ge=0, le=1, validate_default=True, description="and below which it is begun again"
    )
    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="by tenant, as traces name it; 1 where unset: 2 gets twice the tokens"
    )

    @field_validator("kv_low")
    @classmethod
    def _low_is_lower(cls, low: float, info: ValidationInfo) -> float:
        high = info.data.get("kv_high", 1.0)
        if low > high:
            raise ValueError(f"{low} is above kv_high, {high}")
        return low


def _is_webhook(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be like https://host/path/, without a query")
    return url


class VerifierSettings(Frozen):
    """What verifiers may take. Their processes are started when they are first needed."""

    workers: int = Field(2, ge=1, le=256, description="processes of a kind at work at once")
    seconds: float = Field(5.0, gt=0, description="to compare, match or validate one answer")
    python_seconds: float = Field(10.0, gt=0, description="for one program and all its tests")
    memory_bytes: int = Field(1 << 30, ge=1 << 28, description="of each process")
    sandbox: Literal["strict", "weak"] = Field(
        "strict",
        description="strict: programs run only where the kernel can keep them from files and "
        "the network (Linux with seccomp); weak: elsewhere too, with resource limits alone",
    )
    webhooks: tuple[Annotated[str, AfterValidator(_is_webhook)], ...] = Field(
        (), description="addresses that the http verifier may call, and all that lie below them"
    )
    webhook_seconds: float = Field(10.0, gt=0, description="without a byte from a webhook")


class TraceSettings(Frozen):
    """Where traces go. A crash loses at most what was written since the last fsync.

    With `redis` they go from there to a stream, which `ponder compact` writes to `store`.
    """

    enabled: bool = True
    folder: Path = Path("traces")
    fsync: Literal["always", "interval", "never"] = "interval"
    fsync_seconds: float = Field(1.0, gt=0)
    compact_rows: int = Field(1000, ge=1, description="traces in a Parquet file")
    queue: int = Field(10_000, ge=1, description="traces waiting to be written")
    store: Annotated[str, StringConstraints(min_length=1)] | None = Field(
        None,
        description="with redis: where compacted traces are, for all replicas; a folder, or a URL "
        "that fsspec opens, such as s3://bucket/traces",
    )
    compact_seconds: float = Field(
        60.0, gt=0, description="with redis: a trace waits so long for its file to be full"
    )
    claim_seconds: float = Field(
        60.0,
        gt=0,
        description="with redis: after such a silence another one does a compactor's work",
    )


class WeightSettings(Frozen):
    """Where new weights come from, while the server runs (`server/published.py`)."""

    folder: Path | None = Field(
        None,
        description="of policy/VERSION/ and prm/VERSION/, whose newest promoted ones are served",
    )
    seconds: float = Field(2.0, gt=0, description="between looks at the folder")


class ServerSettings(Frozen):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535, description="0: any free one")
    api_keys: tuple[KeySettings, ...] = Field((), description="none: no key is asked for")
    admin_keys: tuple[KeySettings, ...] = Field(
        (),
        validate_default=True,
        description="may also exchange weights, which none of the others may",
    )
    header_seconds: float = Field(10.0, gt=0, description="to send a request's head")
    body_seconds: float = Field(30.0, gt=0, description="to send a request's body")
    drain_seconds: float = Field(30.0, gt=0, description="for running searches at shutdown")
    docs: bool = True

    @field_validator("admin_keys")
    @classmethod
    def _agree(
        cls, admins: tuple[KeySettings, ...], info: ValidationInfo
    ) -> tuple[KeySettings, ...]:
        if problem := contradiction((*info.data.get("api_keys", ()), *admins)):
            raise ValueError(problem)
        return admins

    @property
    def keys(self) -> tuple[KeySettings, ...]:
        """All that open the guarded routes, if any does."""
        return (*self.api_keys, *self.admin_keys) if self.api_keys else ()


class Settings(Frozen):
    server: ServerSettings = ServerSettings()
    policy: EngineSettings
    prm: PrmSettings | None = None
    orm: OrmSettings | None = None
    judge: EngineSettings | None = Field(
        None, description="a model that rewards may ask for its opinion, beside the policy"
    )
    profile: ProfileName | None = Field(None, description="overrides the policy's")
    speculation: int = Field(
        0,
        ge=0,
        description="tokens that a branch may run ahead of its scorer, while the engine has room "
        "and at most 15 % of what is generated is thrown away; 0: none",
    )
    limits: Limits = Limits()
    scheduling: Scheduling = Scheduling()
    verifiers: VerifierSettings = VerifierSettings()
    traces: TraceSettings = TraceSettings()
    weights: WeightSettings = WeightSettings()
    quotas: QuotaSettings = QuotaSettings()
    idempotency: IdempotencySettings = IdempotencySettings()
    redis: RedisSettings | None = Field(
        None,
        validate_default=True,
        description="what several replicas share is kept there; unset: in this process",
    )

    @field_validator("redis")
    @classmethod
    def _store_needs_it(
        cls, redis: RedisSettings | None, info: ValidationInfo
    ) -> RedisSettings | None:
        traces = info.data.get("traces")
        if redis is None and traces is not None and traces.store is not None:
            raise ValueError("must be set where traces.store is: that is for several replicas")
        return redis
