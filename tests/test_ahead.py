"""What runs ahead of the scorer pays for itself, or stays within the tokens set aside for it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.search import DVTS, MCTS, Beam, Particles, Rebase
from server.search.ahead import MOST, WASTE, Ahead
from tests.fakes import FakeScorer
from tests.searching import searched
from tests.test_search import assert_settled

BRANCH = st.tuples(st.floats(0, 1), st.integers(1, 200), st.floats(0, 1), st.booleans())


@given(st.lists(BRANCH, max_size=200))
def test_what_is_thrown_away_is_paid_for(branches: list[tuple[float, int, float, bool]]) -> None:
    """One after the other: beyond what was paid in, never more than one branch's own."""
    ahead = Ahead()
    generated = wasted = most = 0
    for value, tokens, share, on in branches:
        aside = ahead.worth(value)
        lost = 0 if aside is None or on else int(tokens * share)
        generated, wasted, most = generated + tokens, wasted + lost, max(most, lost)
        assert wasted <= MOST + WASTE * generated + most
        if aside is not None:
            ahead.went_on(value) if on else ahead.gave_up(value, lost)
        ahead.settle(tokens, lost, aside or 0.0)
        assert ahead.free <= MOST


def test_good_paths_run_ahead_first() -> None:
    ahead = Ahead()
    for _ in range(40):
        ahead.went_on(0.9)
        ahead.gave_up(0.1, 8)
    ahead.settle(0, int(MOST / 2), 0.0)
    assert ahead.worth(0.9) is not None
    assert ahead.worth(0.1) is None
    ahead.settle(int(MOST / 2 / WASTE) + 100, 0, 0.0)
    assert ahead.worth(0.1) is not None


def test_an_unscored_path_is_one_that_is_worth_nothing() -> None:
    assert Ahead().worth(float("-inf")) == Ahead().worth(0.0)


@pytest.mark.parametrize(
    "strategy",
    [Beam(width=2, branch=3), DVTS(trees=2), MCTS(simulations=24), Particles(n=6), Rebase(n=6)],
    ids=lambda strategy: str(strategy.kind),
)
def test_searches_share_what_they_may_throw_away(strategy: Any) -> None:
    ahead = Ahead()
    spent = kept = plain = 0
    for seed in range(30):
        ran = searched(strategy, seed=seed, scorer=FakeScorer(), lookahead=60, ahead=ahead)
        assert_settled(ran)
        spent, kept = spent + ran.search.budget.spent, kept + ran.search.tree.kept
        plain += ran.engine.requests - (len(ran.search.nodes) - 1)
    assert 0 < spent - kept <= WASTE * spent + 2 * MOST
    assert plain < 0  # requests saved
