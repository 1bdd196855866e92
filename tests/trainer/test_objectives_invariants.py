"""What holds for every tree: a prefix is counted once, masked tokens weigh nothing, ids are what
the policy saw; and shaping leaves the best policy the best."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.search.mcts import MCTS
from tests.trainer.trees import Growing, of_search, trees
from trainer.credit import Shaping, shaped
from trainer.node import Node
from trainer.objectives.awr import Awr
from trainer.objectives.distill import Distill
from trainer.objectives.dpo import Dpo
from trainer.objectives.expert_iteration import ExpertIteration
from trainer.objectives.grpo import Grpo
from trainer.objectives.ppo import Ppo
from trainer.objectives.reinforce import Reinforce
from trainer.objectives.sft import Sft
from trainer.objectives.step_dpo import StepDpo
from trainer.objectives.tree_pg import TreePg
from trainer.rows import check
from trainer.tree import Tree

TOKENS = [
    *(Sft(least=0.5), ExpertIteration(), Awr(), Distill(visits=1)),
    *(Reinforce(), Ppo(), Grpo(), Grpo(group="siblings"), TreePg()),
]
GRADIENTS = [Reinforce, Ppo, Grpo, TreePg]


def rows(objective: Any, tree: Tree) -> list[Any]:
    found: list[Any] = list(objective.rows([tree], Counter()))
    for row in found:
        check(row, "here")
    return found


def places(tree: Tree) -> dict[tuple[int, ...], list[list[tuple[Node, int] | None]]]:
    """By ids, the step and token that each place of a sequence may be."""
    found: dict[tuple[int, ...], list[list[tuple[Node, int] | None]]] = defaultdict(list)
    for end in tree.steps:
        for turn in tree.turns(end):
            owners: list[tuple[Node, int] | None] = [None] * len(turn.prompt)
            owners += [(p.node, i) for p in turn.pieces for i in range(p.size)]
            found[turn.ids].append(owners)
    return found


@given(trees(), st.sampled_from(TOKENS))
def test_rows_are_what_the_policy_saw(tree: Tree, objective: Any) -> None:
    known = places(tree)
    assert all(row.ids in known for row in rows(objective, tree))


@given(trees(), st.sampled_from(TOKENS))
def test_what_the_server_put_in_weighs_nothing(tree: Tree, objective: Any) -> None:
    for row in rows(objective, tree):
        for place in range(len(row.ids)):
            weighs = any(w and w[place] for w in (row.ce, row.rl, row.ref_kl))
            owners = [owner[place] for owner in places(tree)[row.ids]]
            assert not weighs or any(o is not None and o[0].weights[o[1]] for o in owners)


def distinct(tree: Tree) -> bool:
    """Whether ids say which step a token belongs to."""
    return all(len(found) == 1 for found in places(tree).values())


@given(trees().filter(distinct), st.sampled_from(TOKENS))
def test_a_step_weighs_something_in_one_row_only(tree: Tree, objective: Any) -> None:
    """An end that was taken back is cut off in one row and whole in another: once, too."""
    seen: Counter[tuple[int, int]] = Counter()
    for row in rows(objective, tree):
        (owners,) = places(tree)[row.ids]
        for place, owner in enumerate(owners):
            if owner and any(w and w[place] for w in (row.ce, row.rl)):
                seen[owner[0].id, owner[1]] += 1
    assert set(seen.values()) <= {1}


@given(trees().filter(distinct), st.sampled_from(GRADIENTS), st.sampled_from([0.0, 0.5, 1.0]))
def test_packing_changes_no_gradient(tree: Tree, kind: Any, damping: float) -> None:
    """The sum of weight times advantage of each token is the same in one row and in many."""

    def sums(prefixes: str) -> dict[tuple[int, int], float]:
        total: dict[tuple[int, int], float] = defaultdict(float)
        for row in rows(kind(prefixes=prefixes, damping=damping), tree):
            (owners,) = places(tree)[row.ids]
            for place, owner in enumerate(owners):
                if owner and row.rl[place]:
                    total[owner[0].id, owner[1]] += row.rl[place] * row.advantage[place]
        return total

    assert sums("once") == pytest.approx(sums("per_leaf"))


@given(trees())
def test_pairs_go_on_from_one_prompt(tree: Tree) -> None:
    known = {(tree.seen(n), n.ids) for n in tree.steps}
    whole = set(places(tree))
    for row in rows(StepDpo(), tree):
        assert {(row.prompt_ids, row.chosen_ids), (row.prompt_ids, row.rejected_ids)} <= known
    for row in rows(Dpo(gap=0.5), tree):
        assert {row.prompt_ids + row.chosen_ids, row.prompt_ids + row.rejected_ids} <= whole


@pytest.mark.parametrize("objective", TOKENS, ids=lambda o: o.kind)
def test_rows_of_a_real_search(objective: Any) -> None:
    tree = Tree(of_search(MCTS(simulations=16)), "here")
    found = rows(objective, tree)
    assert found
    assert all(row.ids in places(tree) for row in found)
    assert all(row.logp for row in found)


# A toy problem: two steps of two choices each; outcomes and potentials of every state.
ACTIONS = ("0", "1")
PROBABILITIES = st.lists(st.floats(-2, 2), min_size=2, max_size=2)


@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=4, max_size=4),
    PROBABILITIES,
    st.sampled_from([0.5, 0.9, 1.0]),
)
def test_shaping_leaves_the_best_policy_the_best(
    outcomes: list[float], potentials: list[float], gamma: float
) -> None:
    """Ng, Harada and Russell (1999), theorem 1, over every deterministic policy."""
    phi = {"": 0.0, "0": potentials[0], "1": potentials[1]}
    won = dict(zip(("00", "01", "10", "11"), outcomes, strict=True))

    def returns(policy: dict[str, str], *, with_shaping: bool) -> float:
        state, total, discount = "", 0.0, 1.0
        while len(state) < 2:
            after = state + policy[state]
            reward = won.get(after, 0.0)
            if with_shaping:
                reward = shaped(reward, phi[state], phi.get(after, 0.0), gamma)
            total, discount, state = total + discount * reward, discount * gamma, after
        return total

    policies = [dict(zip(("", "0", "1"), p, strict=True)) for p in product(ACTIONS, repeat=3)]
    plain = [returns(p, with_shaping=False) for p in policies]
    with_it = [returns(p, with_shaping=True) for p in policies]
    assert with_it == pytest.approx(plain)


@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=4, max_size=4),
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=2),
)
def test_shaping_leaves_the_gradient_what_it_was(
    outcomes: list[float], potentials: list[float]
) -> None:
    """Every answer drawn once by a uniform policy: what a potential adds is the same for all
    steps of a state, so that the expected gradient, their differences, is the same."""
    growing = Growing()
    for raw, action in zip(potentials, ACTIONS, strict=True):
        growing.add(0, action, prm_raw=raw)
    for at, (parent, action) in enumerate(product((1, 2), ACTIONS)):
        growing.add(parent, action, outcome=outcomes[at])
    tree = growing.tree()

    def credits(**settings: Any) -> dict[int, float]:
        objective = Reinforce(constant=True, baseline="mean", **settings)
        ((_, credit),) = objective.credits([tree], Counter())
        ends = {n: [e for e in tree.ends if n in e.path()] for n in tree.steps}
        return {
            n.id: sum(credit(n, e) or 0.0 for e in through) / len(through)
            for n, through in ends.items()
        }

    plain, with_it = credits(), credits(shaping=Shaping())
    for first, second in ((1, 2), (3, 4), (5, 6)):
        gap = plain[first] - plain[second]
        assert with_it[first] - with_it[second] == pytest.approx(gap)
