"""The policy in this process: vLLM's AsyncLLM, token ids in, steps of token ids out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from pathlib import Path

from vllm import SamplingParams
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind

from server.config import VllmSettings
from server.engine import tops
from server.engine.bounds import fit
from server.engine.checkpoint import BadWeights, Checkpoint, look_over
from server.engine.halting import Halting
from server.engine.lean import LeanScheduler
from server.engine.llm import Llm, llm_boundary, terminate
from server.engine.segment import Patterns, Segmenter
from server.engine.tokenizer import HFTokenizer
from server.engine.vllm_stream import Request, VllmStream
from server.engine.weights import fingerprint
from server.errors import BadRequest, EngineDead
from server.types import Cut, Load, Sampling

ARGUMENTS = {
    # Log-probabilities after temperature, top-p and the rest: of the distribution sampled from.
    "logprobs_mode": "processed_logprobs",
    "scheduling_policy": "priority",
}
CPU_ARGUMENTS = {
    # On a GPU vLLM schedules ahead of the device with another class, and tokens are dearer.
    "scheduler_cls": LeanScheduler,
    # A prompt read in parts draws a token too many, and vLLM then turns the request's generator
    # back, which one on a CPU cannot: the engine would die of a seed.
    "enable_chunked_prefill": False,
}
AUTOMATA = 256  # delimiter and stop-string sets remembered


class VllmEngine:
    """`server.types.Engine`. At temperature 0 log-probabilities are those of temperature 1."""

    def __init__(self, settings: VllmSettings, *, on_exit: Callable[[], None] = terminate):
        defaults = ARGUMENTS | (CPU_ARGUMENTS if current_platform.is_cpu() else {})
        self._llm = Llm(settings, defaults=defaults, on_exit=on_exit)
        self._rank = settings.lora_rank
        self.name = self._llm.name
        self.tokenizer: HFTokenizer
        self.version = ""
        self.context = 0
        self.most_logprobs = tops.MOST
        self._patterns: dict[tuple[str, tuple[str, ...]], Patterns] = {}
        self._halting: Halting
        self._adapter: LoRARequest | None = None
        self._weights: Checkpoint  # full ones, which an adapter changes
        self._closed = False

    async def start(self) -> None:
        """Load tokenizer and weights. Raises `EngineError`; `BadRequest` on unusable settings."""
        model = self._llm.model
        with llm_boundary(f"reading {model}"):
            self.tokenizer, self.version = await asyncio.gather(
                asyncio.to_thread(HFTokenizer, model),
                asyncio.to_thread(fingerprint, model),
            )
        self._halting = Halting(self.tokenizer)
        self._llm.version = self.version
        self._weights = self._llm.weights
        await self._llm.start()
        self.context = self._llm.context

    async def close(self) -> None:
        """Of an engine that several policies share, the last one ends it."""
        if self._closed:
            return
        self._closed = True
        if self._adapter is not None:
            await self._llm.unadapt(self._adapter)
        await self._llm.close()

    @property
    def folder(self) -> str:
        """Where its weights come from; a hub name, or an adapter's folder."""
        return str(self._weights.folder) if self._adapter is None else self._adapter.lora_path

    async def look_over(self, folder: Path) -> Checkpoint:
        """The weights in `folder`, if this policy can go over to them. Raises `BadWeights`."""
        with llm_boundary(f"reading {folder}"):
            found = await asyncio.to_thread(
                look_over, folder, "policy", self._llm.model, self.tokenizer
            )
        if found.rank is not None:
            self._check_adapter(found, found.rank)
        return found

    def _check_adapter(self, found: Checkpoint, rank: int) -> None:
        if self._rank is None:
            raise BadWeights(f"{found.folder} is an adapter; policy.lora_rank lets none be served")
        if rank > self._rank:
            raise BadWeights(f"{found.folder} is of rank {rank}; policy.lora_rank is {self._rank}")
        if found.base not in (None, self._llm.version):
            raise BadWeights(
                f"{found.folder} is an adapter of {found.base}; {self._llm.version} is served"
            )

    def drains(self, found: Checkpoint) -> bool:
        """Whether no search may run while it goes over to these."""
        return (
            found.rank is None and found.version != self._llm.version and self._llm.reloads(found)
        )

    async def successor(self, found: Checkpoint) -> VllmEngine:
        """A policy with these weights, ready to serve. Unless it `drains`, this one goes on.
        Each is to be closed. Raises `EngineError`, with this one as it was."""
        other = copy(self)
        other.version, other._closed, other._adapter = found.version, False, None
        if found.rank is None:
            other._llm = await self._llm.loaded(found)
        else:
            other._adapter = await self._llm.adapt(found)
            self._llm.share()
        other._weights = other._llm.weights
        return other

    async def restore(self) -> None:
        """Have the engine with its own weights again, in which a successor took its place; with no
        request. Raises `EngineDead` if it does not come back."""
        await self._llm.restore(self._weights)

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
    ) -> VllmStream:
        assert self._llm.engine
        fit(self.name, self.context, len(prompt_ids), max_tokens)
        tops.check(top_logprobs)
        patterns = self._automaton(cut.delimiter, sampling.stop)
        segmenter = Segmenter(
            patterns,
            max_step_tokens=cut.max_step_tokens,
            version=self.version,
            before=self._answer(prompt_ids),
            begun=cut.begun,
        )
        ids = tuple(prompt_ids)
        request = Request(ids, max_tokens, seed, sampling, priority, top_logprobs, self._adapter)
        room = cut.max_step_tokens - cut.begun
        delimiters = partial(self._halting.ids, cut.delimiter)
        return VllmStream(self._llm, segmenter, request, room, delimiters, halt=cut.halt)

    async def label_logprobs(
        self, ids: Sequence[int], labels: Sequence[int]
    ) -> tuple[tuple[float, ...], int]:
        assert self._llm.engine
        fit(self.name, self.context, len(ids), 1)
        params = SamplingParams(
            max_tokens=1,
            temperature=0,
            logprob_token_ids=list(labels),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        with llm_boundary(f"asking {self.name} for labels"):
            outputs = self._llm.engine.generate(
                tokens_input(list(ids)),
                params,
                self._llm.request_id(),
                lora_request=self._adapter,
            )
            async for output in outputs:
                found = output.outputs[0].logprobs[0]
                return tuple(found[i].logprob for i in labels), output.num_cached_tokens
        raise EngineDead(f"{self.name} ended a request without an answer")

    def load(self) -> Load:
        return self._llm.load

    async def check(self) -> None:
        """Raises `EngineDead` if the engine's process is gone."""
        with llm_boundary(f"checking {self.name}"):
            await self._llm.engine.check_health()

    def _automaton(self, delimiter: str, stop: tuple[str, ...]) -> Patterns:
        if not all(stop):
            raise BadRequest("a stop string must not be empty", param="stop")
        patterns = self._patterns.pop((delimiter, stop), None) or Patterns(
            self.tokenizer.piece, delimiter, stop, self.tokenizer.eos_ids
        )
        self._patterns[delimiter, stop] = patterns  # the last used stays longest
        if len(self._patterns) > AUTOMATA:
            del self._patterns[next(iter(self._patterns))]
        return patterns

    def _answer(self, prompt_ids: Sequence[int]) -> Sequence[int]:
        """The end of the answer that a prompt already holds: what cuts the next step."""
        tail = self.tokenizer.since_control(prompt_ids[-Segmenter.context :])
        opening = self.tokenizer.opening
        return tail[len(opening) :] if tail[: len(opening)] == opening else tail
