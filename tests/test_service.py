"""Requests are checked before any token, and every search leaves a trace that adds up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import ValidationError

from server.ask import Ask, BudgetSpec, Preparer, strategies
from server.config import HttpSettings, Limits, Settings
from server.errors import (
    BadRequest,
    EngineError,
    NoAnswer,
    NoLogprobs,
    Overloaded,
    PonderError,
)
from server.profiles import shipped
from server.reward import (
    Confidence,
    Consistency,
    Gate,
    JudgeReward,
    Label,
    Models,
    Prm,
    Product,
    Sum,
)
from server.reward.composite import Weighted
from server.reward.verifiers import Countdown
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
from server.search.auto import Level
from server.search.stopping import DeepConf
from server.service import Service
from server.traces.schema import Trace
from server.types import Message
from tests.fakes import EOS, FakeEngine, FakeStream
from tests.virtual import run

WARMED_UP = {"kind": "deepconf", "warmup": 8}
ASKED = [Message("user", "Use 4 9 10 13 to make 24.")]
LABEL = Label(good="+", bad="-")


class Sink:
    def __init__(self) -> None:
        self.traces: list[Trace] = []

    def put(self, trace: Trace) -> None:
        self.traces.append(trace)


def service(engine: FakeEngine | None = None, sink: Sink | None = None, **limits: Any) -> Service:
    settings = Settings(
        policy=HttpSettings(url="http://nowhere", model="fake"), limits=Limits(**limits)
    )
    models = Models(policy=engine or FakeEngine(), profile=shipped()["reference"])
    return Service(settings, models, traces=sink)


def reasoned(
    work: Callable[[Service], Awaitable[Any]], engine: FakeEngine | None = None, **limits: Any
) -> tuple[Any, Sink]:
    sink = Sink()

    async def go() -> Any:
        return await work(service(engine, sink, **limits))

    return run(go()), sink


BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": [Message("robot", "hi")]}, "messages.0.role"),
    ({"messages": [Message("system", "be nice")]}, "messages"),
    ({"messages": [Message("user", "x" * 5000)]}, "messages"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 10**6}, "max_tokens"),
    ({"max_tokens": 4090}, "max_tokens"),
    ({"n": 0}, "n"),
    ({"n": 17, "strategy": BestOfN(n=32)}, "n"),
    ({"n": 5, "strategy": BestOfN(n=4)}, "n"),
    ({"strategy": BestOfN(n=257)}, "strategy.n"),
    ({"strategy": Beam(width=300)}, "strategy.width"),
    ({"strategy": MCTS(simulations=5000)}, "strategy.simulations"),
    ({"strategy": Beam(width=200, branch=200)}, "strategy"),
    ({"budget": BudgetSpec(tokens=10**9)}, "budget.tokens"),
    ({"budget": BudgetSpec(seconds=float("nan"))}, "budget.seconds"),
    ({"budget": BudgetSpec(seconds=-1.0)}, "budget.seconds"),
    ({"budget": BudgetSpec(calls=0)}, "budget.calls"),
    ({"budget": BudgetSpec(concurrency=10**6)}, "budget.concurrency"),
    ({"sampling": {"temperature": 3.0}}, "temperature"),
    ({"sampling": {"temperature": float("nan")}}, "temperature"),
    ({"sampling": {"warmth": 1.0}}, "warmth"),
    ({"reward": Prm()}, "reward"),
    (
        {"messages": [Message("user", "Hello")], "reward": Countdown()},
        "reward",
    ),
]


@pytest.mark.parametrize(("wrong", "param"), BAD, ids=[f"{i}-{p}" for i, (_, p) in enumerate(BAD)])
def test_bad_requests_name_the_parameter_and_cost_nothing(
    wrong: dict[str, Any], param: str
) -> None:
    engine = FakeEngine()

    async def ask(it: Service) -> Ask:
        return it.prepare(**{"messages": ASKED, **wrong})

    with pytest.raises(BadRequest) as caught:
        reasoned(ask, engine)
    assert caught.value.param is not None
    assert caught.value.param.startswith(param)
    assert engine.requests == 0


@pytest.mark.parametrize("strategy", [BestOfN(n=4), Vote(n=4), Beam(width=2), MCTS()])
def test_a_trace_adds_up(strategy: Any) -> None:
    async def ask(it: Service) -> Any:
        return await it.reason(it.prepare(messages=ASKED, strategy=strategy, seed=7, n=2))

    engine = FakeEngine()
    outcome, sink = reasoned(ask, engine)
    (trace,) = sink.traces
    assert trace == outcome.trace
    usage = trace.usage
    assert usage.policy == engine.generated == usage.kept + usage.discarded
    assert usage.kept == sum(len(n.token_ids) * n.multiplicity for n in trace.nodes)
    assert usage.nodes == len(trace.nodes) - 1
    assert trace.selected is not None
    chosen = trace.nodes[trace.selected]
    assert chosen.answer_norm == outcome.answers[0].key
    assert trace.answer == outcome.answers[0].final
    for node in trace.nodes[1:]:
        assert node.parent is not None and node.parent != node.id
        assert trace.nodes[node.parent].depth == node.depth - 1
        assert node.logprobs is not None and len(node.logprobs) == len(node.token_ids)
    assert strategy.model_dump(exclude_unset=True).items() <= trace.strategy.items()
    assert 1 <= len(outcome.answers) <= 2


def test_a_failed_search_leaves_its_tree_and_the_reason() -> None:
    engine = FakeEngine(p_end=0.05)
    sink = Sink()

    async def go() -> None:
        it = service(engine, sink)
        task = asyncio.create_task(it.reason(it.prepare(messages=ASKED, strategy=BestOfN(n=4))))
        await asyncio.sleep(1.0)
        engine.broken = True
        await task

    with pytest.raises(EngineError):
        run(go())
    (trace,) = sink.traces
    assert trace.error is not None and trace.error.startswith("EngineError")
    assert trace.selected is None and trace.usage.policy == engine.generated


def test_too_little_time_for_one_step_is_no_answer() -> None:
    async def ask(it: Service) -> Any:
        budget = BudgetSpec(seconds=0.01)
        return await it.reason(it.prepare(messages=ASKED, budget=budget))

    with pytest.raises(NoAnswer):
        reasoned(ask)


def test_a_small_token_budget_still_answers() -> None:
    async def ask(it: Service) -> Any:
        budget = BudgetSpec(tokens=60)
        return await it.reason(it.prepare(messages=ASKED, budget=budget, seed=1))

    engine = FakeEngine()
    outcome, _ = reasoned(ask, engine)
    assert outcome.answers and outcome.usage.policy <= 60


def test_searches_beyond_the_queue_are_refused_and_the_others_run() -> None:
    async def ask(it: Service) -> list[Any]:
        asks = [it.prepare(messages=ASKED, strategy=BestOfN(n=2), seed=i) for i in range(6)]
        return await asyncio.gather(*map(it.reason, asks), return_exceptions=True)

    results, sink = reasoned(ask, searches=2, queue=2)
    refused = [r for r in results if isinstance(r, Overloaded)]
    assert len(refused) == 2 and len(sink.traces) == 4
    assert all(isinstance(r, PonderError) or r.answers for r in results)


def test_time_in_the_queue_is_bounded() -> None:
    async def ask(it: Service) -> list[Any]:
        slow = it.prepare(messages=ASKED, strategy=BestOfN(n=8), seed=1)
        late = it.prepare(messages=ASKED, budget=BudgetSpec(seconds=0.05))
        return list(await asyncio.gather(it.reason(slow), it.reason(late), return_exceptions=True))

    (first, second), _ = reasoned(ask, searches=1)
    assert first.answers and isinstance(second, Overloaded)


def test_time_in_the_queue_counts() -> None:
    async def ask(it: Service) -> tuple[float, Any]:
        slow = it.prepare(messages=ASKED, strategy=Vote(n=1), seed=1)
        late = it.prepare(messages=ASKED, strategy=MCTS(), budget=BudgetSpec(seconds=4.0), seed=1)
        first, outcome = await asyncio.gather(it.reason(slow), it.reason(late))
        waited = first.usage.seconds
        assert 0.5 < waited < 3.0
        assert outcome.usage.seconds <= 4.0 - waited + 1e-6
        return asyncio.get_running_loop().time(), outcome

    (ended, outcome), _ = reasoned(ask, FakeEngine(pace=0.02), searches=1)
    assert ended <= 4.0 + 1e-6
    assert outcome.answers


def test_searches_share_what_the_engine_runs_at_once() -> None:
    async def ask(it: Service) -> tuple[list[float], float]:
        async def one(tenant: str) -> float:
            budget = BudgetSpec(seconds=100.0)
            asked = it.prepare(
                messages=ASKED, strategy=BestOfN(n=4), seed=1, tenant=tenant, budget=budget
            )
            began = asyncio.get_running_loop().time()
            outcome = await it.reason(asked)
            assert len({a.key for a in outcome.answers}) >= 1
            return asyncio.get_running_loop().time() - began

        flood = [asyncio.create_task(one("many")) for _ in range(24)]
        await asyncio.sleep(0.1)
        few = await one("few")
        many = await asyncio.gather(*flood)
        assert it.share.waiting == it.share.room.in_flight == 0
        return many, few

    engine = FakeEngine(capacity=6)
    (many, few), sink = reasoned(ask, engine)
    assert engine.peak == 6 and len(sink.traces) == 25
    assert few < sorted(many)[len(many) // 4]


@dataclass
class Opinionated(FakeEngine):
    """Tells no probabilities, but says a digit when it is asked for one."""

    opinions: int = 0
    read: int = 0  # tokens of the questions for them

    async def label_logprobs(self, ids: Any, labels: Any) -> Any:
        raise NoLogprobs("none")

    def stream(self, prompt_ids: Any, **how: Any) -> FakeStream:
        stream = super().stream(prompt_ids, **how)
        if "one digit" in self.tokenizer.decode(prompt_ids):
            stream.ids = [ord("7"), EOS]
            self.opinions += 1
            self.read += len(prompt_ids)
        return stream


@pytest.mark.parametrize(
    ("strategy", "reward"),
    [
        (BestOfN(n=6), JudgeReward()),
        (Beam(width=2), Product(of=(JudgeReward(), Confidence()))),
    ],
)
def test_what_a_reward_has_the_policy_say_waits_for_its_turn(strategy: Any, reward: Any) -> None:
    """And is counted as the scorer's."""

    async def ask(it: Service) -> list[Any]:
        asks = [it.prepare(messages=ASKED, strategy=strategy, reward=reward) for _ in range(5)]
        outcomes = await asyncio.gather(*map(it.reason, asks))
        assert it.share.waiting == it.share.room.in_flight == 0
        return [outcome.usage for outcome in outcomes]

    engine = Opinionated(capacity=3)
    usages, _ = reasoned(ask, engine)
    assert engine.peak == 3
    assert engine.opinions == sum(u.scorer_calls for u in usages) > 0
    said = 2 * engine.opinions
    assert sum(u.scorer_computed for u in usages) == engine.read + said
    assert sum(u.policy for u in usages) == engine.generated - said


