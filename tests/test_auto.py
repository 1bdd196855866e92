"""auto: a probe, a choice by difficulty and budget, stages in one tree, an early end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from server.ask import Preparer
from server.config import Limits
from server.errors import BadRequest
from server.profiles import AnswerProfile, Profile
from server.reward import Label, Models
from server.search import MCTS, Auto, Beam, BestOfN, Vote
from server.search.auto import Level
from server.types import Message, Node, Prompt, Score
from tests.fakes import EOS, FakeEngine, FakeScorer
from tests.searching import Ran, searched
from tests.test_operators import Tells

ANSWER = AnswerProfile(pattern=r"Answer: (\d+)")


class Flat(FakeScorer):
    """Likes every path as much."""

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    async def score(self, prompt: Prompt, path: list[Node]) -> Score:  # type: ignore[override]
        await asyncio.sleep(self.delay)
        fresh = sum(n.raw is None for n in path)
        return Score(value=self.value, steps=(self.value,) * fresh, computed=fresh)


class OneMind(FakeEngine):
    """Always ends with the same answer."""

    def stream(self, *args: Any, **how: Any) -> Any:
        stream = super().stream(*args, **how)
        stream.ids = [*map(ord, "1\nAnswer: 7"), EOS][: len(stream.ids)]
        return stream


def tried(strategy: Auto, seed: int = 0, **options: Any) -> Ran:
    return searched(strategy, seed=seed, answer=ANSWER, **options)


def kinds(ran: Ran) -> list[str]:
    """What was decided, the searches by their kind."""
    return [
        d["strategy"]["kind"] if d["decision"] == "search" else d["decision"]
        for d in ran.search.decisions
    ]


def test_an_answer_that_scores_high_enough_ends_the_probe() -> None:
    ran = tried(Auto(stop_at=0.5), scorer=Flat(0.6))
    assert kinds(ran) == ["probe", "stop"]
    assert ran.search.decisions[0]["answers"] == 1
    assert ran.search.decisions[1]["reason"] == "an answer scored 0.600, at least 0.5"


def test_samples_that_agree_end_the_probe() -> None:
    ran = tried(Auto(), engine=OneMind(), scorer=Flat(0.6))
    assert kinds(ran) == ["probe", "stop"]
    assert ran.search.decisions[0]["lead"] == pytest.approx(1 - 0.5**5, abs=1e-4)
    assert "100% of 4" in ran.search.decisions[1]["reason"]


def test_agreement_on_what_scores_low_does_not() -> None:
    ran = tried(Auto(), engine=OneMind(), scorer=Flat(0.1))
    assert kinds(ran)[:2] == ["probe", "mcts"]


def test_answers_that_are_wrong_make_it_hard() -> None:
    ran = tried(Auto(stop_at=0.5), engine=OneMind(), scorer=Flat(0.6), judge=Tells("never"))
    probe = ran.search.decisions[0]
    assert (probe["answers"], probe["best_score"], probe["difficulty"]) == (4, None, 1.0)
    assert kinds(ran)[:2] == ["probe", "mcts"]


LEVELS = (
    Level(difficulty=0.3, stages=(Vote(n=2),)),
    Level(difficulty=0.6, stages=(BestOfN(n=2),)),
    Level(stages=(Beam(width=1, branch=2), Vote(n=2))),
)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(0.9, "vote"), (0.75, "vote"), (0.5, "best_of_n"), (0.3, "beam"), (0, "beam")],
)
def test_difficulty_chooses_the_level(value: float, kind: str) -> None:
    """With one mind the difficulty is one minus the score."""
    ran = tried(Auto(levels=LEVELS, agree=1), engine=OneMind(), scorer=Flat(value))
    assert ran.search.decisions[0]["difficulty"] == pytest.approx(1 - value)
    assert kinds(ran)[1] == kind


@pytest.mark.parametrize("seed", range(6))
def test_stages_follow_each_other_and_the_last_is_repeated(seed: int) -> None:
    levels = (Level(stages=(BestOfN(n=2), Vote(n=3))),)
    ran = tried(Auto(levels=levels, answers=20, agree=1), seed)
    stages = kinds(ran)[1:-1]
    assert stages[:3] == ["best_of_n", "vote", "vote"]
    assert set(stages[2:]) == {"vote"}
    assert kinds(ran)[-1] == "stop"


@given(st.integers(0, 20), st.integers(1, 6), st.integers(1, 40))
@settings(max_examples=60)
def test_it_keeps_its_allowance(seed: int, probe: int, answers: int) -> None:
    """Measured in answers of the probe, which counts."""
    ran = tried(Auto(probe=probe, answers=answers), seed)
    first = ran.search.decisions[0]
    n = min(probe, answers)
    assert first["answers"] == n
    allowed = max(answers, n) * first["tokens_per_answer"]
    assert ran.search.budget.spent <= allowed + 1
    assert ran.search.tree.answered
    assert ran.tasks == ran.engine.open_streams == ran.search.budget.held == 0
    assert ran.search.tree.kept <= ran.search.budget.spent == ran.engine.generated


@given(st.integers(0, 20), st.integers(1, 3000), st.floats(0.05, 20))
@settings(max_examples=60)
def test_it_keeps_the_callers_budget(seed: int, tokens: int, seconds: float) -> None:
    budget = {"tokens": tokens, "seconds": seconds, "reserve": tokens // 4}
    ran = tried(Auto(answers=32), seed, budget=budget)
    assert ran.search.budget.spent <= tokens
    assert ran.seconds <= seconds + 1e-6
    assert ran.tasks == ran.engine.open_streams == ran.search.budget.held == 0


def test_a_larger_allowance_finds_what_a_smaller_one_found() -> None:
    """The same tree, gone on with: the best score never falls."""
    best = []
    for answers in (4, 8, 16, 32, 64):
        ran = tried(Auto(answers=answers, agree=1), 3)
        best.append(max(n.value for n in ran.search.nodes if n.ended))
    assert best == sorted(best)
    assert best[0] < best[-1]


@pytest.mark.parametrize("seed", range(6))
def test_what_was_there_counts_as_simulations_of_the_tree_search(seed: int) -> None:
    """A node's visits are its own evaluation, its children's, and returns to a finished one."""
    ran = tried(Auto(answers=24, agree=1, levels=(Level(stages=(MCTS(simulations=8),)),)), seed)
    nodes = [n for n in ran.search.nodes if n.visits]
    assert len(nodes) > 20
    for node in nodes:
        below = sum(child.visits for child in node.children)
        if node.finished:
            assert node.visits >= 1
        else:
            assert node.visits == below + (node is not ran.search.root)


def test_calls_of_the_scorer_are_bounded_too() -> None:
    ran = tried(Auto(answers=40), 1, budget={"calls": 9})
    assert ran.search.budget.called <= 9


def test_a_stage_may_be_stopped_and_the_next_one_runs() -> None:
    """A stage's own early stop ends that stage alone."""
    levels = (Level(stages=(BestOfN(n=8, stop_at=0.1), Vote(n=2))),)
    ran = tried(Auto(levels=levels, agree=1), 2)
    assert kinds(ran)[1:3] == ["best_of_n", "vote"]


