"""DVTS, particles, REBASE, lookahead: their textbooks' trees, and what holds whatever happens."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.profiles import AnswerProfile
from server.search import DVTS, MCTS, Beam, BestOfN, Particles, Rebase
from server.search.events import PruneEvent, StepEvent
from server.search.operators import policy_ids
from server.search.record import node_records
from server.traces.schema import Proposal
from tests.fakes import FakeEngine, FakeStream
from tests.oracles import population
from tests.searching import Ran, searched
from tests.test_oracles import SEEDS, engine, stepwise

SOME = [(1, 1), (1, 4), (3, 2), (4, 4)]


def best(ran: Ran) -> float | None:
    return max((n.value for n in ran.search.nodes if n.finished), default=None)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("trees", "branch"), SOME)
def test_dvts(trees: int, branch: int, seed: int) -> None:
    ran = searched(DVTS(trees=trees, branch=branch), seed=seed, engine=engine())
    nodes = population.dvts(stepwise(seed), trees, branch)
    assert set(ran.keys) == nodes | {()}
    assert best(ran) == population.best(stepwise(seed), nodes)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("how", ["multinomial", "systematic"])
@pytest.mark.parametrize(
    ("n", "temperature", "threshold"), [(1, 1, 1), (6, 1, 1), (9, 2, 0.5), (8, 0.5, 0.8), (5, 1, 0)]
)
def test_particles(
    n: int,
    temperature: float,
    threshold: float,
    how: Literal["multinomial", "systematic"],
    seed: int,
) -> None:
    strategy = Particles(n=n, temperature=temperature, threshold=threshold, resampling=how)
    ran = searched(strategy, seed=seed, engine=engine())
    nodes = population.particle_filter(
        stepwise(seed), n, temperature, threshold, how, random.Random(seed)
    )
    assert set(ran.keys) == nodes | {()}
    assert best(ran) == population.best(stepwise(seed), nodes)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("n", "temperature"), [(1, 0.2), (6, 0.2), (16, 0.2), (9, 5), (9, 0.02)])
def test_rebase(n: int, temperature: float, seed: int) -> None:
    ran = searched(Rebase(n=n, temperature=temperature), seed=seed, engine=engine())
    nodes = population.rebase(stepwise(seed), n, temperature)
    assert set(ran.keys) == nodes | {()}
    assert best(ran) == population.best(stepwise(seed), nodes)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("width", "branch"), SOME)
def test_beam_that_looks_ahead(width: int, branch: int, steps: int, seed: int) -> None:
    strategy = Beam(width=width, branch=branch, lookahead=steps)
    ran = searched(strategy, seed=seed, engine=engine())
    nodes = population.lookahead_beam(stepwise(seed), width, branch, steps)
    assert set(ran.keys) == nodes | {()}
    assert best(ran) == population.best(stepwise(seed), nodes)


@dataclass
class Thermometer(FakeEngine):
    """Notes at which temperature each prompt was continued."""

    temperatures: list[tuple[tuple[int, ...], float]] = field(default_factory=list)

    def stream(self, prompt_ids: Any, **how: Any) -> FakeStream:
        self.temperatures.append((tuple(prompt_ids), how["sampling"].temperature))
        return super().stream(prompt_ids, **how)


@pytest.mark.parametrize(
    "strategy", [Beam(lookahead=2), DVTS(lookahead=1), Beam(quorum=0, lookahead=1)]
)
@pytest.mark.parametrize("ahead", [0, 40])
def test_what_is_looked_at_is_written_greedily_and_given_up(strategy: Any, ahead: int) -> None:
    """Also where branches run ahead: a greedy one is never taken for a sample, nor the reverse."""
    policy = Thermometer(p_end=0.15)
    ran = searched(strategy, engine=policy, lookahead=ahead)
    greedy = [n for n in ran.search.nodes if n.greedy]
    assert greedy and all(n.pruned or n.finished for n in greedy)
    asked = Counter(policy_ids(n.parent) for n in greedy if n.parent)
    assert asked == Counter(ids for ids, t in policy.temperatures if t == 0)
    assert {t for _, t in policy.temperatures} == {0.0, 1.0}
    for node in ran.search.nodes:
        assert sum(child.greedy for child in node.children) <= 1
        if node.greedy:  # nothing is sampled from it
            assert all(child.greedy for child in node.children)


def test_a_step_is_worth_what_it_leads_to() -> None:
    ran = searched(Beam(lookahead=2), engine=FakeEngine(p_end=0.15))
    for node in ran.search.nodes[1:]:
        if node.greedy or node.finished:
            continue
        end = node
        while rollout := [c for c in end.children if c.greedy]:
            end = rollout[0]
        assert node.score == end.score and node.raw is not None
        assert end.depth == node.depth + 2 or end.finished


def test_traces_say_how_a_node_came_about() -> None:
    def proposals(strategy: Any) -> dict[tuple[int, ...], Proposal]:
        ran = searched(strategy, engine=FakeEngine(p_end=0.15))
        records = node_records(ran.search, AnswerProfile(), lambda node: None)
        return {record.key: record.proposal for record in records}

    assert set(proposals(Beam()).values()) == {Proposal.IID}
    assert set(proposals(Beam(lookahead=1)).values()) == {Proposal.IID, Proposal.GREEDY}
    for strategy in (Particles(), Particles(lockstep=False), Rebase()):
        for key, proposal in proposals(strategy).items():
            assert proposal is (Proposal.RESAMPLED if len(key) > 1 else Proposal.IID)
    assert set(proposals(Particles(threshold=0)).values()) == {Proposal.IID}


particles = st.builds(
    Particles,
    n=st.integers(1, 12),
    temperature=st.floats(0.1, 5),
    threshold=st.sampled_from([0, 0.3, 0.7, 1]),
    resampling=st.sampled_from(["multinomial", "systematic"]),
    lockstep=st.booleans(),
)
rebases = st.builds(Rebase, n=st.integers(1, 12), temperature=st.floats(0.02, 5))


@given(particles, st.integers(0, 50), st.one_of(st.just(10**9), st.integers(60, 2000)))
@settings(max_examples=60)
def test_the_population_never_grows(strategy: Particles, seed: int, tokens: int) -> None:
    ran = searched(strategy, seed=seed, budget={"tokens": tokens}, engine=FakeEngine(p_end=0.2))
    levels = Counter(node.depth for node in ran.search.nodes)
    assert all(count <= strategy.n for count in levels.values())
    assert not any(n.pruned and n.children for n in ran.search.nodes)
    if tokens == 10**9:
        assert levels[1] == strategy.n
        assert ran.search.tree.answered
        left = [n for n in ran.search.nodes[1:] if not n.children and not n.finished]
        assert all(n.pruned for n in left)


@given(rebases, st.integers(0, 50))
@settings(max_examples=60)
def test_rebase_spends_its_whole_width(strategy: Rebase, seed: int) -> None:
    """Each depth has the children that the one above it has left of the budget."""
    ran = searched(strategy, seed=seed, engine=FakeEngine(p_end=0.2))
    width, depth = strategy.n, 1
    while width:
        level = [n for n in ran.search.nodes if n.depth == depth]
        assert len(level) == width
        width -= sum(n.finished for n in level)
        depth += 1
    assert sum(n.finished for n in ran.search.nodes) == strategy.n


@pytest.mark.parametrize("seed", range(4))
def test_never_drawn_anew_is_best_of_n(seed: int) -> None:
    ran = searched(Particles(n=7, threshold=0), seed=seed)
    assert all(len(n.children) == 1 for n in ran.search.nodes[1:] if not n.finished)
    assert sum(n.finished for n in ran.search.nodes) == 7
    assert not any(isinstance(event, PruneEvent) for event in ran.events)


def depths(ran: Ran) -> list[int]:
    return [event.node.depth for event in ran.events if isinstance(event, StepEvent)]


def test_only_lockstep_waits_for_the_generation() -> None:
    lockstep = [searched(Particles(n=8), seed=i) for i in range(8)]
    cascade = [searched(Particles(n=8, lockstep=False), seed=i) for i in range(8)]
    assert all(depths(ran) == sorted(depths(ran)) for ran in lockstep)
    assert any(depths(ran) != sorted(depths(ran)) for ran in cascade)

    def pace(runs: list[Ran]) -> float:
        """Seconds a step of the longest path."""
        return sum(ran.seconds for ran in runs) / sum(max(depths(ran)) for ran in runs)

    assert pace(cascade) < pace(lockstep)


def test_trees_do_not_wait_for_each_other() -> None:
    ran = searched(DVTS(trees=6, branch=2), engine=FakeEngine(p_end=0.1))
    order = [e.node for e in ran.events if isinstance(e, StepEvent)]
    last = {node.place[0] // 2: at for at, node in enumerate(order) if node.depth == 1}
    ahead = [node.place[0] // 2 for node in order[: max(last.values())] if node.depth > 1]
    assert ahead


@pytest.mark.parametrize("seed", range(4))
def test_a_tree_goes_on_from_its_best_step(seed: int) -> None:
    ran = searched(DVTS(trees=3, branch=4), seed=seed)
    expanded = [n for n in ran.search.nodes[1:] if n.children]
    assert len({(n.depth, n.place[0] // 4) for n in expanded}) == len(expanded)
    assert all(len(n.children) == 4 for n in expanded)


CONVINCIBLE: list[BestOfN | Beam | DVTS | Particles | Rebase | MCTS] = [
    BestOfN(n=8),
    Beam(width=4, branch=4),
    Beam(width=4, branch=4, quorum=0.5),
    DVTS(trees=4, branch=4),
    Particles(n=8),
    Particles(n=8, lockstep=False),
    Rebase(n=8),
    MCTS(simulations=32),
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("strategy", CONVINCIBLE)
def test_an_answer_that_convinces_ends_the_search(
    strategy: BestOfN | Beam | DVTS | Particles | Rebase | MCTS, seed: int
) -> None:
    whole = searched(strategy, seed=seed, engine=engine())
    values = sorted(n.value for n in whole.search.nodes if n.finished)
    enough = values[len(values) // 2]
    early = searched(strategy.model_copy(update={"stop_at": enough}), seed=seed, engine=engine())
    first = searched(strategy.model_copy(update={"stop_at": 1e-9}), seed=seed, engine=engine())
    assert any(n.finished and n.value >= enough for n in early.search.nodes)
    assert first.search.budget.spent <= early.search.budget.spent <= whole.search.budget.spent
    assert first.search.budget.spent < whole.search.budget.spent
    assert early.tasks == early.engine.open_streams == 0
