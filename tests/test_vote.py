"""Votes that stop when they are decided: the papers' rules, and what holds whatever the timing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from server.errors import ScorerError
from server.profiles import AnswerProfile
from server.search import Vote
from server.search.stopping import Adaptive, Ballot, DeepConf, Esc, lead, share
from server.types import Step
from tests.fakes import EOS, FakeEngine, FakeStream
from tests.oracles import voting
from tests.searching import Ran, searched
from tests.test_operators import Tells
from tests.test_oracles import P_END, SEEDS, engine, steps_of

ANSWER = AnswerProfile(pattern=r"Answer: (\d+)")
N = 24
RULES = [Esc(window=3), Adaptive(), DeepConf(warmup=5, eta=50, group=4)]
rules = st.sampled_from(RULES)


def voted(vote: Vote, seed: int, **options: Any) -> Ran:
    return searched(vote, seed=seed, answer=ANSWER, **{"engine": engine(), **options})


def sample(seed: int, i: int) -> list[list[int]]:
    """The steps of the i-th answer."""
    return steps_of(seed, (i,))


def key(steps: list[list[int]]) -> str:
    return chr(steps[-1][-2])


def taken(ran: Ran) -> int:
    """Samples that were asked for."""
    return ran.search.root.asked


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("window", [2, 3, 5])
def test_esc(window: int, seed: int) -> None:
    ran = voted(Vote(n=N, stop=Esc(window=window)), seed)
    keys = [key(sample(seed, i)) for i in range(N)]
    assert taken(ran) == voting.esc(keys, window)
    assert all(node.ended for node in ran.search.nodes if not node.children)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.95])
def test_adaptive_consistency(threshold: float, seed: int) -> None:
    ran = voted(Vote(n=N, stop=Adaptive(threshold=threshold, parallel=1)), seed)
    keys = [key(sample(seed, i)) for i in range(N)]
    assert taken(ran) == voting.adaptive(keys, threshold)


def confidences(steps: list[list[int]], k: int) -> list[float]:
    """The fake engine's k likeliest tokens, averaged."""
    ids = [i for step in steps for i in step]
    return [0.1 * sum(j + 1 + i % 3 for j in range(k)) / k for i in ids]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("eta", "group", "tau"), [(90, 4, 0.95), (50, 3, 0.6), (10, 2, 0.51)])
def test_deepconf(eta: float, group: int, tau: float, seed: int) -> None:
    rule = DeepConf(warmup=5, eta=eta, group=group, tau=tau, k=3, parallel=1)
    ran = voted(Vote(n=N, stop=rule), seed)
    traces = []
    for i in range(N):
        steps = sample(seed, i)
        ends = [sum(map(len, steps[: n + 1])) for n in range(len(steps))]
        traces.append((ends, confidences(steps, 3), key(steps)))
    n, aborted = voting.deepconf(traces, 5, eta, group, tau)
    assert taken(ran) == n
    assert {n.key[0]: len(n.key) for n in ran.search.nodes if n.pruned} == aborted
    assert ran.engine.open_streams == 0


def test_deepconf_aborts_in_the_engine() -> None:
    rule = DeepConf(warmup=6, eta=10, group=12, tau=1)
    ran, all_ = (
        voted(Vote(n=30, stop=stop), 1, engine=FakeEngine(p_end=0.1, length=6))
        for stop in (rule, None)
    )
    pruned = [n for n in ran.search.nodes if n.pruned]
    assert len(pruned) > 3
    assert not any(n.ended or n.children for n in pruned)
    assert taken(ran) == taken(all_) == 30
    assert ran.engine.generated < 0.9 * all_.engine.generated


def test_deepconf_looks_at_a_token_once_while_it_is_written() -> None:
    """And once more for the warm-up's floor: answers have thousands of them."""

    class Looked(tuple[tuple[float, ...], ...]):
        times = 0

        def __iter__(self) -> Iterator[tuple[float, ...]]:
            Looked.times += 1
            return super().__iter__()

    class Stream(FakeStream):
        def _next(self) -> Step:
            step = super()._next()
            return replace(step, tops=Looked(step.tops))

    class Engine(FakeEngine):
        def stream(self, *args: Any, **how: Any) -> FakeStream:
            stream = super().stream(*args, **how)
            stream.__class__ = Stream
            return stream

    rule = DeepConf(warmup=2, eta=100, group=4, tau=1)
    ran = voted(Vote(n=6, stop=rule), 1, engine=Engine(p_end=0.02, length=4))
    assert len(ran.search.nodes) > 100
    assert Looked.times <= 2 * len(ran.search.nodes)


