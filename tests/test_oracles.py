"""Each strategy, in its lockstep setting, builds the tree of its textbook."""

from __future__ import annotations

import random
from functools import cache

import pytest

from server.profiles import shipped
from server.search import MCTS, Beam, BestOfN, Revise, Vote
from server.search.writer import seed_of
from server.types import Behaviour, Message, Sampling, Stop
from tests.fakes import EOS, CodePoints, FakeEngine, write
from tests.oracles import revision, textbook
from tests.oracles.textbook import Key, Made
from tests.searching import PROMPT, Ran, searched

SEEDS = range(8)
P_END, LENGTH = 0.3, 1.2  # short steps, so that equal siblings occur


def engine() -> FakeEngine:
    return FakeEngine(p_end=P_END, length=LENGTH)


def steps_of(seed: int, key: Key, begun: int = 0) -> list[list[int]]:
    """What the fake engine writes when asked at `key`, cut into steps; `begun` tokens of the
    first one are there already."""
    steps: list[list[int]] = [[]]
    for token in write(seed_of(seed, key, begun), Sampling(), P_END, LENGTH):
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


OPERATORS = shipped()["default"].operators
REFINE, EVALUATE = OPERATORS[Behaviour.SELF_CORRECTION], OPERATORS[Behaviour.SELF_EVALUATION]


def in_one_go(seed: int, wait: str = "") -> revision.Say:
    def say(key: Key) -> list[str]:
        begun = len(wait) if len(key) > 1 else 0
        return [CodePoints().decode(step) for step in steps_of(seed, key, begun)]

    return say


def step_by_step(seed: int) -> revision.Say:
    def say(key: Key) -> list[str]:
        steps = [steps_of(seed, key)[0]]
        while steps[-1][-1] != EOS:
            key = (*key, 0)
            steps.append(steps_of(seed, key)[0])
        return [CodePoints().decode(step) for step in steps]

    return say


def check_turns(ran: Ran, turns: dict[Key, revision.Turn]) -> None:
    """The tree is made of these turns, and each of them was shown what it should be."""
    nodes = {node.key: node for node in ran.search.nodes[1:]}
    expected = {k + (0,) * n: text for k, t in turns.items() for n, text in enumerate(t.steps)}
    assert {key: n.step.text for key, n in nodes.items() if n.step} == expected
    for key, turn in turns.items():
        prompt, tokenizer = nodes[key].prompt or PROMPT, CodePoints()
        chat = tokenizer.render([Message(*said) for said in turn.chat])
        assert prompt.ids == chat + tokenizer.encode(turn.begun)
        last = nodes[key + (0,) * (len(turn.steps) - 1)]
        assert last.step is not None and last.step.stop is Stop.END


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stop_at", [0.5, 1.0])
@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize("history", ["all", "last"])
def test_revise(history: str, reflect: bool, stop_at: float, seed: int) -> None:
    settings = {"chains": 2, "revisions": 3, "reflect": reflect, "history": history}
    strategy = Revise.model_validate({**settings, "stop_at": stop_at})
    ran = searched(strategy, seed=seed, engine=engine(), operators=OPERATORS)
    feedback = (EVALUATE.ask, step_by_step(seed)) if reflect else None
    turns = revision.self_refine(
        "Q", in_one_go(seed), value_of, 2, 3, stop_at, REFINE.ask, feedback, history == "all"
    )
    check_turns(ran, turns)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stop_at", [0.5, 1.0])
def test_revise_by_budget_forcing(stop_at: float, seed: int) -> None:
    strategy = Revise(chains=2, revisions=3, by="wait", stop_at=stop_at)
    ran = searched(strategy, seed=seed, engine=engine(), operators=OPERATORS)
    write = in_one_go(seed, strategy.wait)
    turns = revision.budget_forcing("Q", write, value_of, 2, 3, stop_at, strategy.wait)
    check_turns(ran, turns)
