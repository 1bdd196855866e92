"""Answers that agree: by key or by meaning, as they land and before the choice."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, log
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from server.ask import Preparer
from server.config import Limits, Settings
from server.reward import Consistency, Models, Reward
from server.reward.consistency import ConsistencyScorer
from server.search import BestOfN
from server.service import Service
from server.types import Message, Node, Scorer, Stop
from tests.fakes import FakeEngine
from tests.rewarding import PROFILE, FakePrm, grow, prompt_of
from tests.test_reward_composite import land
from tests.test_reward_judge import Whole
from tests.virtual import run

PROMPT = prompt_of("What is it?")


def answer(root: Node, text: str) -> Node:
    return grow(root, f"Answer: {text}", stop=Stop.END)


def test_nobody_else_is_asked_where_nobody_is() -> None:
    with pytest.raises(ValidationError, match="by is for cluster judge"):
        Consistency(by="judge")


def scorer(**settings: Any) -> ConsistencyScorer:
    made = Consistency.model_validate(settings).scorer(Models(FakeEngine(), PROFILE))
    assert isinstance(made, ConsistencyScorer)
    return made


@settings(max_examples=80)
@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12))
def test_shares_of_those_so_far_and_then_of_all(texts: list[str]) -> None:
    root, made = Node(), scorer()
    nodes = [answer(root, text) for text in texts]
    for i, (node, text) in enumerate(zip(nodes, texts, strict=True), 1):
        score = run(land(made, node))
        assert score.value == score.steps[-1] == texts[:i].count(text) / (i + 1)
    counts = Counter(texts)
    facts = made.settle([root, *nodes])["consistency"]
    assert [n.score for n in nodes] == [counts[text] / len(texts) for text in texts]
    shares = [n / len(texts) for n in counts.values()]
    assert (facts["answers"], facts["clusters"]) == (len(texts), len(counts))
    assert facts["semantic_entropy"] == pytest.approx(-sum(p * log(p) for p in shares))


def test_what_has_no_vote() -> None:
    root, made = Node(), scorer()
    begun, cut = grow(root, "Answer: 1\n"), grow(root, "Answer: 1", stop=Stop.LENGTH)
    for node in (begun, cut):
        score = run(land(made, node))
        assert (score.value, score.steps) == (0.5, (None,))
    assert made.settle([root, begun, cut]) == {}
    odd, other = (grow(root, text, stop=Stop.END) for text in ("no", "no"))
    assert [run(land(made, node)).value for node in (odd, other)] == [1 / 2, 1 / 3]
    made.settle([root, odd, other])
    assert [odd.score, other.score] == [0.5, 0.5], "an unrecognised answer is like no other"


def test_merged_answers_count_as_often_as_they_were_sampled() -> None:
    root, made = Node(), scorer()
    a, b = answer(root, "a"), answer(root, "b")
    run(land(made, a))
    run(land(made, b))
    a.multiplicity = 3
    made.settle([root, a, b])
    assert (a.score, b.score) == (0.75, 0.25)


@dataclass
class Entails(FakeEngine):
    """Says which answer entails which other."""

    pairs: set[tuple[str, str]] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokenizer = Whole()

    async def label_logprobs(
        self, ids: Sequence[int], labels: Sequence[int]
    ) -> tuple[tuple[float, ...], int]:
        found = re.search(r"Answer 1: (.*)\nAnswer 2: (.*)\n", self.tokenizer.decode(ids))
        assert found
        self.asked.append((found[1], found[2]))
        await asyncio.sleep(1.0)
        yes = 0.9 if self.asked[-1] in self.pairs else 0.2
        return (log(1 - yes), log(yes)), 1


def both(*pairs: tuple[str, str]) -> set[tuple[str, str]]:
    return {pair for a, b in pairs for pair in ((a, b), (b, a))}


def judged(engine: FakeEngine) -> Scorer:
    return Consistency(cluster="judge").scorer(Models(engine, PROFILE))


def test_answers_that_entail_each_other_mean_the_same() -> None:
    engine = Entails(pairs=both(("Paris", "the capital")) | {("Rome", "a city")})
    made, root = judged(engine), Node()
    nodes = [answer(root, t) for t in ("Paris", "Rome", "the capital", "a city", "The Capital.")]
    scores = [run(land(made, node)) for node in nodes]
    assert isinstance(made, ConsistencyScorer)
    facts = made.settle([root, *nodes])["consistency"]
    assert [n.score for n in nodes] == [0.6, 0.2, 0.6, 0.2, 0.6]
    assert facts["clusters"] == 3
    assert len(engine.asked) == 2 + 2 + 4, "equal keys need no question"
    assert engine.asked[2:4] == [("Paris", "the capital"), ("the capital", "Paris")]
    assert [bool(s.computed) for s in scores] == [False, True, True, True, False]
    assert made.name == "consistency:fake"


def test_answers_that_land_at_once_found_one_cluster() -> None:
    engine = Entails(pairs=both(("one", "1")))
    made, root = judged(engine), Node()
    nodes = [answer(root, t) for t in ("one", "1", "one")]

    async def at_once() -> None:
        await asyncio.gather(*(land(made, node) for node in nodes))

    run(at_once())
    assert isinstance(made, ConsistencyScorer)
    made.settle(nodes)
    assert [n.score for n in nodes] == [1.0, 1.0, 1.0]


def test_inside_another_reward_it_is_settled_too() -> None:
    reward: Reward = TypeAdapter(Reward).validate_python(
        {"kind": "product", "of": [{"kind": "prm"}, {"kind": "consistency"}]}
    )
    made, root = reward.scorer(Models(FakeEngine(), PROFILE, FakePrm())), Node()
    nodes = [answer(root, text) for text in "aab"]
    begun = grow(root, "so\n")
    for node in (*nodes, begun):
        run(land(made, node))
    before = begun.score
    facts = made.settle([root, *nodes, begun])  # type: ignore[attr-defined]
    shares = (2 / 3, 2 / 3, 1 / 3)
    expected = [n.parts["prm"] * share for n, share in zip(nodes, shares, strict=True)]
    assert [n.score for n in nodes] == pytest.approx(expected)
    assert begun.score == before
    assert facts["consistency"]["clusters"] == 2
    assert [n.parts["consistency"] for n in nodes] == [1 / 2, 2 / 3, 1 / 4], "as they landed"


def test_the_choice_is_by_the_last_scores_and_the_trace_says_so() -> None:
    settings = Settings.model_validate({"policy": {"kind": "vllm", "model": "fake"}})
    models = Models(FakeEngine(), PROFILE)
    reward: Reward = TypeAdapter(Reward).validate_python(
        {
            "kind": "sum",
            "of": [
                {"weight": 9, "reward": {"kind": "consistency"}},
                {"weight": 1, "reward": {"kind": "confidence", "measure": "entropy", "top": 3}},
            ],
        }
    )
    ask = Preparer(Limits(), models).prepare(
        messages=[Message("user", "?")], strategy=BestOfN(n=12), reward=reward, seed=3
    )

    async def go() -> Any:
        return await Service(settings, models).reason(ask)

    outcome = run(go())
    ended = [n for n in outcome.trace.nodes if n.finish_reason == "end"]
    votes = Counter(n.answer_norm for n in ended)
    assert len(ended) == 12 and len(votes) > 1
    assert votes[outcome.answers[0].key] == max(votes.values())
    (decision,) = outcome.trace.decisions
    assert decision["consistency"]["clusters"] == len(votes)
    assert decision["consistency"]["semantic_entropy"] > 0
    names = {part.name for node in ended for part in node.parts}
    assert names == {"consistency", "confidence"}
    assert outcome.trace.versions.scorer_id == "sum(consistency, confidence)"
    assert outcome.trace.versions.scorer_version == "(1, v1)"
    assert all(-inf < n.prm_agg <= 1 for n in ended)