def test_a_right_answer_ends_all_stages() -> None:
    class Judge:
        async def verdict(self, prompt: Prompt, text: str) -> float | None:
            seen.append(text)
            return float(len(seen) == 7)

    seen: list[str] = []
    ran = tried(Auto(answers=60, agree=1), 0, judge=Judge())
    assert ran.search.solved
    assert len(seen) == 7
    assert ran.tasks == ran.engine.open_streams == ran.search.budget.held == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"levels": []},
        {"levels": [{"difficulty": 0.5, "stages": [{"kind": "vote"}]}]},
        {"levels": [{"stages": []}]},
        {"levels": [{"stages": [{"kind": "vote"}]}] * 2},
        {"levels": [{"stages": [{"kind": "vote"}], "least": 4}]},
        {"levels": [{"stages": [{"kind": "auto"}]}]},
        {"levels": [{"stages": [{"kind": "vote", "depth": 3}]}]},
        {"levels": [{"stages": [{"kind": "mcts", "behaviours": ["continue"]}]}]},
        {"agree": 0.5},
    ],
    ids=str,
)
def test_bad_settings_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Auto.model_validate(fields)


def prepared(strategy: Auto, **limits: Any) -> Auto:
    search = {"mcts": {"c": 0.3, "simulations": 9}, "auto": {"probe": 3, "stop_at": 0.9}}
    profile = Profile(name="p", search=search)
    preparer = Preparer(Limits(**limits), Models(FakeEngine(), profile))
    label = Label(good="+", bad="-")
    ask = preparer.prepare(messages=[Message("user", "Q")], strategy=strategy, reward=label)
    assert isinstance(ask.strategy, Auto)
    return ask.strategy


def test_the_profile_has_a_say_in_auto_and_in_its_stages() -> None:
    auto = prepared(Auto(answers=5))
    assert (auto.answers, auto.probe, auto.stop_at) == (5, 3, 0.9)
    stages = [stage for stage in auto.parts.values() if isinstance(stage, MCTS)]
    assert stages and all(stage.c == 0.3 for stage in stages)
    assert [stage.simulations for stage in stages] == [16, 32]


def test_the_profiles_depth_and_behaviours_are_a_whole_searchs() -> None:
    search = {
        kind: {"depth": 3, "behaviours": ["self_correction"]} for kind in ("mcts", "best_of_n")
    }
    models = Models(FakeEngine(), Profile(name="p", search=search))
    for strategy in (Auto(), MCTS()):
        messages = [Message("user", "Q")]
        fitted = Preparer(Limits(), models).prepare(messages=messages, strategy=strategy).strategy
        stages = fitted.parts.values()
        assert all(stage.depth is None and not stage.behaviours for stage in stages)
        assert fitted.depth == (None if stages else 3)


def test_stages_are_within_the_servers_limits() -> None:
    with pytest.raises(BadRequest, match=r"mcts\.simulations must be at most 20") as caught:
        prepared(Auto(), simulations=20)
    assert caught.value.param == "strategy.levels.1.stages.1.simulations"


def test_a_level_may_need_an_allowance() -> None:
    levels = (Level(least=8, stages=(MCTS(simulations=8),)), Level(stages=(BestOfN(n=2),)))
    for answers, kind in ((7, "best_of_n"), (8, "mcts")):
        ran = tried(Auto(levels=levels, answers=answers, agree=1), 2)
        assert ran.search.decisions[1]["strategy"]["kind"] == kind


def test_a_quota_holds_what_it_may_go_on_to_take() -> None:
    """More than its probe."""
    auto = Auto(probe=2, answers=16, agree=1)
    messages = [Message("user", "Q")]
    ask = Preparer(Limits(), Models(FakeEngine(), Profile(name="p"))).prepare(
        messages=messages, strategy=auto, max_tokens=100
    )
    ran = tried(auto, engine=FakeEngine(p_end=0.05), max_tokens=100, scorer=Flat(0.6))
    assert ask.most >= ran.search.budget.spent > 3 * 100
    few = Preparer(Limits(tokens=500), Models(FakeEngine(), Profile(name="p"))).prepare(
        messages=messages, strategy=auto, max_tokens=100
    )
    assert few.most == 500
