"""Rewards of rewards: every part is scored as if it were alone, and logged."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, prod
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from server.api.invalid import explain
from server.api.reason_schema import ReasonRequest
from server.errors import BadRequest, ScorerError
from server.reward import Gate, Models, Prm, Product, Reward, Sum
from server.reward.composite import GateScorer, ProductScorer, SumScorer
from server.reward.parts import Part
from server.types import Node, Prompt, Score, Scorer, Stop
from tests.fakes import FakeEngine
from tests.rewarding import PROFILE, FakePrm, grow, prompt_of
from tests.virtual import run

PROMPT = prompt_of("Use 4 6 to make 24.")
Json = dict[str, Any]
PRM: Json = {"kind": "prm"}
CONFIDENCE: Json = {"kind": "confidence", "aggregate": "min"}
COUNTDOWN: Json = {"kind": "countdown"}


def parsed(reward: Json) -> Reward:
    found: Reward = TypeAdapter(Reward).validate_python(reward)
    return found


def made(reward: Json, prm: FakePrm | None = None) -> Scorer:
    return parsed(reward).scorer(Models(FakeEngine(), PROFILE, prm or FakePrm()))


def summed(*terms: tuple[float, Json]) -> Json:
    return {"kind": "sum", "of": [{"weight": w, "reward": r} for w, r in terms]}


@dataclass
class Says:
    """A scorer that says what it is told of a path, by its text."""

    verdicts: dict[str, float | None]
    values: dict[str, float]
    name: str = "says"
    version: str = "1"
    seconds: float = 1.0
    running: int = 0
    seen: list[list[float | None]] = field(default_factory=list)  # raws it found on the paths

    async def score(self, prompt: Prompt, path: Sequence[Node]) -> Score:
        self.seen.append([n.raw for n in path])
        self.running += 1
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.running -= 1
        text = path[-1].text()
        return Score(self.values[text], (self.verdicts[text],), computed=2, cached=1)


def part(scorer: Scorer, name: str = "a") -> Part:
    return Part(scorer, name, {"says": name})


async def land(scorer: Scorer, node: Node) -> Score:
    """Score a node and keep it as the search does."""
    path = node.path()
    score = await scorer.score(PROMPT, path)
    for at, raw in zip(path[len(path) - len(score.steps) :], score.steps, strict=True):
        at.raw = raw if at.raw is None else at.raw
    for name, verdicts in score.parts.items():
        for at, raw in zip(path[len(path) - len(verdicts) :], verdicts, strict=True):
            if raw is not None:
                at.parts.setdefault(name, raw)
    node.score = score.value
    return score


texts = st.lists(st.text("0123456789", min_size=1, max_size=4).map("{}\n".format), min_size=1)


@settings(max_examples=60)
@given(texts, st.booleans(), st.floats(0.1, 9.0), st.floats(0.1, 9.0))
def test_the_parts_are_what_they_are_alone(
    steps: list[str], by_step: bool, a: float, b: float
) -> None:
    """Whether every step is scored as it lands, or all of them at the end."""

    async def landed(reward: Json) -> tuple[list[Node], Score]:
        path = grow(None, *steps).path()
        scorer = made(reward)
        for node in path if by_step else path[-1:]:
            score = await land(scorer, node)
        return path, score

    alone = {kind: run(landed({"kind": kind})) for kind in ("prm", "confidence")}
    raws = {kind: [n.raw for n in path] for kind, (path, _) in alone.items()}
    both, score = run(landed(summed((a, {"kind": "prm"}), (b, {"kind": "confidence"}))))
    for kind, found in raws.items():
        assert [n.parts.get(kind) for n in both] == found

    def mean(x: float, y: float) -> float:
        return (a * x + b * y) / (a + b)

    known = zip(raws["prm"], raws["confidence"], strict=True)
    expected = [mean(x, y) for x, y in known if x is not None and y is not None]
    assert [n.raw for n in both] == pytest.approx(expected)
    values = [s.value for _, s in alone.values()]
    assert score.value == pytest.approx(mean(*values))
    product, score = run(landed({"kind": "product", "of": [PRM, {"kind": "confidence"}]}))
    assert score.value == pytest.approx(prod(values))
    assert [n.raw for n in product] == pytest.approx(
        [prod(pair) for pair in zip(*raws.values(), strict=True)]
    )


def test_the_parts_run_at_once_and_see_their_own_verdicts() -> None:
    one = Says({"a\n": 0.2, "a\nb\n": 0.4}, {"a\n": 0.2, "a\nb\n": 0.4})
    two = Says({"a\n": None, "a\nb\n": 5.0}, {"a\n": 0.5, "a\nb\n": 1.0})
    scorer = SumScorer("sum", [part(one, "one"), part(two, "two")], [1.0, 1.0])
    leaf = grow(None, "a\n", "b\n")

    async def work() -> list[Score]:
        scores = [await land(scorer, node) for node in leaf.path()]
        assert asyncio.get_running_loop().time() == 2.0
        return scores

    first, second = run(work())
    assert first.steps == (None,) and second.steps[0] is None
    found = [first.value, second.value, second.steps[1]]
    assert found == pytest.approx([0.35, 0.7, 2.7])
    assert (second.computed, second.cached) == (4, 2)
    assert one.seen == [[None], [0.2, None]]
    assert two.seen == [[None], [None, None]]
    assert [n.parts for n in leaf.path()] == [{"one": 0.2}, {"one": 0.4, "two": 5.0}]


def test_verdicts_on_different_numbers_of_steps_are_aligned() -> None:
    """A verifier speaks of the last step alone, the others of all."""
    reward = {"kind": "product", "of": [COUNTDOWN, CONFIDENCE]}
    leaf = grow(None, "a\n", "Answer: 4*6", stop=Stop.END)
    score = run(land(made(reward), leaf))
    sure = pytest.approx(exp(-0.5))
    assert score.parts == {"countdown": (None, 1.0), "confidence": (sure, sure)}
    assert list(score.steps) == [None, sure]
    assert score.value == sure


GATED = [  # the gate's verdict and value; value without a threshold, and with 0.5
    (None, 0.5, 0.8, 0.8),
    (0.0, 0.0, -0.25, -0.25),
    (0.4, 0.4, 0.32, -0.25),
    (0.5, 0.5, 0.4, 0.8),
    (1.0, 1.0, 0.8, 0.8),
]


@pytest.mark.parametrize(("verdict", "value", "soft", "hard"), GATED)
def test_a_gate(verdict: float | None, value: float, soft: float, hard: float) -> None:
    for threshold, expected in ((None, soft), (0.5, hard)):
        leaf = grow(None, "a")
        gate, other = Says({"a": verdict}, {"a": value}), Says({"a": 0.7}, {"a": 0.8})
        scorer = GateScorer("gate", [part(gate, "g"), part(other, "o")], threshold, -0.25)
        score = run(land(scorer, leaf))
        assert score.value == pytest.approx(expected)
        assert score.steps == (0.7,)


def test_a_verifier_gates_a_reward_model() -> None:
    reward = {"kind": "gate", "by": COUNTDOWN, "of": CONFIDENCE}
    scorer, begun = made(reward), grow(None, "a\n")
    wrong, right = (grow(begun, f"Answer: {x}", stop=Stop.END) for x in ("4+6", "4*6"))
    worth = [run(land(scorer, node)).value for node in (begun, wrong, right)]
    assert worth == pytest.approx([exp(-0.5), 0.0, exp(-0.5)])
    outcomes = [parsed(reward).outcome(node) for node in (begun, wrong, right)]
    assert outcomes == [None, 0.0, 1.0]
    right.raw, right.outcome = 1.0, 0.25  # another verifier, beside the reward, has the last word
    assert parsed(reward).outcome(right) == parsed(COUNTDOWN).outcome(right) == 0.25


NESTED = {
    "kind": "product",
    "of": [
        PRM,
        summed((2.0, PRM), (1.0, {"kind": "gate", "by": COUNTDOWN, "of": PRM})),
        {"kind": "label"},
    ],
}


def test_every_scorer_has_a_name_of_its_own() -> None:
    scorer = made(NESTED)
    node = grow(None, "Answer: 4*6", stop=Stop.END)
    score = run(land(scorer, node))
    raw = score.parts["prm"]
    assert score.parts == {
        "prm": raw,
        "prm#2": raw,
        "countdown": (1.0,),
        "prm#3": raw,
        "label": score.parts["label"],
    }
    value, (label,) = raw[0], score.parts["label"]
    assert value is not None and label is not None
    assert score.value == pytest.approx(value * (2 * value + value) / 3 * label)
    prm = "fake-prm"
    assert scorer.name == f"product({prm}, sum({prm}, gate(countdown, {prm})), label:fake)"
    assert scorer.version == "(v1, (v1, (1, v1)), v1)"


def test_cancelling_or_failing_ends_every_part() -> None:
    async def cancelled() -> None:
        says = [Says({}, {}) for _ in range(2)]
        scorer = ProductScorer("product", [part(s) for s in says])
        task = asyncio.create_task(scorer.score(PROMPT, grow(None, "a").path()))
        await asyncio.sleep(0.5)
        assert [s.running for s in says] == [1, 1]
        task.cancel()
        await asyncio.wait([task])
        assert [s.running for s in says] == [0, 0]

    @dataclass
    class Fails(Says):
        async def score(self, prompt: Prompt, path: Sequence[Node]) -> Score:
            raise ScorerError("broken")

    async def failing() -> None:
        slow = Says({"a": 0.0}, {"a": 0.0})
        scorer = ProductScorer("product", [part(slow), part(Fails({}, {}))])
        with pytest.raises(ScorerError, match="broken"):
            await scorer.score(PROMPT, grow(None, "a").path())
        assert slow.running == 0

    run(cancelled())
    run(failing())


def test_a_request_is_told_which_part_is_wrong() -> None:
    models = Models(FakeEngine(), PROFILE)
    inner = {"kind": "gate", "by": {"kind": "label", "good": "yes"}, "of": CONFIDENCE}
    with pytest.raises(BadRequest) as caught:
        parsed({"kind": "product", "of": [CONFIDENCE, summed((1.0, inner))]}).scorer(models)
    assert caught.value.param == "reward.of.1.of.0.reward.by.good"
    with pytest.raises(BadRequest) as caught:
        parsed({"kind": "product", "of": [CONFIDENCE, PRM]}).scorer(models)
    assert caught.value.param == "reward.of.1"
    with pytest.raises(BadRequest) as caught:
        parsed(summed((1.0, COUNTDOWN))).check(prompt_of("What is love?"))
    assert caught.value.param == "reward.of.0.reward"


def deep(n: int) -> Json:
    reward = PRM
    for _ in range(n):
        reward = {"kind": "product", "of": [reward]}
    return reward


@pytest.mark.parametrize(
    ("reward", "param", "message"),
    [
        (deep(4), "reward", "at most 3 rewards of rewards"),
        (deep(200), None, "at most 3 rewards of rewards"),
        ({"kind": "product", "of": [{"kind": "product", "of": [PRM] * 9}] * 2}, "reward", "16"),
        (summed((1.0, {"kind": "orakel"})), "reward.of.0.reward.kind", "must be one of"),
        (summed((0.0, PRM)), "reward.of.0.weight", "greater than 0"),
        (summed((1.0, PRM | {"x": 1})), "reward.of.0.reward.x", "Allowed here: aggregate, kind"),
        ({"kind": "sum", "of": []}, "reward.of", "at least 1"),
        ({"kind": "gate", "by": PRM}, "reward.of", "Missing"),
        ({"kind": "gate", "by": PRM, "of": PRM, "floor": -2}, "reward.floor", "-1"),
    ],
)
def test_what_makes_no_reward_is_named(reward: Json, param: str | None, message: str) -> None:
    body = {"question": "?", "reward": reward}
    with pytest.raises(ValidationError) as caught:
        ReasonRequest.model_validate(body)
    error = explain(caught.value, ReasonRequest, body)
    assert message in error.message
    assert param is None or error.param == param


def test_three_deep_is_allowed() -> None:
    assert parsed(deep(3)) == parsed(parsed(deep(3)).model_dump(mode="json"))


def test_it_answers_for_all_its_parts() -> None:
    tops = {"kind": "confidence", "measure": "share"}
    reward = parsed({"kind": "product", "of": [CONFIDENCE, summed((1.0, tops)), PRM]})
    assert reward.top_logprobs == 5
    prm = FakePrm(context=100)
    assert reward.context(Models(FakeEngine(), PROFILE, prm)) == 100
    labelled = parsed({"kind": "gate", "by": {"kind": "label"}, "of": CONFIDENCE})
    assert labelled.context(Models(FakeEngine(context=50), PROFILE)) == 49


def test_the_classes_are_a_readers_too() -> None:
    """What Python code writes is what JSON says."""
    sums = Sum.model_validate(summed((1.0, PRM)))
    assert sums.of[0].reward == Prm()
    gate = Gate(by=Prm(), of=Product(of=(Prm(),)))
    assert parsed(gate.model_dump(mode="json")) == gate


def test_what_is_allowed_is_worked_out_once() -> None:
    """It takes 20 ms, in which the loop stands still."""

    class Asked(BaseModel):
        model_config = ConfigDict(extra="forbid")
        times: ClassVar[int] = 0
        n: int = 1

        @classmethod
        def model_json_schema(cls, *args: Any, **how: Any) -> dict[str, Any]:
            cls.times += 1
            return super().model_json_schema(*args, **how)

    for name in ("x", "y"):
        with pytest.raises(ValidationError) as caught:
            Asked.model_validate({name: 1})
        assert "Allowed here: n." in explain(caught.value, Asked, {name: 1}).message
    assert Asked.times == 1