def test_a_verifier_records_outcomes() -> None:
    async def ask(it: Service) -> Any:
        reward = Countdown()
        return await it.reason(it.prepare(messages=ASKED, reward=reward, strategy=BestOfN(n=3)))

    outcome, _ = reasoned(ask)
    finished = [n for n in outcome.trace.nodes if n.status == "terminal"]
    assert finished and all(n.outcome == 0.0 for n in finished)
    assert outcome.trace.outcome == 0.0


def test_what_the_caller_leaves_open_comes_from_the_profile() -> None:
    async def ask(it: Service) -> tuple[Any, Any, Any]:
        asked = (MCTS(), MCTS(c=1.0, simulations=7), BestOfN(n=3))
        fitted: list[Any] = [it.prepare(messages=ASKED, strategy=s).strategy for s in asked]
        return fitted[0], fitted[1], fitted[2]

    (fitted, given, other), _ = reasoned(ask)
    own = shipped()["reference"].search["mcts"]
    assert own["c"] != MCTS().c
    assert (fitted.c, fitted.choose, fitted.simulations) == (own["c"], own["choose"], 32)
    assert (given.c, given.choose, given.simulations) == (1.0, own["choose"], 7)
    assert other == BestOfN(n=3)


def test_a_profiles_thresholds_are_of_its_own_rewards_scores() -> None:
    search = {"best_of_n": {"stop_at": 0.9, "choose": "weighted"}, "auto": {"stop_at": 0.8}}
    profile = shipped()["default"].model_copy(update={"search": search})
    preparer = Preparer(Limits(), Models(FakeEngine(), profile))

    def fitted(strategy: Strategy, **given: Any) -> Any:
        return preparer.prepare(messages=ASKED, strategy=strategy, **given).strategy

    assert fitted(BestOfN(), reward=LABEL).stop_at == 0.9
    for other in ({}, {"reward": Confidence()}, {"reward": Consistency()}):
        assert fitted(BestOfN(), **other) == BestOfN(choose="weighted")
        assert fitted(BestOfN(stop_at=0.7), **other).stop_at == 0.7
        auto = fitted(Auto(levels=(Level(stages=(BestOfN(n=2),)),)), **other)
        assert auto.stop_at == auto.levels[0].stages[0].stop_at == 1


