"""Drafted tokens in vLLM: proposed after a pass, and in the next one kept as far as they are right.

It runs in the engine's process, on a CPU. Every position of a draft is sampled as it would have
been without one, and the draft holds as far as it is what was sampled. For drafts without
probabilities that is speculative sampling (Leviathan et al., arXiv 2211.17192, section 2.3), and
the tokens are the same ones, also of a request with a seed, but where rounding decides: a pass of
more rows adds up in another order. vLLM's own sampler does it, with a row for each position: its
`RejectionSampler` takes fewer parameters and twice the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.logits_processor import (
    LogitBiasLogitsProcessor,
    LogitsProcessor,
    LogitsProcessors,
    MinPLogitsProcessor,
    MinTokensLogitsProcessor,
)
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.rejection_sampler import PLACEHOLDER_TOKEN_ID, RejectionSampler
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata
from vllm.v1.worker import gpu_model_runner

from server.engine.drafts import ORDERS, worth_of, written

NONE = int(PLACEHOLDER_TOKEN_ID)
T = TypeVar("T")


class Proposer:
    """vLLM's interface for `method: custom_class`."""

    def __init__(self, config: VllmConfig):
        assert config.speculative_config is not None
        self._most = config.speculative_config.num_speculative_tokens
        self._drafts = written()
        RejectionSampler.forward = verified
        gpu_model_runner.build_logitsprocs = _all_processors
        # Near the end of one request's context vLLM gives every request a draft of zeros instead.
        gpu_model_runner.GPUModelRunner._input_fits_in_drafter = lambda *_: True

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """There is none."""

    def propose(
        self, sampled: list[list[int]], counts: np.ndarray, tokens: np.ndarray, **_: Any
    ) -> list[list[int]]:
        """`sampled`: the new tokens of each request; `tokens` (requests, most): all of it, of which
        `counts` are there."""
        worth = worth_of(len(sampled))
        drafts: list[list[int]] = []
        for row, new in enumerate(sampled):
            if not new:
                drafts.append([])
                continue
            end = int(counts[row])
            ids = tokens[row, max(0, end - len(new) - ORDERS[0]) : end].tolist()
            self._drafts.learn(ids, len(new))
            drafts.append(self._drafts.draft(ids, self._most, worth))
        return drafts


_build_logitsprocs = gpu_model_runner.build_logitsprocs


def _all_processors(config: VllmConfig, *args: Any, **kwargs: Any) -> LogitsProcessors:
    """vLLM leaves some out where it speculates."""
    plain = copy(config)
    plain.speculative_config = None
    return _build_logitsprocs(plain, *args, **kwargs)


def verified(
    self: RejectionSampler,
    metadata: SpecDecodeMetadata,
    draft_probs: torch.Tensor | None,
    logits: torch.Tensor,
    sampling: SamplingMetadata,
) -> SamplerOutput:
    """In place of vLLM's `forward`. `logits` (drafted tokens + requests, vocabulary): of each
    request its draft's positions, and the one after them."""
    counts = np.asarray(metadata.num_draft_tokens)
    ends = np.cumsum(counts + 1)
    starts = ends - counts - 1
    written().paused = not _independent(sampling)
    if written().paused:
        return self.sampler(logits=logits[torch.from_numpy(starts)], sampling_metadata=sampling)
    states = {r: g.get_state() for r, g in sampling.generators.items() if counts[r]}
    made = self.sampler(logits=logits, sampling_metadata=_spread(sampling, counts, starts))
    tokens = made.sampled_token_ids[:, 0].numpy()
    width = np.arange(counts.max() + 1)
    rows = np.minimum(starts[:, None] + width, len(tokens) - 1)  # (requests, width)
    drafted = np.full(len(tokens), NONE)
    inside = np.ones(len(tokens), bool)
    inside[ends - 1] = False
    drafted[inside] = metadata.draft_token_ids.numpy()
    right = (tokens == drafted)[rows] & (width < counts[:, None])
    kept = np.logical_and.accumulate(right, axis=1).sum(axis=1)
    found = np.where(width <= kept[:, None], tokens[rows], NONE)
    for request, state in states.items():
        if kept[request] < counts[request]:
            _draw(sampling.generators[request], state, int(kept[request]) + 1)
    logprobs = made.logprobs_tensors
    if logprobs is not None:
        flat = torch.from_numpy(rows.reshape(-1))
        logprobs = LogprobsTensors(
            logprobs.logprob_token_ids[flat],
            logprobs.logprobs[flat],
            logprobs.selected_token_ranks[flat],
        )
    return SamplerOutput(torch.from_numpy(found.astype(np.int32)), logprobs)


def _independent(sampling: SamplingMetadata) -> bool:
    """Whether no position depends on what the ones before it were, but through the logits, and no
    processor knows the requests by their rows."""
    processors = sampling.logitsprocs
    every = (*processors.argmax_invariant, *processors.non_argmax_invariant)
    holder = sampling.thinking_budget_state_holder
    return (
        sampling.no_penalties
        and not sampling.bad_words_token_ids
        and sampling.allowed_token_ids_mask is None
        and not (holder is not None and holder.has_tracked_requests())
        and not any(map(_acts, every))
    )


def _acts(processor: LogitsProcessor) -> bool:
    """Whether it does anything to any request; of one that is not vLLM's own nobody knows."""
    match processor:
        case MinPLogitsProcessor():
            return int(processor.min_p_count) > 0
        case LogitBiasLogitsProcessor():
            return bool(processor.biases)
        case MinTokensLogitsProcessor():
            return bool(processor.min_toks)
    return True


def _spread(sampling: SamplingMetadata, counts: np.ndarray, starts: np.ndarray) -> SamplingMetadata:
    """A row for each position."""
    times = torch.from_numpy(counts + 1)

    def each(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else values[: len(counts)].repeat_interleave(times)

    def rows(of: Mapping[int, T]) -> dict[int, T]:
        spans = (
            (range(starts[at], starts[at] + counts[at] + 1), value) for at, value in of.items()
        )
        return {row: value for span, value in spans for row in span}

    return replace(
        sampling,
        temperature=each(sampling.temperature),
        top_p=each(sampling.top_p),
        top_k=each(sampling.top_k),
        logitsprocs=LogitsProcessors(),
        generators=rows(sampling.generators),
        logprob_token_ids=rows(sampling.logprob_token_ids or {}) or None,
    )


def _draw(generator: torch.Generator, state: torch.Tensor, times: int) -> None:
    """Have it stand where so many rows leave it: vLLM's sampler takes a number for each."""
    generator.set_state(state)
    for _ in range(times):
        torch.randint(0, 2**31, (1,), generator=generator)
