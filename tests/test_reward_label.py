"""The label reward: what the policy is asked, and what is made of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, inf, log

import pytest

from server.errors import BadRequest, EngineError, ScorerError
from server.reward import Label, Models
from server.types import Node, Prompt, Stop
from tests.fakes import FakeEngine
from tests.rewarding import PROFILE, grow, prompt_of
from tests.virtual import run

PROMPT = prompt_of("Q")
GOOD, BAD = ord("+"), ord("-")


@dataclass
class LabelEngine(FakeEngine):
    """Answers with fixed log-probabilities; keeps what it was asked."""

    logprobs: tuple[float, float] = (log(0.3), log(0.1))
    asked: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    waiting: int = 0

    async def label_logprobs(
        self, ids: Sequence[int], labels: Sequence[int]
    ) -> tuple[tuple[float, ...], int]:
        self.asked.append((tuple(ids), tuple(labels)))
        self.waiting += 1
        try:
            await asyncio.sleep(1.0)
        finally:
            self.waiting -= 1
        if self.broken:
            raise EngineError("the fake engine broke")
        return self.logprobs, len(ids) - 1


def test_every_unscored_step_is_asked_at_once() -> None:
    engine = LabelEngine()
    scorer = Label().scorer(Models(engine, PROFILE))
    known = grow(None, "a\n")
    known.raw = 0.5
    leaf = grow(known, "b\n", "c", stop=Stop.END)

    async def work() -> float:
        score = await scorer.score(PROMPT, leaf.path())
        assert score.steps == pytest.approx((0.75, 0.75))
        assert (score.computed, score.cached) == (2, sum(len(ids) - 1 for ids, _ in engine.asked))
        return asyncio.get_running_loop().time()

    assert run(work()) == pytest.approx(1.0)
    chat = PROMPT.ids
    # The end token is not among the ids: the label stands where the answer would go on.
    assert engine.asked == [
        ((*chat, *map(ord, "a\nb\n")), (GOOD, BAD)),
        ((*chat, *map(ord, "a\nb\nc")), (GOOD, BAD)),
    ]


def test_the_ids_are_those_the_policy_saw() -> None:
    engine = LabelEngine()
    seen = Prompt((), (7, 8))
    leaf = grow(None, "a\n", "b\n")
    leaf.prompt = seen
    run(Label().scorer(Models(engine, PROFILE)).score(PROMPT, leaf.path()))
    assert engine.asked[1][0] == (7, 8, *map(ord, "b\n"))


@pytest.mark.parametrize(
    ("logprobs", "share"),
    [
        ((-1.0, -1.0), 0.5),
        ((0.0, -inf), 1.0),
        ((-inf, -2.0), 0.0),
        ((-900.0, -901.0), 1 / (1 + exp(-1))),
    ],
)
def test_the_share_of_the_good_label(logprobs: tuple[float, float], share: float) -> None:
    scorer = Label().scorer(Models(LabelEngine(logprobs=logprobs), PROFILE))
    assert run(scorer.score(PROMPT, grow(None, "a\n").path())).value == pytest.approx(share)


def test_no_label_possible_is_an_error() -> None:
    scorer = Label().scorer(Models(LabelEngine(logprobs=(-inf, -inf)), PROFILE))
    with pytest.raises(ScorerError, match="both labels"):
        run(scorer.score(PROMPT, grow(None, "a\n").path()))


def test_an_engine_error_arrives_as_itself() -> None:
    scorer = Label().scorer(Models(LabelEngine(broken=True), PROFILE))
    with pytest.raises(EngineError, match="broke"):
        run(scorer.score(PROMPT, grow(None, "a\n", "b\n").path()))


def test_cancelling_leaves_no_request() -> None:
    engine = LabelEngine()

    async def work() -> None:
        scorer = Label().scorer(Models(engine, PROFILE))
        node: Node = grow(None, "a\n", "b\n")
        task = asyncio.create_task(scorer.score(PROMPT, node.path()))
        await asyncio.sleep(0.5)
        assert engine.waiting == 2
        task.cancel()
        await asyncio.wait([task])

    run(work())
    assert engine.waiting == 0


@pytest.mark.parametrize(
    ("labels", "param"),
    [
        ({"good": "yes"}, "reward.good"),
        ({"bad": "no"}, "reward.bad"),
        ({"good": "-"}, "reward.bad"),
    ],
)
def test_labels_must_be_two_tokens(labels: dict[str, str], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        Label.model_validate(labels).scorer(Models(FakeEngine(), PROFILE))
    assert caught.value.param == param
