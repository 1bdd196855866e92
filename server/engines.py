"""How a model is run: in this process, or behind servers that speak OpenAI's API."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from server.profiles import shipped


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _is_shipped(name: str) -> str:
    if name not in shipped():
        raise ValueError(f"no such profile; there are {', '.join(sorted(shipped()))}")
    return name


ProfileName = Annotated[str, AfterValidator(_is_shipped)]


class VllmSettings(Frozen):
    """A model run in this process by vLLM."""

    kind: Literal["vllm"] = "vllm"
    model: str = Field(description="a folder or a hub name")
    name: str | None = Field(None, description="what the API calls it; the folder's name if unset")
    profile: ProfileName | None = Field(
        None, description="a model profile; chosen by name if unset"
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_model_len: int | None = Field(None, ge=16)
    max_num_seqs: int = Field(256, ge=1, description="sequences it runs at once")
    kv_cache_bytes: int | None = Field(None, ge=1 << 20, description="CPU, or to override on GPU")
    gpu_memory_utilization: float = Field(0.45, gt=0, le=1)
    tensor_parallel_size: int = Field(1, ge=1)
    draft_tokens: int = Field(
        0,
        ge=0,
        le=32,
        description="tokens that a policy on a CPU drafts for each pass from what it wrote before: "
        "speculative decoding, which changes nothing of what is sampled",
    )
    on_death: Literal["restart", "exit"] = Field("restart", description="when the engine dies")
    lora_rank: int | None = Field(
        None, ge=1, le=512, description="takes LoRA adapters of at most this rank; none if unset"
    )
    swap: Literal["auto", "in_place", "beside"] = Field(
        "auto",
        description="how it comes to other weights while it serves. in_place: loaded into the "
        "engine, between two searches; beside: another engine is started, which takes twice the "
        "memory for that time; auto: in place where vLLM is known to do it right",
    )
    extra: dict[str, Any] = Field({}, description="more AsyncEngineArgs, passed as they are")


def _is_server(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{url!r} is not like http://policy:8000/v1")
    if "@" in parts.netloc:
        raise ValueError("must hold no credentials: there is api_key for those")
    return url


ServerUrl = Annotated[str, AfterValidator(_is_server)]


class Routing(Frozen):
    """How requests are spread over several servers of one model (`server/routing`)."""

    factor: float = Field(
        1.5,
        ge=1,
        description="a server is hot, and a search's requests spill over to its next one, from so "
        "many times the mean number of requests",
    )
    floor: int = Field(64, ge=1, description="but not while it has fewer requests than this")
    kv_high: float = Field(
        0.9,
        gt=0,
        le=1,
        description="and also from this share of its KV cache in use, if another has room",
    )
    moves: int = Field(
        2, ge=0, description="times that a request goes on at another server when its own fails"
    )
    failures: int = Field(3, ge=1, description="in a row, from which a server is left alone")
    probe_seconds: float = Field(
        1.0, gt=0, description="until it is asked whether it is back; up to 8 times as long later"
    )


class HttpSettings(Frozen):
    """A model behind an OpenAI-compatible server, or several that are alike."""

    kind: Literal["http"] = "http"
    url: ServerUrl = Field(description="such as http://policy:8000/v1")
    urls: tuple[ServerUrl, ...] = Field((), description="further servers of the same model")
    resolve_seconds: float | None = Field(
        None,
        gt=0,
        description="each address that a URL's name has is a server of its own, as with a headless "
        "Kubernetes Service; the time between look-ups. If unset, a URL is one server",
    )
    model: str
    name: str | None = None
    profile: ProfileName | None = None
    api_key: SecretStr | None = None
    dialect: Literal["vllm", "chat"] = Field(
        "vllm",
        description="vllm: token ids in and out; chat: any OpenAI-compatible server, "
        "whose partial answers are sent back as a trailing assistant message",
    )
    tokenizer: str | None = Field(
        None, description="vllm dialect: a folder or a hub name; model if unset"
    )
    prefill: Literal["continue_final_message", "trailing"] = Field(
        "continue_final_message",
        description="chat dialect: how a server is told that the trailing assistant message is "
        "unfinished; vLLM and SGLang need their flag, other servers refuse it or need none",
    )
    logprobs: bool = Field(True, description="chat dialect: ask for them, which some refuse")
    priority: bool = Field(
        False,
        description="send priorities: the server runs with --scheduling-policy priority",
    )
    context: int | None = Field(
        None,
        ge=16,
        description="context length in tokens, asked for if unset; for the chat dialect in "
        "characters, 1048576 if unset, and the server itself refuses what is too long",
    )
    capacity: int = Field(256, ge=1, description="requests sent to a server at once")
    connect_timeout: float = Field(5.0, gt=0, description="seconds")
    read_timeout: float = Field(60.0, gt=0, description="seconds without a byte")
    retries: int = Field(2, ge=0, description="only where nothing was generated")
    routing: Routing = Routing()

    @field_validator("urls")
    @classmethod
    def _are_different(cls, urls: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        every = [u.rstrip("/") for u in (info.data.get("url", ""), *urls)]
        if twice := sorted({u for u in every if every.count(u) > 1}):
            raise ValueError(f"named twice, with url: {', '.join(twice)}")
        return urls

    @property
    def all_urls(self) -> tuple[str, ...]:
        return (self.url, *self.urls)


EngineSettings = Annotated[VllmSettings | HttpSettings, Field(discriminator="kind")]
