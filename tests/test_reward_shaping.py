"""Shaping changes no optimal policy, for any potential that is 0 at the end; and only then."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from server.reward import Models, Reward
from server.reward.shaping import shaped
from server.types import Node, Stop
from tests.fakes import FakeEngine
from tests.rewarding import PROFILE, FakePrm, grow, prompt_of
from tests.test_reward_composite import land
from tests.virtual import run

Number = Fraction
numbers = st.fractions(-5, 5, max_denominator=6)


@dataclass
class State:
    """Of an enumerated process: what can be done leads to a state, at a reward."""

    actions: list[tuple[Number, State]] = field(default_factory=list)  # none: it ends here
    potential: Number = Fraction(0)


@st.composite
def processes(draw: st.DrawFn) -> State:
    """Ten states at most, each leading to later ones only, so that states are reached in several
    ways; often with equal rewards, so that several actions are optimal."""
    states = [State(potential=draw(numbers)) for _ in range(draw(st.integers(2, 10)))]
    rewards = st.one_of(st.sampled_from([Fraction(0), Fraction(1)]), numbers)
    for i, state in enumerate(states):
        later = st.integers(i + 1, len(states) - 1)
        for _ in range(draw(st.integers(1 if i == 0 else 0, 3)) if i + 1 < len(states) else 0):
            state.actions.append((draw(rewards), states[draw(later)]))
    return states[0]


Policy = dict[int, set[int]]


def best(state: State, gamma: Number, found: Policy, *, shape: bool, zero: bool) -> Number:
    """The optimal return from `state`; into `found` go the optimal actions of every state.

    `zero`: potentials are 0 where the process ends, whatever they are there.
    """

    def phi(at: State) -> Number:
        return Fraction(0) if zero and not at.actions else at.potential

    returns = []
    for reward, after in state.actions:
        if shape:
            reward = shaped(reward, phi(state), phi(after), gamma)
        returns.append(reward + gamma * best(after, gamma, found, shape=shape, zero=zero))
    top = max(returns, default=Fraction(0))
    found[id(state)] = {a for a, worth in enumerate(returns) if worth == top}
    return top


@settings(max_examples=150)
@given(processes(), st.sampled_from([Fraction(1), Fraction(9, 10), Fraction(1, 3)]))
def test_the_optimal_policies_are_the_same(start: State, gamma: Number) -> None:
    plain: Policy = {}
    with_potential: Policy = {}
    value = best(start, gamma, plain, shape=False, zero=True)
    shaped_value = best(start, gamma, with_potential, shape=True, zero=True)
    assert plain == with_potential
    assert shaped_value == value - start.potential * bool(start.actions)


def test_a_potential_at_the_end_changes_them() -> None:
    """Right is worth 1 and wrong 0, but wrong's end has a potential of 2."""
    right, wrong = State(), State(potential=Fraction(2))
    start = State([(Fraction(1), right), (Fraction(0), wrong)])
    policies: list[Policy] = [{}, {}, {}]
    best(start, Fraction(1), policies[0], shape=False, zero=True)
    best(start, Fraction(1), policies[1], shape=True, zero=True)
    best(start, Fraction(1), policies[2], shape=True, zero=False)
    assert [p[id(start)] for p in policies] == [{0}, {0}, {1}]


SHAPED = {"kind": "shaped", "reward": {"kind": "countdown"}, "potential": {"kind": "prm"}}
PROMPT = prompt_of("Use 4 6 to make 24.")


def scored(gamma: float, *texts: str) -> tuple[list[Node], list[float]]:
    """A finished path scored step by step, and the potentials of its states but the last."""
    reward: Reward = TypeAdapter(Reward).validate_python(SHAPED | {"gamma": gamma})
    scorer = reward.scorer(Models(FakeEngine(), PROFILE, FakePrm()))
    path = grow(None, *texts, stop=Stop.END).path()
    for node in path:
        run(land(scorer, node))
    return path, [node.parts["prm"] for node in path[:-1]]


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_a_path_is_worth_its_rewards_and_where_it_stands(gamma: float) -> None:
    path, (one, two) = scored(gamma, "4\n", "6\n", "Answer: 4*6")
    assert [n.raw for n in path] == pytest.approx(
        [gamma * one, gamma * two - one, 1 + gamma * 0 - two]
    )
    assert [n.score for n in path] == pytest.approx([gamma * one, gamma**2 * two, gamma**2 * 1])
    assert [n.parts.get("countdown") for n in path] == [None, None, 1.0]


def test_a_finished_path_is_worth_what_it_was() -> None:
    right, _ = scored(1.0, "4\n", "Answer: 4*6")
    wrong, _ = scored(1.0, "4\n", "Answer: 4+6")
    assert (right[-1].score, wrong[-1].score) == (1.0, 0.0)


def test_a_step_without_a_potential_keeps_the_one_before() -> None:
    path, _ = scored(1.0, "4\n", "Answer: 4*6")
    reward: Reward = TypeAdapter(Reward).validate_python(SHAPED)
    scorer = reward.scorer(Models(FakeEngine(), PROFILE, FakePrm()))
    leaf = grow(None, "4\n", "\n")  # an empty step has no verdict of the PRM
    first, second = [run(land(scorer, node)) for node in leaf.path()]
    assert second.parts["prm"] == (None,)
    assert second.value == pytest.approx(first.value) == pytest.approx(path[0].parts["prm"])
