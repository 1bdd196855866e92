"""The judge reward: what a model is asked, and what is made of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, log
from typing import Any

import pytest
from pydantic import ValidationError

from server.errors import BadRequest, EngineDead, EngineError, NoLogprobs, ScorerDead, ScorerError
from server.reward import JudgeReward, Models
from server.types import Cut, Sampling, Score, Stop
from tests.fakes import CodePoints, FakeEngine, FakeStream
from tests.rewarding import PROFILE, grow, prompt_of
from tests.virtual import run

PROMPT = prompt_of("What is 2+2?")


class Whole(CodePoints):
    """A tokenizer in which Yes and No are tokens."""

    words = ("No", "Yes")

    def encode(self, text: str) -> tuple[int, ...]:
        if text in self.words:
            return (0x10000 + self.words.index(text),)
        return super().encode(text)


@dataclass
class Judge(FakeEngine):
    """Tells these log-probabilities of its labels, or says these things."""

    told: dict[str, float] | Exception = field(default_factory=dict)
    says: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    samplings: list[tuple[float, int | None]] = field(default_factory=list)

    async def label_logprobs(
        self, ids: Sequence[int], labels: Sequence[int]
    ) -> tuple[tuple[float, ...], int]:
        self.asked.append(self.tokenizer.decode(ids))
        if isinstance(self.told, Exception):
            raise self.told
        words = {Whole().encode(word)[0]: word for word in Whole.words}
        return tuple(self.told.get(words.get(i) or chr(i), -inf) for i in labels), 10

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
    ) -> FakeStream:
        self.samplings.append((sampling.temperature, seed))
        self.open_streams += 1
        ids = [*map(ord, self.says.pop(0)), 0][:max_tokens]
        return FakeStream(self, ids, cut, len(prompt_ids), cached_tokens=3)


def judged(judge: Judge, *texts: str, stop: Stop = Stop.STEP, **settings: Any) -> Score:
    reward = JudgeReward.model_validate({"by": "judge", **settings})
    scorer = reward.scorer(Models(FakeEngine(), PROFILE, judge=judge))
    return run(scorer.score(PROMPT, grow(None, *texts, stop=stop).path()))


def test_a_score_is_the_expectation_of_the_digit() -> None:
    judge = Judge(told={"9": log(0.3), "6": log(0.1), "0": log(0.1)})
    score = judged(judge, "2+2\n", "=4")
    assert score.value == pytest.approx((0.3 * 9 + 0.1 * 6) / 0.5 / 9)
    assert score.steps == (None, score.value)
    (asked,) = judge.asked
    assert "What is 2+2?" in asked and "2+2\n=4" in asked
    assert (score.computed, score.cached) == (len(asked) + 1 - 10, 10)


def test_yes_against_no() -> None:
    judge = Judge(told={"Yes": log(0.3), "No": log(0.1)}, tokenizer=Whole())
    assert judged(judge, "4", verdict="yes_no").value == pytest.approx(0.75)


def test_the_policy_judges_itself() -> None:
    policy = Judge(told={"9": 0.0}, name="policy", version="v7")
    scorer = JudgeReward().scorer(Models(policy, PROFILE))
    assert run(scorer.score(PROMPT, grow(None, "4").path())).value == 1.0
    assert (scorer.name, scorer.version) == ("judge:policy", "v7")


def test_a_template_of_the_callers() -> None:
    judge = Judge(told={"9": 0.0})
    judged(
        judge,
        "{question} {x}",
        template="{answer} | {question} | {answer}?",
        system="Be strict.",
    )
    said = "{question} {x} | What is 2+2? | {question} {x}?"
    assert judge.asked == ["Be strict." + said]


@pytest.mark.parametrize("reply", ["7", " 7.\n", "**7**"])
def test_a_judge_that_does_not_tell_is_sampled(reply: str) -> None:
    judge = Judge(told=NoLogprobs("none"), says=[reply])
    score = judged(judge, "4")
    assert score.value == pytest.approx(7 / 9)
    assert judge.samplings == [(0.0, 0)]
    asked = len(judge.asked[0]) + 1
    assert (score.computed, score.cached) == (asked - 3 + len(reply) + 1, 3)
    assert judge.open_streams == 0


def test_it_is_asked_again_until_it_says_a_label() -> None:
    judge = Judge(told=NoLogprobs("none"), says=["I think 7", "77", "8"])
    assert judged(judge, "4").value == pytest.approx(8 / 9)
    assert judge.samplings == [(0.0, 0), (1.0, 1), (1.0, 2)]
    judge = Judge(told={}, says=["?", "nothing"])  # none of its likeliest tokens is a digit
    with pytest.raises(ScorerError, match="answered 'nothing', not one of 0, 1"):
        judged(judge, "4", tries=2)


def test_labels_of_several_tokens_are_sampled() -> None:
    judge = Judge(says=["yes."])
    assert judged(judge, "4", verdict="yes_no").value == 1.0
    assert judge.asked == []


def test_what_it_does_not_tell_is_not_asked_for_again() -> None:
    judge = Judge(told=NoLogprobs("none"), says=["7", "2"])
    scorer = JudgeReward(by="judge").scorer(Models(FakeEngine(), PROFILE, judge=judge))
    for text in ("a", "b"):
        run(scorer.score(PROMPT, grow(None, text).path()))
    assert len(judge.asked) == 1


def test_what_is_too_long_gets_no_verdict() -> None:
    judge = Judge(told={"9": 0.0}, context=200)
    score = judged(judge, "x" * 200)
    assert (score.value, score.steps, judge.asked) == (0.0, (None,), [])


def test_a_path_is_judged_once() -> None:
    judge = Judge(told={"9": 0.0})
    scorer = JudgeReward(by="judge").scorer(Models(FakeEngine(), PROFILE, judge=judge))
    leaf = grow(None, "a", "b")
    leaf.raw = 0.25
    assert run(scorer.score(PROMPT, leaf.path())) == Score(0.25, ())
    assert judge.asked == []


@pytest.mark.parametrize(
    ("error", "kind"), [(EngineError("x"), ScorerError), (EngineDead("x"), ScorerDead)]
)
def test_its_failures_are_not_the_policys(error: Exception, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        judged(Judge(told=error), "4")


@pytest.mark.parametrize(
    "settings",
    [
        {"template": "{question}?"},
        {"template": "{answer} {name}"},
        {"template": "{answer} {}"},
        {"template": "{answer}" * 2000},
        {"tries": 0},
        {"by": "me"},
    ],
)
def test_settings_that_mean_nothing(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        JudgeReward.model_validate(settings)


def test_a_server_without_a_judge() -> None:
    with pytest.raises(BadRequest, match="no judge") as caught:
        JudgeReward(by="judge").scorer(Models(FakeEngine(), PROFILE))
    assert caught.value.param == "reward.by"
