"""A policy behind remote servers that speak OpenAI's API: one, or several that are alike."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from server.config import HttpSettings
from server.engine import tops
from server.engine.bounds import fit
from server.engine.checkpoint import ADAPTER, BadWeights, Checkpoint, look_over
from server.engine.http_chat import Chat
from server.engine.http_stream import Job
from server.engine.http_tokens import TokenStream
from server.engine.http_vllm import Completions, CompletionStream
from server.engine.remote import RemoteModel
from server.engine.tokenizer import HFTokenizer
from server.errors import BadRequest, EngineError, boundary
from server.routing.replica import Replica
from server.routing.route import Route
from server.types import Cut, Load, Message, Sampling, Stream, Tokenizer

CHARACTERS = 1 << 20  # the chat dialect's context: the server knows its own, in its own tokens
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
log = logging.getLogger(__name__)


class HttpEngine(RemoteModel):
    """`server.types.Engine`; its attributes are set by `start`. The dialect decides what an id is:
    one of the model's tokens (vllm), or a character (chat)."""

    context: int
    tokenizer: Tokenizer

    def __init__(self, settings: HttpSettings):
        super().__init__(settings, error=EngineError)
        silent = settings.dialect == "chat" and not settings.logprobs
        self.most_logprobs = 0 if silent else tops.MOST
        self._dialect: Chat | Completions
        self._adapter: Adapter | None = None

    @property
    def settings(self) -> HttpSettings:
        return self._http

    async def start(self) -> None:
        """Ask the servers what they serve. `EngineDead` if none can be reached, `EngineError` if
        they have no such model or, in the vllm dialect, do not tell their context length. If it
        fails, the engine is closed."""
        try:
            await (self._start_chat() if self.settings.dialect == "chat" else self._start_vllm())
        except BaseException:
            await self.close()
            raise

    async def reread(self) -> str:
        return self.version if self._adapter else await super().reread()

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

    async def successor(self, found: Checkpoint) -> HttpEngine:
        """The policy with what its servers are to serve next, where they follow announcements.

        Else with an adapter, which its servers are told to load under a new name, as are those
        that come later. They run with `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1` and `--enable-lora`.
        Each is to be closed."""
        if self.follows:
            await self._versions.go(found.version)
        if found.rank is None:
            view = self._view(found.version)
            view._become(self._base._http, None)
            return view
        adapter = Adapter(f"{found.version}-{uuid4().hex[:8]}", found.folder)
        try:
            await self._fleet.prepare(adapter.load)
        except BaseException:
            await adapter.unload(self._fleet.up)
            raise
        view = self._view(found.version)
        view._become(self.settings.model_copy(update={"model": adapter.name}), adapter)
        return view

    def _become(self, settings: HttpSettings, adapter: Adapter | None) -> None:
        self._http, self._adapter = settings, adapter
        if adapter is not None:
            self._route = Route(self._fleet, admits=adapter.admits)
        if isinstance(self._dialect, Completions):
            self._dialect = self._dialect.named(settings)

    async def _leave(self) -> None:
        if self._adapter is not None:
            self._fleet.forget(self._adapter.load)
            await self._adapter.unload(self._fleet.up)

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
        job = Job(prompt_ids, max_tokens, seed, sampling, cut, priority, top_logprobs)
        return self._dialect.stream(self._route, job, self.version)

    async def label_logprobs(
        self, ids: Sequence[int], labels: Sequence[int]
    ) -> tuple[tuple[float, ...], int]:
        fit(self.name, self.context, len(ids), 1)
        return await self._dialect.label_logprobs(self._route, ids, labels)

    def load(self) -> Load:
        return self._fleet.load()

    async def _start_chat(self) -> None:
        self._dialect = Chat(self.settings)
        self.tokenizer = self._dialect.tokenizer
        self.context = self.settings.context or CHARACTERS
        await self._fleet.start()
        self.version = self._fleet.version

    async def _start_vllm(self) -> None:
        self.tokenizer, self.context = await self._find()
        lean = await asyncio.gather(*map(_has_lean_route, self._fleet.up))
        streams = TokenStream if all(lean) else CompletionStream
        self._dialect = Completions(self.settings, self.tokenizer, streams)
        greeting = self.tokenizer.render([Message("user", "1")])
        if await self._dialect.gives_raw_logprobs(self._route, greeting):
            log.warning(
                "%s reports raw log-probabilities; run it with --logprobs-mode processed_logprobs",
                self.name,
            )


async def _has_lean_route(replica: Replica) -> bool:
    described = await replica.upstream.get("/openapi.json")
    return TokenStream.route in (described or {}).get("paths", {})


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter, under a name of its own at the servers."""

    name: str
    folder: Path

    def admits(self, replica: Replica) -> bool:
        return self.name in replica.models

    async def load(self, replica: Replica) -> None:
        if not self.admits(replica):
            body = {"lora_name": self.name, "lora_path": str(self.folder)}
            await replica.upstream.post(LOAD, body)  # it fails no search: the exchange tells
            replica.models |= {self.name}

    async def unload(self, replicas: Iterable[Replica]) -> None:
        """Raises the first failure, when all have been told."""
        told = [self._unload(r) for r in replicas if self.admits(r)]
        for result in await asyncio.gather(*told, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def _unload(self, replica: Replica) -> None:
        replica.models -= {self.name}
        await replica.upstream.post(UNLOAD, {"lora_name": self.name})
