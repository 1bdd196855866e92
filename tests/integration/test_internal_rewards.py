"""Rewards that ask the policy itself, on the real one, against transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from server.engine.vllm import VllmEngine
from server.profiles import shipped
from server.reward import Confidence, JudgeReward, Models
from server.types import Message, Node, Prompt
from tests.integration.conftest import MODELS
from tests.integration.engine_checks import ask, collect, ids_of

pytestmark = pytest.mark.vllm
QUESTION = Message("user", "Use 4 9 10 13 to make 24.")


@pytest.fixture(scope="module")
def model() -> AutoModelForCausalLM:
    return AutoModelForCausalLM.from_pretrained(MODELS / "policy", dtype=torch.bfloat16)


def logprobs(model: AutoModelForCausalLM, ids: tuple[int, ...]) -> torch.Tensor:
    """After each of `ids`: [token, vocabulary]."""
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return found


async def path_of(engine: VllmEngine, prompt: Prompt, k: int) -> list[Node]:
    steps = await collect(ask(engine, prompt.ids, seed=11, top_logprobs=k))
    node = Node(prompt=prompt)
    for step in steps:
        node = Node(parent=node, step=step)
    return node.path()


async def test_confidence_in_what_was_sampled(
    policy_engine: VllmEngine, model: AutoModelForCausalLM
) -> None:
    prompt = Prompt((QUESTION,), policy_engine.tokenizer.render([QUESTION]))
    models, k, window = Models(policy_engine, shipped()["reference"]), 5, 8
    path = await path_of(policy_engine, prompt, k)
    ids = ids_of([n.step for n in path if n.step])
    rows = logprobs(model, prompt.ids + ids)[len(prompt.ids) - 1 : -1]
    tops = rows.topk(k).values.clamp(min=-20)
    groups = (-tops.mean(-1)).unfold(0, window, 1).mean(-1)
    renormalised = tops.softmax(-1)
    entropy = -(renormalised * renormalised.log()).sum(-1) / torch.tensor(k).log()
    chosen = rows.gather(1, torch.tensor(ids)[:, None])[:, 0]
    ends = torch.tensor([n.step.count for n in path if n.step]).cumsum(0).tolist()
    steps = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]

    async def raws(**how: object) -> tuple[float, list[float | None]]:
        scorer = Confidence.model_validate(how).scorer(models)
        score = await scorer.score(prompt, path)
        return score.value, list(score.steps)

    value, found = await raws(measure="entropy", top=k)
    assert found == pytest.approx([1 - float(entropy[s].mean()) for s in steps], abs=0.03)
    value, found = await raws(measure="share", top=k)
    share = chosen.exp() / tops.exp().sum(-1)
    assert found == pytest.approx([float(share[s].mean()) for s in steps], abs=0.03)
    value, found = await raws(measure="lowest_group", top=k, window=window)
    lowest = float(groups.min())
    assert value == pytest.approx(1 - float(torch.tensor(k).log()) / lowest, abs=0.03)
    assert min(v for v in found[1:] if v is not None) == pytest.approx(lowest, rel=0.05)
    value, _ = await raws(measure="tail", window=window)
    assert value == pytest.approx(float(chosen[-window:].mean().exp()), abs=0.03)


async def test_a_policy_judges_itself_in_one_pass(
    policy_engine: VllmEngine, model: AutoModelForCausalLM
) -> None:
    """The reference policy knows only its puzzles; what it says of them is arithmetic to check."""
    prompt = Prompt((QUESTION,), policy_engine.tokenizer.render([QUESTION]))
    path = await path_of(policy_engine, prompt, 0)
    reward = JudgeReward(template="{question} {answer}")
    scorer = reward.scorer(Models(policy_engine, shipped()["reference"]))
    score = await scorer.score(prompt, path)
    asked = Message("user", f"{QUESTION.content} {path[-1].text()}")
    tokenizer = policy_engine.tokenizer
    ids = tokenizer.render([asked])
    digits = [i for n in range(10) for i in tokenizer.encode(str(n))]
    shares = logprobs(model, ids)[-1][digits].softmax(-1)
    expected = float((shares * torch.arange(10)).sum() / 9)
    assert score.value == pytest.approx(expected, abs=0.02)
    assert score.computed + score.cached == len(ids)
    assert score.steps == (*(None,) * (len(path) - 1), score.value)
