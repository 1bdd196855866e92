"""A policy behind a remote server that speaks OpenAI's API."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from copy import copy
from pathlib import Path, PurePosixPath
from uuid import uuid4

from server.config import HttpSettings
from server.engine import tops
from server.engine.bounds import fit
from server.engine.checkpoint import ADAPTER, BadWeights, Checkpoint, look_over
from server.engine.gauges import Gauges
from server.engine.http_chat import Chat
from server.engine.http_stream import Job
from server.engine.http_tokens import TokenStream
from server.engine.http_vllm import Completions, CompletionStream
from server.engine.tokenizer import HFTokenizer
from server.errors import BadRequest, EngineDead, EngineError, boundary
from server.types import Cut, Load, Message, Sampling, Stream, Tokenizer
from server.upstream import Upstream, context_of, weights_of

CHARACTERS = 1 << 20  # the chat dialect's context: the server knows its own, in its own tokens
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
log = logging.getLogger(__name__)


class HttpEngine:
    """`server.types.Engine`; its attributes are set by `start`. The dialect decides what an id is:
    one of the model's tokens (vllm), or a character (chat)."""

    name: str
    version: str
    context: int
    tokenizer: Tokenizer

    def __init__(self, settings: HttpSettings):
        self.settings = settings
        self.name = settings.name or PurePosixPath(settings.model).name
        self.version = "unknown"
        silent = settings.dialect == "chat" and not settings.logprobs
        self.most_logprobs = 0 if silent else tops.MOST
        self._upstream = Upstream(settings, error=EngineError, dead=EngineDead)
        self._dialect: Chat | Completions
        self._gauges: Gauges | None = None
        self._base = self  # without an adapter
        self._views = [self]  # that share the connections; the last one to close ends them
        self._adapter: str | None = None  # its name at the server

    async def start(self) -> None:
        """Ask the server what it serves. `EngineDead` if it cannot be reached, `EngineError` if it
        has no such model or, in the vllm dialect, does not tell its context length. If it fails,
        the engine is closed."""
        try:
            await (self._start_chat() if self.settings.dialect == "chat" else self._start_vllm())
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Of several that share a server, the last one ends the connections to it."""
        if self not in self._views:
            return
        self._views.remove(self)
        try:
            if self._adapter is not None:
                await self._upstream.post(UNLOAD, {"lora_name": self._adapter})
        finally:
            if not self._views:
                if self._gauges is not None:
                    await self._gauges.close()
                await self._upstream.close()

    @property
    def folder(self) -> str:
        """Where its server says that the weights come from is the server's own affair."""
        return self.settings.model

    async def reread(self) -> str:
        """Ask the server again what it serves; steps have that version from now on."""
        if self._adapter is None:
            required = self.settings.dialect == "vllm"
            card = await self._upstream.card(self.settings.model, required=required)
            self.version = self._base.version = weights_of(card)
        return self.version

    async def look_over(self, folder: Path) -> Checkpoint:
        """The adapter in `folder`, which this process has to see at the path at which the server
        does. Raises `BadWeights`."""
        base = self._base
        if str(folder) == base.folder:
            return Checkpoint(folder, base.version, "unknown", {})
        if not isinstance(self.tokenizer, HFTokenizer):
            raise BadWeights(f"{self.name} is behind a chat API, which takes no weights")
        if not (folder / ADAPTER).is_file():
            raise BadWeights(
                f"{self.name} is served elsewhere, which can be given adapters only; give that "
                "server its weights, and post {} here"
            )
        model, tokenizer = base.folder, self.tokenizer
        with boundary(EngineError, f"reading {folder}"):
            return await asyncio.to_thread(look_over, folder, "policy", model, tokenizer)

    def drains(self, found: Checkpoint) -> bool:
        return False

    async def successor(self, found: Checkpoint) -> HttpEngine:
        """The policy with an adapter, which its server is told to load under a new name. It runs
        with `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1` and `--enable-lora`. Each is to be closed."""
        if found.rank is None:
            return self._view(self._base.settings, found.version, None)
        name = f"{found.version}-{uuid4().hex[:8]}"
        await self._upstream.post(LOAD, {"lora_name": name, "lora_path": str(found.folder)})
        settings = self.settings.model_copy(update={"model": name})
        return self._view(settings, found.version, name)

    def _view(self, settings: HttpSettings, version: str, adapter: str | None) -> HttpEngine:
        other = copy(self)
        other.settings, other.version, other._adapter = settings, version, adapter
        if isinstance(self._dialect, Completions):
            other._dialect = self._dialect.named(settings)
        self._views.append(other)
        return other

    def stream(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        seed: int | None,
        sampling: Sampling,
        cut: Cut,
        priority: int = 0,
        top_logprobs: int = 0,
    ) -> Stream:
        fit(self.name, self.context, len(prompt_ids), max_tokens)
        tops.check(top_logprobs)
        if not all(sampling.stop):
            raise BadRequest("a stop string must not be empty", param="stop")
        if self._gauges is not None:
            self._gauges.watch()
        job = Job(prompt_ids, max_tokens, seed, sampling, cut, priority, top_logprobs)
        return self._dialect.stream(job, self.version)

    async def label_logprobs(
        self, ids: Sequence[int], labels: Sequence[int]
    ) -> tuple[tuple[float, ...], int]:
        fit(self.name, self.context, len(ids), 1)
        return await self._dialect.label_logprobs(ids, labels)

    def load(self) -> Load:
        """Our own requests, while those that others send to the same server are not seen; the KV
        cache by the server's metrics."""
        running, waiting = self._upstream.running, self._upstream.waiting
        load = Load(running, waiting, self.settings.capacity)
        if self._gauges is None or not running:
            return load
        return self._gauges.seen(load)

    async def check(self) -> None:
        """One try, at most `connect_timeout` seconds."""
        path = "/v1/models" if self.settings.dialect == "chat" else "/health"
        await self._upstream.get(path, within=self.settings.connect_timeout)

    async def _start_chat(self) -> None:
        self._dialect = Chat(self.settings, self._upstream)
        self.tokenizer = self._dialect.tokenizer
        self.context = self.settings.context or CHARACTERS
        self.version = weights_of(await self._upstream.card(self.settings.model, required=False))

    async def _start_vllm(self) -> None:
        card = await self._upstream.card(self.settings.model)
        self.version = weights_of(card)
        self.context = context_of(card, self.settings.context, EngineError)
        path = self.settings.tokenizer or self.settings.model
        with boundary(EngineError, f"reading the tokenizer {path}"):
            tokenizer = await asyncio.to_thread(HFTokenizer, path)
        self.tokenizer = tokenizer
        described = await self._upstream.get("/openapi.json")
        lean = TokenStream.route in (described or {}).get("paths", {})
        streams = TokenStream if lean else CompletionStream
        self._dialect = Completions(self.settings, self._upstream, tokenizer, streams)
        self._gauges = Gauges(self._upstream)
        if await self._dialect.gives_raw_logprobs(tokenizer.render([Message("user", "1")])):
            log.warning(
                "%s reports raw log-probabilities; run it with --logprobs-mode processed_logprobs",
                self.name,
            )
