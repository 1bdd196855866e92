"""MCTS against its textbook, one simulation at a time; and its invariants with several."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from server.search import MCTS
from server.search.events import PruneEvent
from server.search.tree_policy import Pending, TreePolicy, back_up_max, back_up_mean
from server.types import Node, Prompt
from tests.fakes import EOS, CodePoints
from tests.oracles.textbook import Key, Made
from tests.oracles.tree_search import Rollout, Textbook
from tests.searching import Ran, searched
from tests.test_oracles import engine, steps_of, stepwise, value_of

SEEDS = range(4)


def table(ran: Ran) -> dict[Key, tuple[int, float]]:
    """What the textbook gives: visits and Q. What was written after the search, because it had
    found no answer, has no visits."""
    return {n.place: (n.visits, n.value_sum / n.visits) for n in ran.search.nodes if n.visits}


def assert_same(found: dict[Key, tuple[int, float]], book: dict[Key, tuple[int, float]]) -> None:
    assert {k: n for k, (n, _) in found.items()} == {k: n for k, (n, _) in book.items()}
    for key, (_, q) in found.items():
        assert q == pytest.approx(book[key][1])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("select", ["puct", "uct"])
@pytest.mark.parametrize("backup", ["mean", "max"])
@pytest.mark.parametrize(
    ("simulations", "branch", "c", "widen"), [(20, 3, 1.0, 0.0), (30, 4, 0.2, 0.3)]
)
def test_textbook(
    simulations: int, branch: int, c: float, widen: float, select: Any, backup: Any, seed: int
) -> None:
    sizes: dict[str, Any] = {"simulations": simulations, "branch": branch, "c": c, "widen": widen}
    strategy = MCTS(**sizes, select=select, backup=backup, parallel=1)
    book = Textbook(**sizes, rule=select, maximum=backup == "max")
    ran = searched(strategy, seed=seed, engine=engine())
    assert_same(table(ran), book.steps(stepwise(seed)))


def rollouts(seed: int) -> Rollout:
    """Whole answers, as the fake engine writes them when asked at a place."""

    def rollout(text: str, place: Key) -> tuple[list[Made], float]:
        made = []
        for ids in steps_of(seed, place):
            text += CodePoints().decode(ids)
            logprob = sum(-0.1 - (i % 7) / 10 for i in ids) / len(ids)
            made.append(Made(text, ids[-1] == EOS, value_of(text), logprob))
        return made, made[-1].value

    return rollout


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("select", ["puct", "uct"])
@pytest.mark.parametrize("backup", ["mean", "max"])
def test_rollouts_stay_in_the_tree(select: Any, backup: Any, seed: int) -> None:
    sizes: dict[str, Any] = {"simulations": 40, "branch": 1, "c": 0.5, "widen": 0.6}
    strategy = MCTS(**sizes, select=select, backup=backup, granularity="solution", parallel=1)
    book = Textbook(**sizes, rule=select, maximum=backup == "max")
    ran = searched(strategy, seed=seed, engine=engine(), chunk=400)
    expected = book.solutions(rollouts(seed))
    assert_same(table(ran), expected)
    assert all(n.finished for n in ran.search.nodes if n.score is not None)
    between = [n for n in ran.search.nodes[1:] if not n.finished]
    assert any(len(n.children) > 1 for n in between)  # expanded where a rollout had passed


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("futile", [0.2, 0.5, 0.8])
def test_what_is_futile_is_given_up(futile: float, seed: int) -> None:
    sizes: dict[str, Any] = {"simulations": 24, "branch": 3, "c": 1.0, "widen": 0.3}
    ran = searched(
        MCTS(**sizes, futile=futile, parallel=1), seed=seed, engine=engine(), budget={"reserve": 0}
    )
    assert_same(table(ran), Textbook(**sizes, futile=futile).steps(stepwise(seed)))
    pruned = [e.node for e in ran.events if isinstance(e, PruneEvent)]
    for node in pruned:
        assert node.value < futile or all(child.pruned for child in node.children)
    if ran.search.root.pruned:
        written = {n for n in ran.search.nodes if n.visits and not n.finished}
        assert written <= set(pruned)


def test_a_hopeless_search_ends_early() -> None:
    ran = searched(MCTS(simulations=1000, branch=2, widen=0, futile=0.999), engine=engine())
    assert ran.search.root.pruned
    assert len([n for n in ran.search.nodes if n.visits]) <= 3  # the root and its children
    assert ran.search.tree.answered  # the best of them, written to its end


@pytest.mark.parametrize("granularity", ["step", "solution"])
def test_a_refuted_answer_ends_nothing(granularity: Any) -> None:
    fields: dict[str, Any] = {"simulations": 24, "granularity": granularity, "parallel": 1}
    lenient = MCTS(**fields, stop_at=0.01)
    liked = searched(lenient, engine=engine())
    judged = searched(lenient, engine=engine(), judge=Never())
    assert table(judged) == table(searched(MCTS(**fields), engine=engine()))
    assert len(table(liked)) < len(table(judged))
    assert any(n.refuted and n.value >= 0.01 for n in judged.search.nodes)


class Never:
    """A judge that nothing is right for."""

    async def verdict(self, prompt: Prompt, text: str) -> float | None:
        return 0.0


sizes = st.fixed_dictionaries(
    {
        "simulations": st.integers(1, 40),
        "branch": st.integers(1, 6),
        "widen": st.sampled_from([0.0, 0.3, 0.6]),
        "parallel": st.integers(1, 8),
        "c": st.floats(0, 3),
        "select": st.sampled_from(["puct", "uct"]),
        "in_flight": st.sampled_from(["virtual_loss", "unobserved"]),
        "backup": st.sampled_from(["mean", "max"]),
        "stop_at": st.sampled_from([0.9, 1.0]),
    }
)
kinds = st.sampled_from([{}, {"futile": 0.3}, {"granularity": "solution"}])


@given(sizes, kinds, st.integers(0, 9), st.sampled_from([0, 40]))
@settings(max_examples=80)
def test_visits_add_up_whatever_runs_at_once(
    fields: dict[str, Any], kind: dict[str, Any], seed: int, lookahead: int
) -> None:
    """A node's visits are its own evaluation (a step's), its children's, and returns to a
    finished one; Q lies within the values found below it."""
    ran = searched(MCTS(**fields, **kind), seed=seed, engine=engine(), lookahead=lookahead)
    search = ran.search
    assert ran.tasks == ran.engine.open_streams == search.budget.held == 0
    assert search.budget.spent == ran.engine.generated
    for node in search.nodes:
        below = sum(child.visits for child in node.children)
        if node.finished:
            assert not node.children
        elif kind.get("granularity") == "solution":
            assert node.visits == below
        elif node.visits:
            assert node.visits == below + (node is not search.root)
        if node.visits:
            assert -1e-9 <= node.value_sum / node.visits <= 1 + 1e-9
        assert sum(child.prior or 0.0 for child in node.children if child.visits) <= 1 + 1e-9


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.integers(0, 5), st.floats(0, 2))
def test_unobserved_simulations_lower_the_bonus_only(
    values: list[float], flying: int, c: float
) -> None:
    root = Node()
    root.children = [Node(parent=root, key=(i,), place=(i,), prior=0.5) for i in range(len(values))]
    for child, value in zip(root.children, values, strict=True):
        back_up_mean([root, child], value)
    first = root.children[0]
    pending = Pending({root: flying, first: flying})
    for rule in ("puct", "uct"):
        loss = TreePolicy(rule, c, "virtual_loss").worth(root, first, pending)
        count = TreePolicy(rule, c, "unobserved").worth(root, first, pending)
        assert count - loss == pytest.approx(values[0] - values[0] / (1 + flying))
        assert TreePolicy(rule, 0, "unobserved").worth(root, first, pending) == values[0]


def test_max_is_the_best_child() -> None:
    root = Node()
    left, right = (Node(parent=root, place=(i,)) for i in range(2))
    below = Node(parent=left, place=(0, 0))
    root.children, left.children = [left, right], [below]
    back_up_max([root, left], 0.9)
    back_up_max([root, right], 0.5)
    back_up_max([root, left, below], 0.2)  # better known now: `left` is worth no more than this
    assert [n.value_sum / n.visits for n in (root, left, right, below)] == [0.5, 0.2, 0.5, 0.2]
    assert [n.visits for n in (root, left, right, below)] == [3, 2, 1, 1]


def test_rollouts_have_no_futile_steps() -> None:
    with pytest.raises(ValidationError, match="futile needs granularity step"):
        MCTS(granularity="solution", futile=0.1)
