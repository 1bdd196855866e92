"""The search core's invariants, for every strategy, on a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.budget import Budget
from server.errors import EngineError
from server.profiles import AnswerProfile
from server.search import DVTS, MCTS, Beam, BestOfN, Particles, Rebase, Vote
from server.search.answers import rank
from server.search.core import Search
from server.search.events import PruneEvent, ScoreEvent, StepEvent
from server.search.operators import policy_ids
from server.search.record import usage_record
from server.search.run import run_search
from server.search.writer import Shape
from server.types import Cut, Node, Prompt, Score, Stop
from tests.fakes import FakeEngine, FakeScorer, FakeStream
from tests.searching import PROMPT, Ran, searched
from tests.virtual import run

ALL = [
    BestOfN(n=6),
    BestOfN(n=6, reject=0.5),
    Vote(n=6),
    Beam(width=2, branch=3),
    Beam(quorum=0),
    Beam(width=2, branch=2, lookahead=2),
    DVTS(trees=2, branch=3),
    MCTS(simulations=12),
    MCTS(simulations=12, select="uct", backup="max", in_flight="unobserved", futile=0.2),
    MCTS(simulations=6, granularity="solution"),
    Particles(n=6),
    Particles(n=6, lockstep=False),
    Rebase(n=6),
]
LOCKSTEP = [
    BestOfN(n=6),
    Vote(n=6),
    Beam(width=2, branch=3),
    Beam(width=2, branch=2, lookahead=2),
    DVTS(trees=2, branch=3, lookahead=1),
    MCTS(simulations=12, parallel=1),
    Particles(n=6),
    Particles(n=6, threshold=0.5, resampling="systematic"),
    Rebase(n=6),
]
strategies = st.sampled_from(ALL)


def assert_settled(ran: Ran) -> None:
    """Nothing of the search is alive, and the books balance with the engine's own."""
    search, budget = ran.search, ran.search.budget
    assert ran.tasks == 0
    assert ran.engine.open_streams == 0
    assert budget.held == 0
    assert budget.spent == ran.engine.generated == search.writer.ledger.generated
    assert search.tree.kept <= budget.spent <= budget.tokens