@given(st.integers(0, 40), st.integers(0, 40))
def test_lead_is_the_tail_of_a_beta(first: int, second: int) -> None:
    first, second = max(first, second), min(first, second)
    ballots = [Ballot("a")] * first + [Ballot("b")] * second + [Ballot(None)] * 3
    expected = voting.beta_tail(first, second) if first else 0.0
    assert lead(ballots) == pytest.approx(expected, abs=1e-6)


def test_share_goes_by_weight() -> None:
    ballots = [Ballot("a", 0.2), Ballot("a", 0.2), Ballot("b", 0.6), Ballot(None, 5.0)]
    assert share(ballots) == pytest.approx(0.6)
    assert share([Ballot(None)]) == 0


@given(rules, st.integers(0, 7), st.floats(0.001, 0.1), st.integers(1, 6))
@settings(max_examples=30)
def test_where_a_vote_stops_does_not_depend_on_timing(
    rule: Any, seed: int, pace: float, parallel: int
) -> None:
    """At other paces and with more in flight the same samples decide."""
    if not isinstance(rule, Esc):
        rule = rule.model_copy(update={"parallel": parallel})
    lone = rule if isinstance(rule, Esc) else rule.model_copy(update={"parallel": 1})
    first = voted(Vote(n=N, stop=lone), seed)
    ran = voted(Vote(n=N, stop=rule), seed, engine=FakeEngine(p_end=P_END, length=1.2, pace=pace))
    decided = taken(first)
    assert decided <= taken(ran) < decided + parallel or isinstance(rule, Esc)
    ends = {n.key: n.text() for n in ran.search.nodes if n.ended}
    assert {n.key: n.text() for n in first.search.nodes if n.ended}.items() <= ends.items()


@given(rules, st.integers(0, 7), st.integers(20, 800), st.sampled_from(["majority", "weighted"]))
@settings(max_examples=60)
def test_books_balance(rule: Any, seed: int, tokens: int, choose: Any) -> None:
    budget = {"tokens": tokens, "reserve": tokens // 4}
    ran = voted(Vote(n=N, stop=rule, choose=choose), seed, budget=budget)
    spent = ran.search.budget.spent
    assert ran.tasks == ran.engine.open_streams == ran.search.budget.held == 0
    assert ran.search.tree.kept <= spent == ran.engine.generated <= tokens
    assert taken(ran) <= N + 1  # and what is written when no answer was


def test_a_decided_vote_leaves_the_rest_unsampled() -> None:
    """Votes for what a verifier found wrong decide nothing."""

    class OneMind(FakeEngine):
        def stream(self, *args: Any, **how: Any) -> Any:
            stream = super().stream(*args, **how)
            stream.ids = [*map(ord, "Answer: 7"), EOS]
            return stream

    for rule, n in [(Esc(window=3), 3), (Adaptive(parallel=1), 4), (DeepConf(warmup=5), 5)]:
        ran = voted(Vote(n=N, stop=rule), 0, engine=OneMind())
        assert taken(ran) == n
        ran = voted(Vote(n=N, stop=rule), 0, engine=OneMind(), judge=Tells("never"))
        assert taken(ran) == N


def test_an_engine_without_alternatives_is_named() -> None:
    class Silent(FakeEngine):
        def stream(self, *args: Any, **how: Any) -> Any:
            return super().stream(*args, **{**how, "top_logprobs": 0})

    with pytest.raises(ScorerError, match="log-probabilities"):
        voted(Vote(n=8, stop=DeepConf(warmup=2)), 0, engine=Silent())


@pytest.mark.parametrize(
    "stop", [{"kind": "deepconf"}, {"kind": "esc", "window": 1}, {"kind": "coin"}, {"kind": []}]
)
def test_bad_rules_are_refused(stop: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="stop"):
        Vote.model_validate({"n": 8, "stop": stop})
