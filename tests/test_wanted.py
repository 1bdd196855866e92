"""How many answers are wanted: an early stop waits until so many are finished."""

from __future__ import annotations

from typing import Any

import pytest

from server.config import HttpSettings, Settings
from server.profiles import shipped
from server.reward import Models
from server.search import (
    DVTS,
    MCTS,
    Auto,
    Beam,
    BestOfN,
    Particles,
    Rebase,
    Revise,
    Strategy,
    Vote,
)
from server.search.answers import rank
from server.search.auto import Level
from server.search.stopping import Adaptive
from server.service import Service
from server.types import Message, Prompt
from tests.fakes import FakeEngine
from tests.searching import Ran, searched
from tests.serving import PROFILE, USER, client, world
from tests.test_auto import ANSWER, Flat, OneMind, kinds
from tests.test_operators import OPERATORS
from tests.virtual import run

WANTED = 7
STOPPING: list[Strategy] = [
    BestOfN(n=16, stop_at=0.5),
    BestOfN(n=16, stop_at=0.5, reject=0.1),
    Beam(width=4, branch=4, stop_at=0.5),
    DVTS(trees=8, stop_at=0.5),
    Particles(n=16, stop_at=0.5),
    Particles(n=16, stop_at=0.5, lockstep=False),
    Rebase(n=16, stop_at=0.5),
    MCTS(simulations=256, stop_at=0.5),
    MCTS(simulations=64, stop_at=0.5, granularity="solution"),
    Auto(answers=32, probe=2, stop_at=0.5),
    Revise(revisions=8, stop_at=0.5),
]


class Right:
    """Finds every answer right."""

    async def verdict(self, prompt: Prompt, text: str) -> float | None:
        return 1.0


class OneMindAtFirst(OneMind):
    """Writes four times the same answer, and then others."""

    def stream(self, *args: Any, **how: Any) -> Any:
        kind = OneMind if self.requests < 4 else FakeEngine
        return kind.stream(self, *args, **how)


def ran(strategy: Strategy, wanted: int, **options: Any) -> Ran:
    options = {"engine": FakeEngine(p_end=0.1), "scorer": Flat(0.6), "answer": ANSWER, **options}
    options["operators"] = OPERATORS
    return searched(strategy, wanted=wanted, **options)


def answers(it: Ran) -> int:
    return len(rank(it.search.nodes, "best", ANSWER))


def assert_stopped(it: Ran, whole: Ran) -> None:
    """With as many answers as were wanted, and before its time."""
    assert answers(it) >= WANTED
    assert it.search.writer.ledger.generated < whole.search.writer.ledger.generated
    assert it.tasks == it.engine.open_streams == it.search.budget.held == 0


@pytest.mark.parametrize("strategy", STOPPING, ids=lambda s: s.kind)
def test_a_liked_answer_ends_a_search_once_enough_are_finished(strategy: Strategy) -> None:
    unstopped = strategy.model_copy(update={"stop_at": 1.0})
    assert answers(ran(strategy, 1)) < WANTED
    assert_stopped(ran(strategy, WANTED), ran(unstopped, WANTED))


@pytest.mark.parametrize("strategy", STOPPING, ids=lambda s: s.kind)
def test_so_does_a_right_one(strategy: Strategy) -> None:
    unstopped = strategy.model_copy(update={"stop_at": 1.0})
    assert answers(ran(unstopped, 1, judge=Right())) < WANTED
    assert_stopped(ran(unstopped, WANTED, judge=Right()), ran(unstopped, WANTED))


@pytest.mark.parametrize("wanted", [2, 5])
def test_a_vote_that_is_decided_goes_on_in_order(wanted: int) -> None:
    vote = Vote(n=16, stop=Adaptive(threshold=0.5, parallel=1))
    assert answers(ran(vote, 1, engine=OneMind())) == 1
    assert answers(ran(vote, wanted, engine=OneMind())) == wanted


def test_samples_that_agree_end_auto_once_enough_are_finished() -> None:
    """Also in a search whose answers are no independent samples."""
    levels = (Level(stages=(MCTS(simulations=64),)),)
    strategy = Auto(probe=4, answers=64, levels=levels)
    assert kinds(ran(strategy, 4, engine=OneMindAtFirst())) == ["probe", "stop"]
    more = ran(strategy, 6, engine=OneMindAtFirst())
    assert kinds(more) == ["probe", "mcts", "stop"]
    assert "100% of 4" in more.search.decisions[-1]["reason"]
    assert 6 <= answers(more) <= 6 + MCTS().parallel * MCTS().branch


def test_a_stages_own_stop_does_not_outlive_it() -> None:
    """Nobody stops the vote, which has no such rule."""
    levels = (Level(stages=(BestOfN(n=2, stop_at=0.5), Vote(n=16))),)
    strategy = Auto(probe=1, answers=64, levels=levels, agree=1)
    it = ran(strategy, 6)
    assert kinds(it)[:3] == ["probe", "best_of_n", "vote"]
    assert answers(it) >= 1 + 2 + 16


def test_a_race_does_not_give_up_what_is_wanted() -> None:
    race = BestOfN(n=8, reject=0.5)
    assert answers(ran(race, 1)) < 5
    assert answers(ran(race, 5)) >= 5


def test_a_budget_that_ends_first_leaves_fewer_and_no_fragment() -> None:
    it = ran(BestOfN(n=8), 8, budget={"tokens": 150})
    opened = [n for n in it.search.nodes if n.step and not n.children and not n.finished]
    found = rank(it.search.nodes, "best", ANSWER)
    assert opened and 0 < len(found) < 8
    assert all(answer.node.finished for answer in found)


async def test_choices_are_whole_and_as_many_as_asked_for() -> None:
    """Of an `auto` like the reference profile's, whose probe of two ends at the first good one."""
    search = {"auto": {**shipped()["reference"].search["auto"], "stop_at": 0.1}}
    profile = PROFILE.model_copy(update={"search": search})
    async with client(world(profile=profile, engine=FakeEngine(pace=2e-3))) as http:
        for seed in range(4):
            asked = {"model": "ponder", "messages": USER, "n": 3, "seed": seed}
            reply = (await http.post("/v1/chat/completions", json=asked)).json()
            assert [c["finish_reason"] for c in reply["choices"]] == ["stop"] * 3


def test_a_service_tells_the_search_how_many() -> None:
    settings = Settings(policy=HttpSettings(url="http://nowhere", model="fake"))
    service = Service(settings, Models(FakeEngine(), PROFILE))

    async def asked(n: int) -> int:
        strategy = BestOfN(n=16, stop_at=0.01)
        messages = [Message("user", "Why?")]
        ask = service.prepare(messages=messages, strategy=strategy, n=n, seed=1)
        return len((await service.reason(ask)).answers)

    assert [run(asked(n)) for n in (1, 4)] == [1, 4]