def test_what_contradicts_the_profile_is_told() -> None:
    search = {"revise": {"by": "wait"}, "mcts": {"futile": 0.1}, "vote": {"stop": WARMED_UP}}
    profile = shipped()["default"].model_copy(update={"search": search})
    preparer = Preparer(Limits(), Models(FakeEngine(), profile))
    contradictions: list[tuple[Any, str]] = [
        (Revise(reflect=True), "by: wait: reflect needs by turn"),
        (MCTS(granularity="solution"), "futile: 0.1: futile needs granularity step"),
        (Vote(n=4), "warmup must be at most n, which is 4"),
    ]
    for strategy, named in contradictions:
        with pytest.raises(BadRequest, match=named) as caught:
            preparer.prepare(messages=ASKED, strategy=strategy, reward=LABEL)
        assert caught.value.param == "strategy"
    assert preparer.prepare(messages=ASKED, strategy=Revise(by="turn", reflect=True))


def test_a_profile_with_parameters_that_no_strategy_has_is_refused() -> None:
    profile = shipped()["default"].model_copy(update={"search": {"mcts": {"sims": 3}}})
    with pytest.raises(ValidationError, match="sims"):
        strategies(profile)


DEEPCONF = Vote(n=8, stop=DeepConf(warmup=2, k=10))


