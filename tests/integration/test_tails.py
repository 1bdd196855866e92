"""The prefix cache of unfinished blocks: what is kept, that it is right, and that it gives way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.worker.utils import KVCacheBlockCopy, copy_kv_cache_blocks_inplace

from server.engine.tails import Tails, copy_blocks
from server.engine.vllm import VllmEngine
from server.types import Cut, Message
from tests.integration.conftest import settings
from tests.integration.engine_checks import ask, collect, ids_of

pytestmark = pytest.mark.vllm
LABELS = (4, 9)
QUESTION = "Use 4 9 10 13 to make 24."


@given(
    most=st.integers(1, 4),
    tails=st.lists(
        st.tuples(st.integers(0, 1), st.lists(st.integers(0, 2), min_size=1, max_size=4)),
        max_size=20,
    ),
    asked=st.tuples(st.integers(0, 1), st.lists(st.integers(0, 2), max_size=5)),
)
def test_the_longest_beginning_is_found(
    most: int, tails: list[tuple[int, list[int]]], asked: tuple[int, list[int]]
) -> None:
    """Against a list that is searched from end to end; every block is given back once."""
    kept = Tails(most)
    held: dict[int, tuple[int, tuple[int, ...]]] = {}
    for number, (before, tokens) in enumerate(tails):
        held[number] = before, tuple(tokens)
        for block in kept.keep(before, tuple(tokens), KVCacheBlock(number)):
            del held[block.block_id]
        assert len(kept) == len(held) <= most
    before, tokens = asked
    found = kept.find(before, tokens)
    sizes = [
        size
        for at, tail in held.values()
        for size in (len(tail), len(tail) - 1)
        if at == before and size and list(tail[:size]) == tokens[:size]
    ]
    assert (found[1] if found else 0) >= max((s for s in sizes if s <= len(tokens)), default=0)
    if found is not None:
        block, size = found
        assert held[block.block_id] == (before, held[block.block_id][1])
        assert list(held[block.block_id][1][:size]) == tokens[:size]
    given_back = [block.block_id for block in kept.shed(len(kept))]
    assert sorted(given_back) == sorted(held)
    assert kept.find(before, tokens) is None


@given(split=st.integers(1, 2), order=st.permutations(range(8)), count=st.integers(0, 4))
def test_blocks_are_copied_as_by_vllm(split: int, order: list[int], count: int) -> None:
    """Two layers that share a cache, and one with its own; blocks are copied on to others, too."""
    copies = [KVCacheBlockCopy(*order[i : i + 2]) for i in reversed(range(count))]
    caches = [torch.randn(8 * split, 2, 3), torch.randn(8 * split, 2, 3)]
    theirs = [cache.clone() for cache in caches]
    copy_blocks([*caches, caches[0]], 8, copies)
    copy_kv_cache_blocks_inplace([*theirs, theirs[0]], 8, copies)
    assert all(torch.equal(a, b) for a, b in zip(caches, theirs, strict=True))


async def test_a_step_goes_on_from_all_that_was_computed(policy_engine: VllmEngine) -> None:
    """And as if it had been computed again, bit by bit."""
    prompt = policy_engine.tokenizer.render([Message("user", QUESTION)])
    stepwise = Cut("\n", 48, halt=True)
    paths = []
    for seed in range(6):
        ids = prompt
        while len(ids) < len(prompt) + 60:
            source = ask(policy_engine, ids, seed=seed, cut=stepwise, max_tokens=48)
            steps = await collect(source)
            if ids != prompt:  # all but the token that was sampled last
                assert source.cached_tokens == len(ids) - 1
            ids += ids_of(steps)
            paths.append(ids)
    quick = [await policy_engine.label_logprobs(ids, LABELS) for ids in paths]
    assert any(len(ids) % 32 not in (0, 1) for ids in paths)
    for ids, (verdict, cached) in zip(paths, quick, strict=True):
        assert cached == len(ids) - 1
        assert await policy_engine._llm.engine.reset_prefix_cache()
        assert await policy_engine.label_logprobs(ids, LABELS) == (verdict, 0)


@pytest.fixture
async def narrow() -> AsyncIterator[VllmEngine]:
    """With a cache of 18 blocks, of which one is no request's; 16 are the longest request's."""
    size = 18 * 32 * 4 * 2 * 3 * 64 * 2
    engine = VllmEngine(settings("policy").model_copy(update={"kv_cache_bytes": size}))
    await engine.start()
    yield engine
    await engine.close()


async def test_what_is_kept_gives_way(narrow: VllmEngine) -> None:
    """To a request that takes nearly all blocks, and to many at once."""
    rng = random.Random(0)
    words = [tuple(rng.randrange(3, 60) for _ in range(20)) for _ in range(200)]
    await asyncio.gather(*(narrow.label_logprobs(ids, LABELS) for ids in words))
    _, cached = await narrow.label_logprobs(words[-1], LABELS)
    assert cached == 19
    assert narrow.load().kv == 0.0
    long = tuple(rng.randrange(3, 60) for _ in range(narrow.context - 1))
    assert len(long) > narrow.load().kv_tokens - 3 * 32
    _, cached = await narrow.label_logprobs(long, LABELS)
    assert cached == 0
    found = await asyncio.gather(*(narrow.label_logprobs(long[:n], LABELS) for n in (90, 300, 480)))
    assert len(found) == 3
    assert narrow.load().kv == 0.0
