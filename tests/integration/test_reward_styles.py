"""Every style of reward model in a real vLLM, against transformers and its family's own code.

Each on a small random checkpoint of its architecture in float32, whose tokenizer and template are
not the policy's. Paths are scored step by step: a step costs what is new of it, up to a block.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GraniteConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    MistralForCausalLM,
)

from server.config import HttpSettings, OrmSettings, VllmSettings
from server.errors import BadRequest
from server.profiles import PrmProfile, Profile
from server.reward import Models, Orm, Prm, Value
from server.reward.cache import VerdictCache
from server.reward.client import Memory
from server.reward.prm import VllmOrm, VllmPrm
from server.reward.remote import HttpOrm, HttpPrm
from server.types import Node, Scorer, Stop
from tests.fakes import FakeEngine
from tests.integration.servers import metric, vllm_server
from tests.integration.small import SHAPE, Ids, Small
from tests.rewarding import grow, prompt_of
from tests.test_reward_layout import RLHFLOW, SHEPHERD, SKYWORK

pytestmark = pytest.mark.vllm
BLOCK = 32  # tokens of the prefix cache's unit
QUESTION = "Janet has 16 eggs. She eats 3 of them. How many are left?"
STEPS = [f"Step {n}: Janet eats {n} of {16 * n} eggs. So {15 * n} are left." for n in range(9)]
PROMPT = prompt_of(QUESTION)  # by another tokenizer than any model's here
POLICY = Profile(name="policy", delimiter="\n\n")
EXACT = 1e-5


@asynccontextmanager
async def started(model: VllmPrm | VllmOrm | HttpPrm | HttpOrm) -> AsyncIterator[Any]:
    await model.start()
    try:
        yield model
    finally:
        await model.close()


def delimited(steps: list[str]) -> list[str]:
    return [step + "\n\n" for step in steps]


async def scored(scorer: Scorer, leaf: Node) -> tuple[int, int]:
    """Tokens computed and cached; verdicts are kept on the nodes as a search does."""
    path = leaf.path()
    score = await scorer.score(PROMPT, path)
    for node, verdict in zip(path[::-1], score.steps[::-1], strict=False):
        node.raw = verdict
    return score.computed, score.cached


async def step_by_step(
    scorer: Scorer,
    whole: Callable[[list[str]], Ids],
    verdict: Callable[[Ids], float],
    *,
    unit: int | None = 1,
) -> None:
    """Score a path as it grows. `whole` is its family's own rendering of the first steps, up to
    the last one's verdict; `verdict` is transformers' there. What was read with the step before
    is not read again, but for what does not fill a `unit` of the prefix cache."""
    leaf, before, values = Node(), list[int](), list[float]()
    for n, text in enumerate(delimited(STEPS)):
        leaf = grow(leaf, text)
        computed, cached = await scored(scorer, leaf)
        ids = whole(STEPS[: n + 1])
        assert ids[: len(before)] == before
        assert leaf.raw == pytest.approx(verdict(ids), abs=EXACT)
        assert computed + cached == len(ids)
        if unit and n:
            assert cached == len(before) // unit * unit
        before = ids
        values.append(leaf.raw or 0.0)
    assert len(before) > 4 * BLOCK
    assert max(values) - min(values) > 0.01  # it tells steps apart


async def at_once(scorer: Scorer, other: Scorer) -> None:
    """A path scored in one go has the verdicts of one scored step by step."""
    leaf, whole = Node(), grow(None, *delimited(STEPS[:5]))
    for text in delimited(STEPS[:5]):
        leaf = grow(leaf, text)
        await scored(scorer, leaf)
    await scored(other, whole)
    steps = [node.raw for node in leaf.path()]
    assert [node.raw for node in whole.path()] == pytest.approx(steps, abs=EXACT)


async def test_math_shepherd(tmp_path: Path) -> None:
    small = Small(tmp_path, MistralForCausalLM, "sentencepiece")

    def whole(steps: list[str]) -> Ids:
        text = f"{QUESTION} " + "\n".join(f"{step} ки" for step in steps)
        return [1, *small.encode(text)]

    async with started(VllmPrm(small.settings, SHEPHERD)) as prm:
        models = Models(FakeEngine(), POLICY, prm)
        scorer = Prm().scorer(models)
        # A sliding window keeps no block that is not full.
        await step_by_step(scorer, whole, lambda ids: small.share(ids, " -", " +"), unit=BLOCK)
        prm.memory = Memory(VerdictCache(1))  # lacks verdicts of what the prefix cache holds
        await at_once(Prm().scorer(models), Prm().scorer(models))


async def test_labels_that_a_head_cannot_give(tmp_path: Path) -> None:
    """A model that does something to its logits is refused before its weights are loaded."""
    Small(tmp_path, LlamaForCausalLM)
    GraniteConfig(**SHAPE, logits_scaling=8.0).save_pretrained(tmp_path)
    prm = VllmPrm(VllmSettings(model=str(tmp_path)), RLHFLOW)
    with pytest.raises(BadRequest, match="logits_scaling") as caught:
        await prm.start()
    assert caught.value.param == "prm.style"
    extra = VllmSettings(model=str(tmp_path), extra={"hf_overrides": {}})
    with pytest.raises(BadRequest, match="hf_overrides of its own"):
        await VllmPrm(extra, RLHFLOW).start()


async def test_rlhflow(tmp_path: Path) -> None:
    small = Small(tmp_path, LlamaForCausalLM)

    def whole(steps: list[str]) -> Ids:
        chat = [("user", f"{QUESTION} {steps[0]}")]
        for step in steps[1:]:
            chat += [("assistant", "+"), ("user", step)]
        return small.chat(*chat)

    async with started(VllmPrm(small.settings, RLHFLOW)) as prm:
        scorer = Prm().scorer(Models(FakeEngine(), POLICY, prm))
        await step_by_step(scorer, whole, lambda ids: small.share(ids, "-", "+"))


@pytest.mark.parametrize("labels", [1, 2])
async def test_token_classification(tmp_path: Path, labels: int) -> None:
    """One label as Skywork's, at a newline after each step; two at each step's last token."""
    small = Small(tmp_path, LlamaForTokenClassification, labels=labels)
    profile = SKYWORK if labels == 1 else PrmProfile(style="token_classification")

    def whole(steps: list[str]) -> Ids:
        if labels == 1:
            ends = [i for step in steps for i in (*small.encode(step), *small.encode("\n"))]
            return [1, *small.encode(QUESTION + "\n"), *ends]
        pieces = [steps[0], *(f"\n\n{step}" for step in steps[1:])]
        return small.chat(("user", QUESTION)) + [i for p in pieces for i in small.encode(p)]

    def verdict(ids: Ids) -> float:
        logits = small.logits(ids)[-1]
        return float(torch.sigmoid(logits[0]) if labels == 1 else torch.softmax(logits, 0)[1])

    async with started(VllmPrm(small.settings, profile)) as prm:
        await step_by_step(Prm().scorer(Models(FakeEngine(), POLICY, prm)), whole, verdict)


async def test_value_head(tmp_path: Path) -> None:
    small = Small(tmp_path, LlamaForSequenceClassification)

    def whole(steps: list[str]) -> Ids:
        pieces = [steps[0], *(f"\n\n{step}" for step in steps[1:])]
        return small.chat(("user", QUESTION)) + [i for p in pieces for i in small.encode(p)]

    async with started(VllmPrm(small.settings, PrmProfile(style="value"))) as prm:
        scorer = Value().scorer(Models(FakeEngine(), POLICY, prm))
        await step_by_step(scorer, whole, lambda ids: float(torch.sigmoid(small.logits(ids))[0]))


ANSWERS = ["The answer is 13.", STEPS[0] + "\n\n" + STEPS[1], "left " * 40]


async def outcomes(small: Small, scorer: Scorer) -> tuple[list[Ids], list[int]]:
    """Check the raw scores of finished answers; what was read, the tokens computed for each."""
    read, computed = [], []
    for answer in ANSWERS:
        leaf = grow(None, *delimited(["open"]), answer, stop=Stop.END)
        score = await scorer.score(PROMPT, leaf.path())
        ids = small.chat(("user", QUESTION), ("assistant", f"open\n\n{answer}"), reply=False)
        raw = small.logits(ids)[-1]
        assert list(score.steps) == [None, pytest.approx(float(raw), abs=EXACT)]
        assert score.value == pytest.approx(float(torch.sigmoid(raw)), abs=EXACT)
        assert score.computed + score.cached == len(ids)
        read.append(ids)
        computed.append(score.computed)
    return read, computed


def common(one: Ids, other: Ids) -> int:
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


async def test_outcome_reward_model(tmp_path: Path) -> None:
    small = Small(tmp_path, LlamaForSequenceClassification)
    async with started(VllmOrm(small.settings, OrmSettings(engine=small.settings))) as orm:
        scorer = Orm().scorer(Models(FakeEngine(), POLICY, orm=orm))
        read, computed = await outcomes(small, scorer)
    # What answers share, the question first of all, is read once.
    shared = [common(read[0], ids) for ids in read[1:]]
    assert shared[0] >= len(small.chat(("user", QUESTION)))
    new = [len(ids) - n // BLOCK * BLOCK for ids, n in zip(read[1:], shared, strict=True)]
    assert computed == [len(read[0]), *new]


def remote(small: Small, url: str) -> HttpSettings:
    return HttpSettings(url=url, model=str(small.folder))


async def test_labels_over_http(tmp_path: Path) -> None:
    """Of an ordinary server of the causal LM, which reads its prefix cache for them."""
    small = Small(tmp_path, LlamaForCausalLM)

    def whole(steps: list[str]) -> Ids:
        chat = [("user", f"{QUESTION} {steps[0]}")]
        for step in steps[1:]:
            chat += [("assistant", "+"), ("user", step)]
        return small.chat(*chat)

    def verdict(ids: Ids) -> float:
        return small.share(ids, "-", "+")

    async with (
        vllm_server(str(tmp_path), "--dtype=float32") as url,
        started(HttpPrm(remote(small, url), RLHFLOW)) as prm,
    ):
        models = Models(FakeEngine(), POLICY, prm)
        await step_by_step(Prm().scorer(models), whole, verdict, unit=None)
        await at_once(Prm().scorer(models), Prm().scorer(models))
        hits = await metric(url, "vllm:prefix_cache_hits_total")
        asked = await metric(url, "vllm:prefix_cache_queries_total")
    assert hits > asked / 2


async def test_outcome_reward_model_over_http(tmp_path: Path) -> None:
    small = Small(tmp_path, LlamaForSequenceClassification)
    async with vllm_server(str(tmp_path), "--dtype=float32", "--runner=pooling") as url:
        orm = HttpOrm(remote(small, url), OrmSettings(engine=remote(small, url)))
        async with started(orm):
            await outcomes(small, Orm().scorer(Models(FakeEngine(), POLICY, orm=orm)))
