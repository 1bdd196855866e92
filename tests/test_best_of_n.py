"""Best of N with speculative rejection."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from server.search import BestOfN
from server.search.events import PruneEvent
from server.search.writer import seed_of
from server.types import Sampling
from tests.fakes import CodePoints, FakeEngine, FakeScorer, write
from tests.oracles.rejection import speculative_rejection
from tests.oracles.textbook import Key, Made, Make
from tests.searching import Ran, searched
from tests.test_oracles import value_of

SEEDS = range(4)
LOCKSTEP = {"p_end": 0.001, "length": 0.1}  # steps of two tokens; no answer ends before 40


def wholes(seed: int, shape: dict[str, Any], tokens: int) -> Make:
    """Answers asked for in one go at (i,); their steps are (i,), (i, 0), (i, 0, 0), ..."""

    @cache
    def lines_of(first: Key) -> list[str]:
        ids = write(seed_of(seed, first, 0), Sampling(), **shape)
        return CodePoints().decode(ids[:tokens]).splitlines(keepends=True)

    @cache
    def make(key: Key) -> Made:
        lines = lines_of(key[:1])
        prefix = "".join(lines[: len(key)])
        return Made(prefix, len(key) == len(lines), value_of(prefix), 0.0)

    return make


def race(
    strategy: BestOfN, seed: int, shape: dict[str, Any], tokens: int, scorer: FakeScorer
) -> Ran:
    """Answers of at most so many `tokens`, each one engine request."""
    lengths: dict[str, Any] = {"max_tokens": tokens, "chunk": tokens, "max_step_tokens": tokens}
    return searched(strategy, seed=seed, engine=FakeEngine(**shape), scorer=scorer, **lengths)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("n", "reject", "every"), [(16, 0.5, 1), (16, 0.3, 2), (12, 0.75, 3), (1, 0.5, 1), (5, 0.1, 1)]
)
def test_in_lockstep_it_is_the_papers(n: int, reject: float, every: int, seed: int) -> None:
    strategy = BestOfN(n=n, reject=reject, reject_every=every if reject else 1)
    ran = race(strategy, seed, LOCKSTEP, 40, FakeScorer(delay=0.01))
    nodes, lost, best = speculative_rejection(wholes(seed, LOCKSTEP, 40), n, reject, every)
    # A second child is of the time after the race: no answer was ended by the policy itself.
    raced = [n for n in ran.search.nodes if not any(n.key[1:])]
    assert {n.key for n in raced} == nodes | {()}
    assert {n.key for n in raced if n.pruned} == lost
    ends = [n for n in raced if n.finished]
    assert max(ends, key=lambda n: n.rank).key == best


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("delay", [0.0, 0.3, 5.0])
@pytest.mark.parametrize(("reject", "every"), [(0.5, 1), (0.4, 2)])
def test_out_of_step_the_same_are_given_up(
    reject: float, every: int, delay: float, seed: int
) -> None:
    """Steps of all lengths and a scorer of any speed: whom the paper keeps is written to its end,
    and whom it gives up is aborted, unless it has ended by then."""
    shape = {"p_end": 0.2, "length": 12.0}
    strategy = BestOfN(n=10, reject=reject, reject_every=every)
    ran = race(strategy, seed, shape, 600, FakeScorer(delay=delay))
    _, lost, _ = speculative_rejection(wholes(seed, shape, 600), 10, reject, every)
    losers = {key[0] for key in lost}
    ended = {n.key[0] for n in ran.search.nodes if n.finished}
    aborted = {n.key[0] for n in ran.search.nodes if n.pruned}
    assert set(range(10)) - losers <= ended
    assert aborted == losers - ended


@given(
    st.integers(1, 12),
    st.sampled_from([0.0, 0.2, 0.5, 0.9]),
    st.integers(1, 3),
    st.integers(0, 9),
    st.integers(60, 3000),
    st.sampled_from([None, 1, 4]),
    st.sampled_from([None, 3, 20]),
)
@settings(max_examples=100)
def test_books_balance_under_any_budget(
    n: int,
    reject: float,
    every: int,
    seed: int,
    tokens: int,
    concurrency: int | None,
    calls: int | None,
) -> None:
    budget = {"tokens": tokens, "concurrency": concurrency, "calls": calls}
    strategy = BestOfN(n=n, reject=reject, reject_every=every if reject else 1)
    ran = searched(strategy, seed=seed, budget={**budget, "reserve": tokens // 4})
    search = ran.search
    assert ran.tasks == ran.engine.open_streams == search.budget.held == 0
    assert search.budget.spent == ran.engine.generated == search.writer.ledger.generated
    assert search.tree.kept <= search.budget.spent <= tokens
    assert not any(n.pruned and n.finished for n in search.nodes)


def test_decisions_need_a_share_to_give_up() -> None:
    with pytest.raises(ValidationError, match="reject_every needs reject"):
        BestOfN(reject_every=2)


def test_without_rejection_it_is_best_of_n() -> None:
    plain, none = (searched(BestOfN(n=9, **how)) for how in ({}, {"reject": 0.0}))
    assert plain.texts == none.texts
    assert none.scorer.calls == 9


def test_a_loser_is_aborted_at_once() -> None:
    """What it wrote after its last whole step is discarded, and the rest is never written."""
    plain = searched(BestOfN(n=16))
    ran = searched(BestOfN(n=16, reject=0.5))
    assert ran.engine.generated < 0.75 * plain.engine.generated
    assert ran.search.budget.spent > ran.search.tree.kept
    finished = [n for n in ran.search.nodes if n.finished]
    pruned = [e.node for e in ran.events if isinstance(e, PruneEvent)]
    assert len(finished) + len(pruned) == 16


def test_a_good_enough_answer_ends_the_race() -> None:
    ran = searched(BestOfN(n=16, reject=0.2, stop_at=0.3))
    ends = [n for n in ran.search.nodes if n.finished]
    assert sum(n.value >= 0.3 for n in ends) == 1
    assert ran.tasks == ran.engine.open_streams == 0
