"""Resampling: counts, expectations, and the cascade's queue."""

from __future__ import annotations

import random
from math import exp, inf, log
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.search.rebase import divide
from server.search.resampling import (
    Queue,
    Resampling,
    effective_size,
    log_odds,
    resample,
    shares,
)

log_weights = st.lists(st.floats(-30, 30), min_size=1, max_size=40)
hows: list[Resampling] = ["multinomial", "systematic"]


@given(log_weights, st.sampled_from(hows), st.integers())
def test_as_many_are_drawn_as_there_are(weights: list[float], how: Resampling, seed: int) -> None:
    counts = resample(weights, how, random.Random(seed))
    assert len(counts) == len(weights)
    assert sum(counts) == len(weights)
    assert min(counts) >= 0


@given(log_weights, st.integers())
def test_systematic_stays_within_one_of_the_share(weights: list[float], seed: int) -> None:
    counts = resample(weights, "systematic", random.Random(seed))
    for count, share in zip(counts, shares(weights), strict=True):
        assert abs(count - len(weights) * share) < 1 + 1e-9


@pytest.mark.parametrize("how", hows)
def test_a_particle_is_drawn_in_proportion(how: Resampling) -> None:
    weights = [log(w) for w in (1, 2, 3, 4, 10)]
    rng = random.Random(7)
    counts = [resample(weights, how, rng) for _ in range(4000)]
    for i, expected in enumerate((0.25, 0.5, 0.75, 1, 2.5)):
        assert fmean(c[i] for c in counts) == pytest.approx(expected, abs=0.06)


@given(log_weights)
def test_effective_size(weights: list[float]) -> None:
    assert sum(shares(weights)) == pytest.approx(1)
    assert 1 - 1e-9 <= effective_size(weights) <= len(weights) + 1e-9
    assert effective_size([weights[0]] * len(weights)) == pytest.approx(len(weights))


def test_odds() -> None:
    assert log_odds(0.5) == 0
    assert log_odds(0.8) == pytest.approx(log(4))
    assert log_odds(0) == log_odds(-inf) == pytest.approx(-log_odds(1))


@given(st.integers(0, 64), st.lists(st.floats(-40, 40), min_size=1, max_size=40))
def test_a_budget_is_divided_without_rest(budget: int, weights: list[float]) -> None:
    falling = sorted(weights, reverse=True)
    counts = divide(budget, falling)
    assert sum(counts) == budget and min(counts) >= 0
    assert budget == 0 or counts[0] >= 1


def test_the_budget_goes_where_the_weight_is() -> None:
    assert divide(16, [0.0, 0.0, 0.0, 0.0]) == [4, 4, 4, 4]
    assert divide(5, [0.0, 0.0, 0.0, 0.0]) == [2, 1, 1, 1]
    assert divide(16, [log(2), 0.0, 0.0]) == [8, 4, 4]
    assert divide(4, [50.0, 0.0, 0.0]) == [4, 0, 0]
    assert divide(0, [1.0]) == [0]
    assert divide(3, []) == []


@given(st.integers(1, 20), log_weights, st.integers())
def test_a_queue_lets_no_more_through_than_its_size(
    size: int, weights: list[float], seed: int
) -> None:
    queue, rng = Queue(size), random.Random(seed)
    counts = [queue.offspring(w, rng)[0] for w in weights]
    assert counts[0] == 1  # there is nothing to compare the first one with
    assert sum(counts) == queue.children <= size
    assert min(counts) >= 0


def test_equals_pass_one_by_one() -> None:
    queue, rng = Queue(8), random.Random(0)
    assert [queue.offspring(3.0, rng)[0] for _ in range(10)] == [1] * 8 + [0, 0]


@pytest.mark.parametrize("weight", [0.1, 0.5, 2.0, 7.0])
def test_the_cascade_is_unbiased(weight: float) -> None:
    """A particle's children weigh what it does, in expectation."""

    def passed(seed: int) -> float:
        queue, rng = Queue(100), random.Random(seed)
        for _ in range(10):
            queue.offspring(0.0, rng)
        count, each = queue.offspring(log(weight), rng)
        return count * exp(each)

    assert fmean(map(passed, range(3000))) == pytest.approx(weight, rel=0.15)
