"""The confidence reward."""

from __future__ import annotations

from dataclasses import replace
from math import exp

import pytest

from server.errors import ScorerError
from server.reward import Confidence, Models
from server.types import Stop
from tests.fakes import FakeEngine
from tests.rewarding import PROFILE, grow, prompt_of
from tests.virtual import run

PROMPT = prompt_of("Q")
SCORER = Confidence().scorer(Models(FakeEngine(), PROFILE))


def test_the_geometric_mean_of_a_steps_probabilities() -> None:
    leaf = grow(None, "ab", "c", stop=Stop.END)
    first, second = leaf.path()
    assert first.step and second.step
    first.step = replace(first.step, logprobs=(-1.0, -3.0))
    second.step = replace(second.step, logprobs=(0.0, 0.0))
    score = run(SCORER.score(PROMPT, leaf.path()))
    assert score.steps == pytest.approx((exp(-2), 1.0))
    assert score.value == pytest.approx((exp(-2) + 1) / 2)
    first.raw = 0.5
    assert run(SCORER.score(PROMPT, leaf.path())).value == 0.75


def test_without_log_probabilities_it_says_so() -> None:
    leaf = grow(None, "ab")
    assert leaf.step
    leaf.step = replace(leaf.step, logprobs=())
    with pytest.raises(ScorerError, match="gives no log-probabilities"):
        run(SCORER.score(PROMPT, leaf.path()))


def test_a_step_without_tokens_does_not_count() -> None:
    leaf = grow(None, "ab", "")
    score = run(SCORER.score(PROMPT, leaf.path()))
    assert score.steps[0] == pytest.approx(exp(-0.5))
    assert score.steps[1:] == (None,)
    assert score.value == pytest.approx(exp(-0.5))
