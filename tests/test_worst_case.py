"""No search takes more tokens than its worst case, whatever its steps begin with."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.ask import worst_case
from server.config import HttpSettings, Limits, Settings
from server.errors import BadRequest, NoAnswer
from server.presets import shipped as presets
from server.profiles import Profile, shipped
from server.reward import Models
from server.search import DVTS, MCTS, Beam, BestOfN, Particles, Rebase, Revise, Strategy, Vote
from server.service import Service
from server.traces.schema import UsageRecord
from server.types import Behaviour, Message
from tests.fakes import EOS, FakeEngine, FakeStream
from tests.virtual import run

LIMITS = Limits(tokens=10**7, depth=6)
QUESTION = [Message("user", "Q")]
SMALL = st.integers(1, 3)
HOW: dict[str, Any] = {
    "behaviours": st.lists(st.sampled_from(["continue", *Behaviour]), max_size=4).map(tuple),
    "depth": st.none() | st.integers(1, 5),
}
THINKS: dict[str, Any] = {"think": st.none() | st.integers(1, 60), "reflect": st.booleans()}
WHOLE: st.SearchStrategy[Any] = st.one_of(
    st.builds(BestOfN, n=SMALL, reject=st.sampled_from([0.0, 0.5]), **HOW),
    st.builds(Vote, n=SMALL, **HOW),
    st.builds(Revise, chains=SMALL, revisions=SMALL, **THINKS, **HOW),
    st.builds(Revise, chains=SMALL, revisions=SMALL, by=st.just("wait"), **HOW),
    st.builds(
        MCTS,
        simulations=st.integers(1, 9),
        branch=SMALL,
        granularity=st.sampled_from(["step", "solution"]),
        **HOW,
    ),
)
LEVELS: st.SearchStrategy[Any] = st.one_of(
    st.builds(Beam, width=SMALL, branch=SMALL, lookahead=st.integers(0, 2), **HOW),
    st.builds(DVTS, trees=SMALL, branch=SMALL, lookahead=st.integers(0, 2), **HOW),
    st.builds(Rebase, n=SMALL, **HOW),
    st.builds(Particles, n=SMALL, lockstep=st.booleans(), **HOW),
)


@dataclass
class Even(FakeEngine):
    """All its steps have the same length, the last one of an answer too."""

    size: int = 8
    ends: float = 0.25

    def stream(self, prompt_ids: Any, *, seed: int | None, **how: Any) -> FakeStream:
        stream = super().stream(prompt_ids, seed=seed, **how)
        rng, ids = random.Random(seed), list[int]()
        while len(ids) < how["max_tokens"] and ids[-1:] != [EOS]:
            ids += [ord(rng.choice("0123456789")) for _ in range(self.size - 1)]
            ids.append(EOS if rng.random() < self.ends else ord("\n"))
        stream.ids = ids[: how["max_tokens"]]
        return stream


def check(strategy: Strategy, engine: FakeEngine, seed: int, answer: int, step: int) -> UsageRecord:
    """What it used, which is no more than what was foreseen."""
    profile = Profile(name="fake", delimiter="\n", max_step_tokens=step)
    settings = Settings(policy=HttpSettings(url="http://nowhere", model="fake"), limits=LIMITS)
    traces: list[Any] = []

    class Sink:
        def put(self, trace: Any) -> None:
            traces.append(trace)

    async def go() -> None:
        it = Service(settings, Models(policy=engine, profile=profile), traces=Sink())
        ask = it.prepare(messages=QUESTION, strategy=strategy, max_tokens=answer, seed=seed)
        await it.reason(ask)

    try:
        run(go())
    except NoAnswer:
        assert traces[0].usage.policy == 0
    usage: UsageRecord = traces[0].usage
    most = worst_case(strategy, profile, LIMITS, answer)
    assert usage.policy <= most + (answer if strategy.stepwise else 0)
    return usage


@settings(max_examples=300)
@given(WHOLE, st.integers(0, 99), st.integers(4, 120), st.integers(3, 24), st.floats(0.02, 1))
def test_of_whole_answers_and_tree_searches(
    strategy: Strategy, seed: int, answer: int, step: int, p_end: float
) -> None:
    check(strategy, FakeEngine(p_end=p_end, length=6.0), seed, answer, step)


@settings(max_examples=300)
@given(LEVELS, st.integers(0, 99), st.integers(4, 120), st.integers(2, 12), st.floats(0.02, 1))
def test_of_searches_by_levels(
    strategy: Strategy, seed: int, answer: int, step: int, p_end: float
) -> None:
    check(strategy, Even(ends=p_end, size=step), seed, answer, step)


def test_a_path_of_new_beginnings_is_longer_than_an_answer() -> None:
    strategy = Beam(width=1, branch=1, behaviours=(Behaviour.SELF_CORRECTION,))
    usage = check(strategy, Even(ends=0.0, size=8), seed=1, answer=16, step=8)
    assert usage.policy == 6 * 8 > 16


def test_what_thinks_begins_once() -> None:
    """A behaviour is what an answer begins with, not each of the steps that it may think."""
    strategy = Revise(revisions=1, think=40, behaviours=(Behaviour.ALTERNATIVE_PROPOSAL,))
    usage = check(strategy, Even(ends=0.0, size=8), seed=1, answer=80, step=8)
    assert usage.policy <= 80


@pytest.mark.parametrize("name", sorted(presets()))
def test_presets_are_allowed_where_nothing_is_set(name: str) -> None:
    profile = shipped()["qwen2_5"]
    most = worst_case(presets()[name].strategy, profile, Limits(), profile.max_tokens)
    assert most <= Limits().tokens


def test_what_may_begin_anew_at_any_depth_is_refused() -> None:
    models = Models(policy=FakeEngine(), profile=shipped()["qwen2_5"])
    http = HttpSettings(url="http://nowhere", model="fake")
    prepare = Service(Settings(policy=http), models).prepare
    strategy = Beam(width=1, behaviours=("continue", Behaviour.SELF_CORRECTION))
    with pytest.raises(BadRequest, match="depth among them"):
        prepare(messages=QUESTION, strategy=strategy)
    prepare(messages=QUESTION, strategy=strategy.model_copy(update={"depth": 24}))
