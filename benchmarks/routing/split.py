"""A given KV cache, split between the policy and the PRM in one process, as a GPU's would be."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from benchmarks.stack import reference
from server.search import Strategy
from server.types import Message

TOTAL = 48 << 20  # bytes
SHARES = (0.25, 0.5, 0.75)  # of the policy


async def split(
    share: float, strategy: Strategy, asked: Sequence[list[Message]], at_once: int
) -> dict[str, Any]:
    """All of `asked`, so many at once, the policy with this share."""
    policy = int(TOTAL * share)
    sizes = {"policy.kv_cache_bytes": policy, "prm.engine.kv_cache_bytes": TOTAL - policy}
    async with reference(**sizes) as service:
        slots = asyncio.Semaphore(at_once)

        async def one(messages: list[Message]) -> Any:
            async with slots:
                ask = service.prepare(messages=messages, strategy=strategy)
                return (await service.reason(ask)).usage

        before, began = service.models.policy.load().preempted, perf_counter()
        used = await asyncio.gather(*map(one, asked))
        seconds = perf_counter() - began
        preempted = service.models.policy.load().preempted - before
    tokens = sum(u.policy for u in used)
    read = sum(u.scorer_computed + u.scorer_cached for u in used)
    prompt = sum(u.prompt_computed + u.prompt_cached for u in used)
    return {
        "policy_share": share,
        "tokens_per_second": tokens / seconds,
        "policy_hit_rate": sum(u.prompt_cached for u in used) / prompt,
        "prm_hit_rate": sum(u.scorer_cached for u in used) / read,
        "preempted": preempted,
    }
