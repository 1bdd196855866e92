"""The confidence reward: each measure against its published definition, written out."""

from __future__ import annotations

from dataclasses import replace
from math import exp, inf, log
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from server.errors import ScorerError
from server.reward import Confidence, Models
from server.reward.certainty import (
    FLOOR,
    LowestGroup,
    bounded,
    evenness,
    groups,
    share,
    token_confidence,
)
from server.types import Node, Score, Stop
from tests.fakes import FakeEngine
from tests.rewarding import PROFILE, grow, prompt_of
from tests.virtual import run

PROMPT = prompt_of("Q")
Rows = list[tuple[float, ...]]
K = 4
rows = st.lists(st.floats(0.01, 1.0), min_size=K, max_size=K).map(
    lambda ws: tuple(sorted((log(w / (sum(ws) + 0.1)) for w in ws), reverse=True))
)
steps_ = st.lists(st.lists(rows, min_size=1, max_size=6), min_size=1, max_size=5)


def chain(steps: list[Rows]) -> list[Node]:
    """A path whose tokens have these likeliest tokens, of which each sampled the first."""
    leaf = grow(None, *("x" * len(step) for step in steps))
    for node, tops in zip(leaf.path(), steps, strict=True):
        assert node.step
        logprobs = tuple(row[0] for row in tops)
        node.step = replace(node.step, tops=tuple(tops), logprobs=logprobs)
    return leaf.path()


def scored(path: list[Node], **how: Any) -> Score:
    """The last of the scores of a search that scores each step as it lands."""
    scorer = Confidence.model_validate(how).scorer(Models(FakeEngine(), PROFILE))
    for i in range(1, len(path) + 1):
        score = run(scorer.score(PROMPT, path[:i]))
        path[i - 1].raw = score.steps[-1]
    return score


def raws(path: list[Node]) -> list[float | None]:
    return [n.raw for n in path]


def test_the_geometric_mean_of_a_steps_probabilities() -> None:
    leaf = grow(None, "ab", "c", stop=Stop.END)
    first, second = leaf.path()
    assert first.step and second.step
    first.step = replace(first.step, logprobs=(-1.0, -3.0))
    second.step = replace(second.step, logprobs=(0.0, 0.0))
    scorer = Confidence().scorer(Models(FakeEngine(), PROFILE))
    score = run(scorer.score(PROMPT, leaf.path()))
    assert score.steps == pytest.approx((exp(-2), 1.0))
    assert score.value == pytest.approx((exp(-2) + 1) / 2)
    first.raw = 0.5
    assert run(scorer.score(PROMPT, leaf.path())).value == 0.75


@settings(max_examples=60)
@given(steps_)
def test_entropy(steps: list[Rows]) -> None:
    path = chain(steps)
    score = scored(path, measure="entropy", top=K, aggregate="min")

    def certainty(row: tuple[float, ...]) -> float:
        whole = sum(map(exp, row))
        return 1 + sum(exp(p) / whole * log(exp(p) / whole) for p in row) / log(K)

    expected = [fmean(map(certainty, step)) for step in steps]
    assert raws(path) == pytest.approx(expected, abs=1e-9)
    assert score.value == pytest.approx(min(expected), abs=1e-9)


@settings(max_examples=60)
@given(steps_)
def test_share_of_the_likeliest(steps: list[Rows]) -> None:
    path = chain(steps)
    score = scored(path, measure="share", top=K)
    expected = [fmean(exp(r[0]) / sum(map(exp, r)) for r in step) for step in steps]
    assert raws(path) == pytest.approx(expected)
    assert score.value == pytest.approx(fmean(expected))


@settings(max_examples=60)
@given(steps_, st.one_of(st.none(), st.integers(1, 12)))
def test_the_tail_slides_over_steps(steps: list[Rows], window: int | None) -> None:
    path = chain(steps)
    score = scored(path, measure="tail", window=window)
    for i, step in enumerate(steps):
        so_far = [r[0] for s in steps[: i + 1] for r in s]
        last = so_far[-(window or len(step)) :]
        assert path[i].raw == pytest.approx(exp(fmean(last)))
    assert score.value == path[-1].raw


@settings(max_examples=60)
@given(steps_, st.integers(1, 12), st.sampled_from([0.1, 0.5, 1.0]))
def test_deepconf(steps: list[Rows], window: int, bottom: float) -> None:
    """By the definitions of section 3.1, over all the tokens of a path at once."""
    tokens = [-fmean(row) for step in steps for row in step]
    whole = [tokens[i : i + window] for i in range(len(tokens) - window + 1)] or [tokens]
    means = sorted(map(fmean, whole))
    expected = {
        "trace": fmean(tokens),
        "lowest_group": means[0],
        "bottom_groups": fmean(means[: max(1, int(bottom * len(means)))]),
        "tail_group": fmean(tokens[-window:]),
    }
    for measure, confidence in expected.items():
        path = chain(steps)
        more: dict[str, Any] = {"window": window} if measure != "trace" else {}
        more |= {"bottom": bottom} if measure == "bottom_groups" else {}
        score = scored(path, measure=measure, top=K, **more)
        assert score.value == pytest.approx(bounded(confidence, K), abs=1e-9)
        one_by_one = [n.raw for n in path]
        for node in path:
            node.raw = None
        at_once = scored_at_once(path, measure=measure, top=K, **more)
        assert at_once.steps == pytest.approx(one_by_one)
        assert at_once.value == pytest.approx(score.value)