@given(
    strategies,
    st.integers(0, 5),
    st.integers(60, 3000),
    st.sampled_from([0, 40]),
    st.sampled_from([1, 3, None]),
)
@settings(max_examples=120)
def test_books_balance_under_any_budget(
    strategy: Any, seed: int, tokens: int, lookahead: int, concurrency: int | None
) -> None:
    budget = {"tokens": tokens, "reserve": tokens // 4, "concurrency": concurrency}
    ran = searched(strategy, seed=seed, budget=budget, lookahead=lookahead)
    assert_settled(ran)
    if concurrency and not lookahead:
        assert ran.engine.peak <= concurrency


@given(strategies, st.integers(0, 5), st.floats(0.3, 20), st.sampled_from([0, 40]))
@settings(max_examples=80)
def test_deadline_is_kept_and_answers(
    strategy: Any, seed: int, seconds: float, lookahead: int
) -> None:
    ran = searched(strategy, seed=seed, budget={"seconds": seconds}, lookahead=lookahead)
    assert_settled(ran)
    assert ran.seconds <= seconds + 1e-6


@pytest.mark.parametrize("strategy", ALL)
def test_held_tokens_never_pass_the_limit(strategy: Any) -> None:
    seen: list[int] = []

    class Watched(Budget):
        def hold(self, want: int, least: int = 1) -> Any:
            granted = super().hold(want, least)
            seen.append(self.spent + self.held)
            return granted

    async def go() -> None:
        search = Search(
            PROMPT,
            engine := FakeEngine(),
            FakeScorer(),
            Watched(tokens=900, reserve=200),
            shape=Shape(Cut("\n", 48), 400),
            seed=3,
        )
        await run_search(strategy, search)
        assert engine.generated <= 900

    run(go())
    assert seen and max(seen) <= 900


@pytest.mark.parametrize("strategy", ALL)
def test_calls_are_bounded(strategy: Any) -> None:
    ran = searched(strategy, budget={"calls": 5})
    assert ran.scorer.calls <= 5
    assert_settled(ran)


@pytest.mark.parametrize("strategy", LOCKSTEP)
@pytest.mark.parametrize("seed", range(4))
def test_same_seed_same_tree_whatever_the_timing(strategy: Any, seed: int) -> None:
    slow = searched(strategy, seed=seed, engine=FakeEngine(pace=0.05))
    fast = searched(strategy, seed=seed, engine=FakeEngine(pace=0.0001))
    assert slow.texts == fast.texts
    other = searched(strategy, seed=seed + 100)
    assert other.texts != slow.texts


@pytest.mark.parametrize("strategy", ALL)
def test_policy_sees_exactly_the_path(strategy: Any) -> None:
    ran = searched(strategy, chunk=400)
    sent = set(ran.engine.prompts)
    for node in ran.search.nodes:
        path = PROMPT.ids + tuple(i for n in node.path() if n.step for i in n.step.token_ids)
        assert policy_ids(node) == path
    assert sent <= {policy_ids(n) for n in ran.search.nodes}


@pytest.mark.parametrize("strategy", ALL)
def test_steps_obey_their_limits(strategy: Any) -> None:
    engine = FakeEngine(p_end=0.05)
    ran = searched(strategy, engine=engine, max_tokens=90, max_step_tokens=20, chunk=32)
    for node in ran.search.nodes[1:]:
        assert node.step is not None
        assert node.step.count <= 20 and node.tokens() <= 90
        assert (node.step.stop is Stop.LENGTH) == (node.tokens() == 90 and node.finished)


def test_a_step_cut_by_its_hold_is_continued() -> None:
    """Answers written in small holds have as many and as long steps as in one go."""
    engine = FakeEngine(p_end=0.1)
    ran = searched(BestOfN(n=20), engine=engine, chunk=48, max_tokens=300)
    assert engine.requests > 20
    for node in ran.search.nodes[1:]:
        assert node.step is not None
        if node.step.stop is Stop.STEP and node.step.count < 48:
            assert node.step.text.endswith("\n")


@pytest.mark.parametrize(
    "strategy",
    [Beam(width=2, branch=3), DVTS(trees=2), MCTS(simulations=12), Particles(n=6), Rebase(n=6)],
)
def test_what_runs_ahead_is_used_or_counted_as_discarded(strategy: Any) -> None:
    plain, ahead = searched(strategy), searched(strategy, lookahead=60)
    assert_settled(ahead)
    assert plain.engine.requests == len(plain.search.nodes) - 1
    assert ahead.engine.requests < len(ahead.search.nodes) - 1
    assert plain.search.budget.spent == plain.search.tree.kept
    assert ahead.search.budget.spent > ahead.search.tree.kept


class Lingering(FakeStream):
    """Its abort takes a while, and may fail."""

    async def aclose(self) -> None:
        engine = self.engine
        assert isinstance(engine, LingeringEngine)
        ended = (self.cut.halt and self.over) or self.taken == len(self.ids)
        aborted = self.final is None and not ended
        if aborted:
            await asyncio.sleep(engine.lingers)
        await super().aclose()
        if aborted and engine.fails:
            raise EngineError("the abort failed")


@dataclass
class LingeringEngine(FakeEngine):
    lingers: float = 0.5  # seconds
    fails: bool = False

    def stream(self, *args: Any, **how: Any) -> FakeStream:
        made = super().stream(*args, **how)
        made.__class__ = Lingering
        return made


@pytest.mark.parametrize(
    "strategy", [Beam(width=2, branch=3), DVTS(trees=2), Particles(n=6), Rebase(n=6)]
)
def test_a_search_goes_on_while_what_it_gave_up_is_aborted(strategy: Any) -> None:
    quick = searched(strategy, lookahead=60)
    slow = searched(strategy, lookahead=60, engine=LingeringEngine())
    assert_settled(slow)
    assert slow.seconds < quick.seconds + 1.0
    assert slow.search.budget.spent > slow.search.tree.kept


def test_an_abort_that_fails_ends_the_search() -> None:
    engine, strategy = LingeringEngine(fails=True), Beam(width=2, branch=3)
    whole = searched(strategy, lookahead=60, engine=LingeringEngine())
    with pytest.raises(EngineError, match="the abort failed"):
        searched(strategy, lookahead=60, engine=engine)
    assert engine.requests < whole.engine.requests
    assert engine.open_streams == 0


def test_nothing_runs_ahead_of_a_full_engine() -> None:
    strategy = Beam(width=2, branch=3)
    full = searched(strategy, lookahead=60, engine=FakeEngine(capacity=0))
    assert full.search.budget.spent == full.search.tree.kept


def test_stop_aborts_the_rest() -> None:
    engine = FakeEngine(pace=0.05)
    ran = searched(BestOfN(n=16, stop_at=0.2), engine=engine)
    finished = [n for n in ran.search.nodes if n.finished]
    assert len(finished) < 16
    assert_settled(ran)


@pytest.mark.parametrize("seed", [2, 3])
def test_without_an_answer_the_reserve_finishes_the_best_path(seed: int) -> None:
    def ran(reserve: int) -> Ran:
        budget = {"tokens": 200, "reserve": reserve}
        engine = FakeEngine(p_end=0.15)
        return searched(Beam(width=2, branch=3), seed=seed, engine=engine, budget=budget)

    assert not ran(0).search.tree.answered
    assert ran(80).search.tree.answered


class Rambling(FakeEngine):
    """One of the first steps is `9`, and what follows says `nine` again and again; after the
    other comes `five`."""

    nine, five = "9\n", "Answer: 5\0"

    def stream(self, prompt_ids: Any, **how: Any) -> Any:
        stream = super().stream(prompt_ids, **how)
        said = prompt_ids[len(PROMPT.ids) :]
        first = "95"[self.requests % 2] + "\n"
        text = first if not said else self.nine * 99 if said[0] == ord("9") else self.five
        stream.ids = [*map(ord, text)][: how["max_tokens"]]
        return stream


class Nines:
    name = version = "nines"

    async def score(self, prompt: Prompt, path: Sequence[Node]) -> Score:
        # The second of two siblings that go on with a nine is worth less than a five.
        second = len(path) > 1 and path[-1].key[-1] == 1
        value = 0.05 if second else 0.9 if path[0].text().startswith("9") else 0.1
        return Score(value, (value,) * len([n for n in path if n.raw is None]))


@pytest.mark.parametrize(
    ("nine", "five", "chosen", "reason"),
    [
        ("9\n", "Answer: 5\0", "5", "stop"),  # nothing but the one that was given up can end
        ("Answer: 9\n", "Answer: 5\0", "9", "length"),  # truncated, and yet an answer
        ("9\n", "5" * 99, None, "length"),  # the one that was scored
    ],
)
def test_paths_that_ran_out_of_tokens_are_no_reason_for_a_worse_answer(
    nine: str, five: str, chosen: str | None, reason: str
) -> None:
    engine, profile = Rambling(), AnswerProfile(pattern=r"Answer: (\d)")
    engine.nine, engine.five = nine, five
    scorer: Any = Nines()
    beam = Beam(width=1, branch=2)
    ran = searched(beam, engine=engine, scorer=scorer, max_tokens=30, answer=profile)
    answer = rank(ran.search.nodes, "best", profile)[0]
    assert (answer.final, answer.finish_reason) == (chosen, reason)
    assert (answer.score is None) == (reason == "stop")
    fives = [n for n in ran.search.nodes if n.text().startswith("5")]
    assert len(fives) == (1 if chosen == "9" else 2)
    assert_settled(ran)


def test_at_the_soft_deadline_the_rest_of_the_time_is_for_an_answer() -> None:
    """Steps take a second or so: without the time held back none of these would end."""
    for seed in range(6):
        engine = FakeEngine(p_end=0.4, pace=0.1)
        ran = searched(MCTS(), seed=seed, engine=engine, budget={"seconds": 8.0})
        assert ran.search.tree.answered
        assert_settled(ran)


def test_a_broken_engine_ends_the_search_with_its_own_error() -> None:
    engine = FakeEngine(broken=True)
    with pytest.raises(EngineError, match="broke"):
        searched(MCTS(), engine=engine)
    assert engine.open_streams == 0


def test_cancelling_aborts_everything() -> None:
    engine = FakeEngine()

    async def go() -> int:
        search = Search(
            PROMPT, engine, FakeScorer(), Budget(10**6), shape=Shape(Cut("\n", 48), 400)
        )
        task = asyncio.create_task(run_search(BestOfN(n=32), search))
        await asyncio.sleep(0.2)
        assert engine.open_streams > 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return len(asyncio.all_tasks()) - 1

    assert run(go()) == 0
    assert engine.open_streams == 0


@pytest.mark.parametrize("strategy", ALL)
def test_every_node_is_announced_before_its_score_or_end(strategy: Any) -> None:
    ran = searched(strategy)
    announced: set[Node] = set()
    for event in ran.events:
        assert isinstance(event, StepEvent | ScoreEvent | PruneEvent)
        if isinstance(event, StepEvent):
            announced.add(event.node)
        assert event.node in announced
    assert announced == set(ran.search.nodes[1:])


@pytest.mark.parametrize("seed", range(4))
def test_a_good_enough_answer_ends_mcts(seed: int) -> None:
    ran = searched(MCTS(simulations=64, stop_at=0.3, parallel=1), seed=seed)
    good = [e for e in ran.events if isinstance(e, ScoreEvent) and e.node.finished]
    first = next(i for i, e in enumerate(good) if e.node.value >= 0.3)
    assert len(good) - first <= MCTS().branch  # its own siblings may still land
    assert_settled(ran)


@pytest.mark.parametrize("kind", [BestOfN, Vote, Beam, DVTS, MCTS, Particles, Rebase])
def test_answers_have_at_most_so_many_steps(kind: Any) -> None:
    ran = searched(kind(depth=2), engine=FakeEngine(p_end=0.1))
    assert max(n.depth for n in ran.search.nodes) == 2
    for node in ran.search.nodes:
        if node.depth == 2:
            assert node.finished


def test_calls_are_those_that_were_made() -> None:
    for strategy in ALL:
        ran = searched(strategy, budget={"tokens": 400})
        assert ran.search.budget.called == ran.scorer.calls


@pytest.mark.parametrize("n", [1, 4])
def test_a_first_step_that_outlasts_the_time_is_the_answer(n: int) -> None:
    engine = FakeEngine(p_end=0.0001, length=300, pace=0.1)
    ran = searched(
        Vote(n=n),
        engine=engine,
        budget={"seconds": 6.0},
        max_step_tokens=400,
        chunk=400,
    )
    assert_settled(ran)
    assert ran.seconds <= 6.0 + 1e-6
    longest = max(node.tokens() for node in ran.search.nodes)
    assert longest >= 40  # of the 60 there was time for


@pytest.mark.parametrize("quorum", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_what_beam_gives_up_stays_given_up(quorum: float, seed: int) -> None:
    engine = FakeEngine(p_end=0.15)
    ran = searched(Beam(width=3, branch=3, quorum=quorum), seed=seed, engine=engine)
    pruned = [n for n in ran.search.nodes if n.pruned]
    assert pruned
    assert not any(n.children for n in pruned)


def test_a_prompts_tokens_are_what_its_server_counts() -> None:
    """Where ids are characters; of requests that were left before it did, it says nothing."""

    class Counts(FakeEngine):
        def stream(self, *args: Any, **how: Any) -> FakeStream:
            stream = super().stream(*args, **how)
            stream.prompt_tokens = {1: 0, 2: 1}.get(self.requests, 7)
            return stream

    ran = searched(BestOfN(n=3), engine=Counts())
    assert usage_record(ran.search, 1.0).prompt == 1 < len(ran.search.prompt.ids)
    assert usage_record(searched(BestOfN(n=3)).search, 1.0).prompt == len(ran.search.prompt.ids)