@pytest.mark.parametrize(
    ("wrong", "most", "param"),
    [
        ({"strategy": DEEPCONF}, 0, "strategy.stop"),
        ({"strategy": DEEPCONF}, 9, "strategy.stop"),
        (
            {"strategy": Auto(levels=(Level(stages=(DEEPCONF,)),))},
            0,
            "strategy.levels.0.stages.0.stop",
        ),
        ({"reward": Confidence()}, 0, "reward"),
        ({"reward": Confidence(measure="share")}, 4, "reward"),
        ({"reward": LABEL}, 0, "reward"),
        ({"reward": Product(of=(Consistency(), Confidence()))}, 0, "reward.of.1"),
    ],
)
def test_log_probabilities_that_a_policy_does_not_give_are_not_waited_for(
    wrong: dict[str, Any], most: int, param: str
) -> None:
    def prepared(engine: FakeEngine) -> Ask:
        return service(engine).prepare(messages=ASKED, **wrong)

    prepared(FakeEngine())
    with pytest.raises(BadRequest, match="log-probabilities") as caught:
        prepared(FakeEngine(most_logprobs=most))
    assert caught.value.param == param


@pytest.mark.parametrize(
    "strategy",
    [
        Beam(),
        DVTS(),
        Rebase(),
        Particles(),
        MCTS(),
        BestOfN(reject=0.5),
    ],
    ids=lambda strategy: strategy.kind,
)
def test_what_goes_by_steps_needs_a_reward_that_knows_them(strategy: Any) -> None:
    it, knows = service(), Confidence()
    for reward in (Countdown(), Consistency(), Sum(of=(Weighted(reward=Consistency()),))):
        with pytest.raises(BadRequest, match="unfinished answers") as caught:
            it.prepare(messages=ASKED, strategy=strategy, reward=reward)
        assert caught.value.param == "reward"
        it.prepare(messages=ASKED, strategy=BestOfN(), reward=reward)
    it.prepare(messages=ASKED, strategy=strategy, reward=Gate(by=Countdown(), of=knows))


@pytest.mark.parametrize(
    ("strategy", "reward", "reason"),
    [
        (Vote(n=2), Confidence(), "vote with choose majority asks no reward"),
        (Vote(n=2), None, None),
        (Vote(n=2, choose="weighted"), Confidence(), None),
        (Auto(answers=2), Countdown(), "the reward countdown says nothing of unfinished answers"),
        (MCTS(simulations=2), None, "the reward consistency says nothing of unfinished answers"),
        (MCTS(simulations=2, granularity="solution"), None, None),
    ],
)
def test_a_reward_without_effect_is_on_record(strategy: Any, reward: Any, reason: Any) -> None:
    """The last two are of a server that has no other reward than consistency."""

    async def ask(it: Service) -> Any:
        return await it.reason(it.prepare(messages=ASKED, strategy=strategy, reward=reward))

    _, sink = reasoned(ask, FakeEngine(most_logprobs=0 if reward is None else 20))
    said = [d["reason"] for d in sink.traces[0].decisions if d.get("decision") == "reward"]
    assert len(said) == (reason is not None)
    assert not said or said[0].startswith(reason)


def test_a_policy_without_log_probabilities_is_still_one() -> None:
    """What names no reward is not refused for one."""

    async def ask(it: Service) -> Any:
        return await it.reason(it.prepare(messages=ASKED, strategy=BestOfN(n=4)))

    outcome, sink = reasoned(ask, FakeEngine(most_logprobs=0))
    assert outcome.answers[0].score is not None
    assert sink.traces[0].reward["kind"] == "consistency"


def test_the_default_reward_needs_no_model() -> None:
    async def ask(it: Service) -> Ask:
        return it.prepare(messages=ASKED)

    prepared, _ = reasoned(ask)
    assert isinstance(prepared.reward, Confidence)
