"""The countdown verifier: which questions it knows, and which answers are right."""

from __future__ import annotations

import random
import time
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from server.errors import BadRequest
from server.reward import Models, Reward
from server.reward.verifiers import Countdown
from server.reward.verifiers.countdown import Puzzle, puzzle
from server.types import Prompt, Score, Stop
from tests.fakes import FakeEngine
from tests.rewarding import PROFILE, grow, prompt_of
from tests.virtual import run

VERIFIER = Countdown()
PROMPT = prompt_of("Use 4 9 10 13 to make 24.")


def judged(answer: str, stop: Stop = Stop.END, prompt: Prompt = PROMPT) -> Score:
    scorer = VERIFIER.scorer(Models(FakeEngine(), PROFILE))
    return run(scorer.score(prompt, grow(None, "13-9=4\n", answer, stop=stop).path()))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Use 4 9 10 13 to make 24.", Puzzle((4, 9, 10, 13), 24)),
        ("use the numbers 1, 2, and 3 to make -6", Puzzle((1, 2, 3), -6)),
        ("Use 1 2 to make 3. Use 5 6 to make 11!", Puzzle((5, 6), 11)),
        ("Use 4 to make 24.", None),
        ("Use 4 9 10 13 to make 24.5", None),
        ("Use 4 9 10 13 to make tea", None),
        ("Use " + "1 " * 17 + "to make 24", None),
        ("Use 1 1234567890 to make 24", None),
        ("", None),
    ],
)
def test_puzzles(text: str, expected: Puzzle | None) -> None:
    assert puzzle(text) == expected


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Answer: (10-4)*(13-9)", 1.0),
        ("Answer: (10 - 4) * (13 - 9) = 24", 1.0),
        ("Answer: 1\nAnswer: (4-10)*(9-13)", 1.0),
        ("Answer: (10-4)*(13-9)\nAnswer: 24", 0.0),
        ("Answer: 10+13+9-4-4", 0.0),
        ("Answer: 4+9+10+13", 0.0),
        ("Answer: 24", 0.0),
        ("Answer: (10-4)*(13-9) = 25", 0.0),
        ("Answer: 4/(9-9)+10+13", 0.0),
        ("Answer: __import__('os')", 0.0),
        ("(10-4)*(13-9)", 0.0),
        ("", 0.0),
    ],
)
def test_answers(answer: str, right: float) -> None:
    score = judged(answer)
    assert score.value == right
    assert score.steps == (None, right)


def test_an_unfinished_answer_is_neither() -> None:
    score = judged("Answer: (10-4)*(13-9)\n", Stop.STEP)
    assert (score.value, score.steps) == (0.5, (None, None))


def test_the_last_puzzle_of_the_chat_counts() -> None:
    prompt = prompt_of("Use 1 2 to make 3.", "Use 4 9 10 13 to make 24.", "Try another way.")
    VERIFIER.check(prompt)
    assert judged("Answer: (10-4)*(13-9)", prompt=prompt).value == 1.0


def test_exact_where_floating_point_is_not() -> None:
    assert judged("Answer: 8/(3-8/3)", prompt=prompt_of("Use 3 3 8 8 to make 24.")).value == 1.0


@pytest.mark.parametrize(
    "question", ["What is 2+2?", "Use 4 to make 24", "", "Use tools to make 3"]
)
def test_other_questions_are_refused(question: str) -> None:
    with pytest.raises(BadRequest, match="can only judge puzzles") as caught:
        VERIFIER.check(prompt_of(question))
    assert caught.value.param == "reward"


@given(st.lists(st.integers(1, 13), min_size=2, max_size=6), st.integers())
def test_any_product_is_right_only_with_all_its_numbers(numbers: list[int], seed: int) -> None:
    task = puzzle(f"Use {' '.join(map(str, numbers))} to make {prod(numbers)}.")
    assert task is not None
    shuffled = random.Random(seed).sample(numbers, len(numbers))
    assert task.solved_by("*".join(map(str, shuffled)))
    assert not task.solved_by("*".join(map(str, [*shuffled, 1])))
    assert not task.solved_by("*".join(map(str, shuffled)) + "+1-1")


@pytest.mark.parametrize("text", ["use ", "use 1 ", "use 1 and ", "Use " + "1 " * 16, "use\n"])
def test_hostile_questions_cost_nothing(text: str) -> None:
    start = time.process_time()
    assert puzzle(text * 20_000) is None
    assert time.process_time() - start < 1.0


def test_rewards_are_read_by_kind() -> None:
    rewards: TypeAdapter[Reward] = TypeAdapter(Reward)
    assert rewards.validate_python({"kind": "countdown"}) == VERIFIER
    for wrong in (
        {"kind": "countdown", "name": "x"},
        {"kind": "prm", "good": "+"},
        {"kind": "x"},
        {},
    ):
        with pytest.raises(ValidationError):
            rewards.validate_python(wrong)