def scored_at_once(path: list[Node], **how: Any) -> Score:
    scorer = Confidence.model_validate(how).scorer(Models(FakeEngine(), PROFILE))
    return run(scorer.score(PROMPT, path))


def test_a_steps_verdict_is_of_the_windows_that_end_in_it() -> None:
    """Confidences 1 1 | 9 9 | 5, in windows of three."""
    path = chain([[(-1.0, -1.0)] * 2, [(-9.0, -9.0)] * 2, [(-5.0, -5.0)]])
    score = scored(path, measure="lowest_group", top=2, window=3)
    assert raws(path) == pytest.approx([1.0, 11 / 3, 23 / 3])
    assert score.value == pytest.approx(1 - log(2) / (11 / 3))


@settings(max_examples=60)
@given(st.floats(log(K), -FLOOR), st.floats(log(K), -FLOOR))
def test_the_map_rises(a: float, b: float) -> None:
    assert 0 <= bounded(a, K) < 1
    assert (bounded(a, K) <= bounded(b, K)) == (a <= b)


def test_bounds_of_the_token_measures() -> None:
    even, sure = (log(0.25),) * 4, (0.0, -inf, -inf, -inf)
    assert bounded(token_confidence(even), 4) == pytest.approx(0.0)
    assert token_confidence(sure) == -0.75 * FLOOR
    assert [evenness(even), evenness(sure)] == pytest.approx([1.0, 0.0])
    assert share(0.0, sure) == 1.0
    assert groups([], 3) == []


def test_tokens_of_which_nothing_is_known_do_not_count() -> None:
    path = chain([[(-1.0, -2.0), (-0.1, -3.0)], [(-0.5, -1.0)]])
    for measure in ("entropy", "share", "lowest_group", "trace"):
        known = chain([[(-1.0, -2.0)]])
        expected = scored(known, measure=measure, top=2)
        path = chain([[(-1.0, -2.0), (-0.1, -3.0)], [(-0.5, -1.0)]])
        for node, tops in zip(path, [((-1.0, -2.0), ()), ((),)], strict=True):
            assert node.step
            node.step = replace(node.step, tops=tops)
        score = scored(path, measure=measure, top=2)
        assert raws(path) == [pytest.approx(known[0].raw), None]
        assert score.value == pytest.approx(expected.value)


@pytest.mark.parametrize(
    ("measure", "missing", "message"),
    [
        ("mean", "logprobs", "gives no log-probabilities"),
        ("tail", "logprobs", "gives no log-probabilities"),
        ("entropy", "tops", "does not give the likeliest"),
        ("trace", "tops", "does not give the likeliest"),
    ],
)
def test_what_an_engine_does_not_give_is_said(measure: str, missing: str, message: str) -> None:
    (node,) = chain([[(-1.0, -2.0)]])
    assert node.step
    node.step = replace(node.step, logprobs=()) if missing == "logprobs" else node.step
    node.step = replace(node.step, tops=()) if missing == "tops" else node.step
    with pytest.raises(ScorerError, match=message):
        scored([node], measure=measure)


@pytest.mark.parametrize("measure", ["mean", "tail"])
def test_a_step_without_tokens_does_not_count(measure: str) -> None:
    leaf = grow(None, "ab", "")
    score = scored(leaf.path(), measure=measure)
    assert raws(leaf.path()) == [pytest.approx(exp(-0.5)), None]
    assert score.value == pytest.approx(exp(-0.5))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"measure": "tail", "aggregate": "min"}, "aggregate is for"),
        ({"measure": "mean", "top": 5}, "top is for"),
        ({"measure": "entropy", "window": 9}, "window is for"),
        ({"measure": "lowest_group", "bottom": 0.2}, "bottom is for"),
        ({"measure": "trace", "top": 21}, "less than or equal to 20"),
        ({"measure": "trace", "top": 1}, "greater than or equal to 2"),
    ],
)
def test_settings_that_mean_nothing(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Confidence.model_validate(how)


def test_what_it_needs_of_the_engine() -> None:
    needs = {m: Confidence.model_validate({"measure": m}).top_logprobs for m in ("mean", "tail")}
    assert needs == {"mean": 0, "tail": 0}
    assert Confidence(measure="share").top_logprobs == 5
    assert Confidence(measure="lowest_group").top_logprobs == 20
    assert Confidence(measure="entropy", top=8).top_logprobs == 8


@given(
    st.lists(st.lists(st.floats(0, 20), max_size=9), max_size=9),
    st.integers(1, 12),
)
def test_the_lowest_group_is_known_while_tokens_come(steps: list[list[float]], window: int) -> None:
    seen, tokens = LowestGroup(window), list[float]()
    for step in steps:
        seen.add(step)
        tokens += step
        whole = groups(tokens, window) if len(tokens) >= window else [inf]
        assert seen.confidence == pytest.approx(min(whole), abs=1e-9)


@given(st.lists(st.floats(0, 20), max_size=30), st.integers(1, 12), st.integers(0, 30))
def test_groups_since_are_the_last_ones(tokens: list[float], window: int, since: int) -> None:
    every = groups(tokens, window)
    if len(tokens) > window:
        last = len(tokens) - max(window, since + 1) + 1
        assert groups(tokens, window, since) == pytest.approx(every[len(every) - max(0, last) :])
    else:
        assert groups(tokens, window, since) == every
