"""Drafted tokens in a real vLLM: nothing of what is sampled changes, but the passes it takes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from benchmarks.puzzles import held_out, messages
from server.engine.arguments import arguments
from server.engine.vllm import VllmEngine
from server.errors import BadRequest
from server.types import Sampling
from tests.integration.conftest import settings
from tests.integration.engine_checks import CHECKS, Check, Ids, ask, collect, idle, ids_of

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="session")
def prompts(drafting_engine: VllmEngine) -> list[Ids]:
    puzzles = [(4, 9, 10, 13), *held_out(5)]
    return [drafting_engine.tokenizer.render(messages(p)) for p in puzzles]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_as_any_policy(check: Check, drafting_engine: VllmEngine, prompts: list[Ids]) -> None:
    await check(drafting_engine, prompts[0])
    assert idle(drafting_engine)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0),
        Sampling(temperature=0.7, top_p=0.9),
        Sampling(top_k=4),
        Sampling(min_p=0.05),
        Sampling(repetition_penalty=1.1),
    ],
    ids=["plain", "greedy", "top_p", "top_k", "min_p", "repetition_penalty"],
)
async def test_the_same_tokens_as_without(
    sampling: Sampling, drafting_engine: VllmEngine, policy_engine: VllmEngine, prompts: list[Ids]
) -> None:
    """Of the same seeds, many at once, after it has seen all of these answers. An engine computes
    in another order with more rows in a pass, so that a token by a hair may differ."""

    async def answers(engine: VllmEngine) -> list[Any]:
        streams = [ask(engine, p, seed=s, sampling=sampling) for p in prompts for s in range(4)]
        return await asyncio.gather(*map(collect, streams))

    await answers(drafting_engine)
    before = drafting_engine.load()
    drafted, plain = await asyncio.gather(answers(drafting_engine), answers(policy_engine))
    after = drafting_engine.load()
    made = sum(len(ids_of(steps)) for steps in drafted)
    accepted = after.accepted - before.accepted
    if (sampling.min_p, sampling.repetition_penalty) == (0, 1):
        assert 0.3 * made < accepted <= after.drafted - before.drafted
    else:
        assert accepted == 0 and after.drafted - before.drafted < 0.1 * made
    same = [ids_of(a) == ids_of(b) for a, b in zip(drafted, plain, strict=True)]
    assert sum(same) >= 0.8 * len(same)
    for ours, theirs in zip(drafted, plain, strict=True):
        if ids_of(ours) == ids_of(theirs):
            a = [p for step in ours for p in step.logprobs]
            assert a == pytest.approx([p for step in theirs for p in step.logprobs], abs=0.1)


async def test_a_request_that_needs_each_token_alone_beside_others(
    drafting_engine: VllmEngine, prompts: list[Ids]
) -> None:
    greedy = Sampling(temperature=0)
    alone = await collect(ask(drafting_engine, prompts[0], sampling=greedy))
    labels = drafting_engine.tokenizer.ids_of("4")
    beside, other, _ = await asyncio.gather(
        collect(ask(drafting_engine, prompts[0], sampling=greedy)),
        collect(ask(drafting_engine, prompts[1], sampling=Sampling(min_p=0.1))),
        drafting_engine.label_logprobs(prompts[2], [labels, labels + 1]),
    )
    assert other and ids_of(beside) == ids_of(alone)
    before = drafting_engine.load().accepted
    await collect(ask(drafting_engine, prompts[0], sampling=greedy))
    assert drafting_engine.load().accepted > before, "it drafts again"


def test_it_is_instead_of_what_vllm_drafts() -> None:
    with pytest.raises(BadRequest, match=r"does not go together with extra\.speculative_config"):
        arguments(settings("policy", draft_tokens=2, extra={"speculative_config": {}}))
