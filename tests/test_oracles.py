"""Each strategy, in its lockstep setting, builds the tree of its textbook."""

from __future__ import annotations

import random
from functools import cache

import pytest

from server.search import MCTS, Beam, BestOfN, Vote
from server.search.writer import seed_of
from server.types import Sampling
from tests.fakes import EOS, CodePoints, FakeEngine, write
from tests.oracles import textbook
from tests.oracles.textbook import Key, Made
from tests.searching import searched

SEEDS = range(8)
P_END, LENGTH = 0.3, 1.2  # short steps, so that equal siblings occur


def engine() -> FakeEngine:
    return FakeEngine(p_end=P_END, length=LENGTH)


def steps_of(seed: int, key: Key) -> list[list[int]]:
    """What the fake engine writes when asked at `key`, cut into steps."""
    steps: list[list[int]] = [[]]
    for token in write(seed_of(seed, key, 0), Sampling(), P_END, LENGTH):
        steps[-1].append(token)
        if token == ord("\n"):
            steps.append([])
    return steps


def stepwise(seed: int) -> textbook.Make:
    """Every step asked for on its own, as step-level searches do."""

    @cache
    def text(key: Key) -> str:
        return text(key[:-1]) + CodePoints().decode(steps_of(seed, key)[0]) if key else ""

    def make(key: Key) -> Made:
        ids = steps_of(seed, key)[0]
        logprob = sum(-0.1 - (i % 7) / 10 for i in ids) / len(ids)
        return Made(text(key), ids[-1] == EOS, value_of(text(key)), logprob)

    return make


def whole(seed: int) -> textbook.Make:
    """Answers asked for in one go at (i,); their steps are (i,), (i, 0), (i, 0, 0), ..."""

    def make(key: Key) -> Made:
        steps = steps_of(seed, key[:1])
        text = "".join(CodePoints().decode(s) for s in steps[: len(key)])
        return Made(text, len(key) == len(steps), value_of(text), 0.0)

    return make


def value_of(text: str) -> float:
    """The fake scorer's."""
    return random.Random(text).random()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("strategy", [BestOfN(n=7, stop_at=1), Vote(n=7, choose="weighted")])
def test_whole_answers(strategy: BestOfN | Vote, seed: int) -> None:
    ran = searched(strategy, seed=seed, engine=engine())
    nodes, best = textbook.best_of_n(whole(seed), 7)
    assert set(ran.keys) == nodes | {()}
    finished = [n for n in ran.search.nodes if n.finished]
    assert max(finished, key=lambda n: n.rank).key == best


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("width", "branch"), [(1, 1), (1, 4), (3, 2), (4, 4)])
def test_beam(width: int, branch: int, seed: int) -> None:
    ran = searched(Beam(width=width, branch=branch, quorum=1), seed=seed, engine=engine())
    nodes, best = textbook.beam(stepwise(seed), width, branch)
    assert set(ran.keys) == nodes | {()}
    finished = [n for n in ran.search.nodes if n.finished]
    assert (max(n.value for n in finished) if finished else None) == best


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("widen", [0.0, 0.3, 0.5])
@pytest.mark.parametrize(("simulations", "branch", "c"), [(1, 4, 1.0), (20, 3, 1.0), (30, 4, 0.2)])
def test_mcts(simulations: int, branch: int, c: float, widen: float, seed: int) -> None:
    strategy = MCTS(simulations=simulations, branch=branch, c=c, widen=widen, parallel=1)
    ran = searched(strategy, seed=seed, engine=engine())
    expected = textbook.puct(stepwise(seed), simulations, branch, c, widen)
    # Not visited: what was written after the search, because it had found no answer.
    visited = [n for n in ran.search.nodes if n.visits]
    assert {n.place: n.visits for n in visited} == {k: n for k, (n, _) in expected.items()}
    for node in visited:
        assert node.value_sum == pytest.approx(expected[node.place][1])


@pytest.mark.parametrize("seed", SEEDS)
def test_mcts_visits_add_up_whatever_runs_at_once(seed: int) -> None:
    """A node's visits are its own evaluation, its children's, and returns to a finished one."""
    strategy = MCTS(simulations=40, parallel=6)
    ran = searched(strategy, seed=seed, engine=engine(), lookahead=20)
    for node in ran.search.nodes:
        below = sum(child.visits for child in node.children)
        if node.finished:
            assert node.visits >= 1 and below == 0
        else:
            assert node.visits == below + (node is not ran.search.root)
        assert 0 <= node.value_sum <= node.visits


def test_equal_siblings_are_merged_and_counted() -> None:
    ran = searched(MCTS(simulations=20, branch=12, widen=0), engine=engine())
    assert max(n.multiplicity for n in ran.search.nodes) > 1
    for node in ran.search.nodes:
        if node.children:
            assert sum(c.multiplicity for c in node.children) == 12
            assert len({c.text() for c in node.children}) == len(node.children)
