"""What the demonstrator shows is valid arithmetic, and its revisions are other attempts."""

from __future__ import annotations

import re
from random import Random

import pytest

from server.profiles import shipped
from server.reward.verifiers.countdown import Puzzle as Game
from server.reward.verifiers.expression import evaluate, operands, parse
from trainer.reference.demonstrations import Mixture, conversation, example
from trainer.reference.demonstrator import Attempt, Lines, Skill, attempt, prefixes
from trainer.reference.puzzles import Puzzle, solvable, training
from trainer.reference.tokenizer import CHECK, DECOMPOSE, END, REVISE, decode

MOVE = re.compile(r"(\d+)([-+*/])(\d+)=(\d+) \(left: (\d+(?: \d+)*)\)")
BACK = re.compile(r"(\d+) is not 24, back to (\d+ \d+ \d+ \d+)")
PUZZLES = training(16)


def check(text: str, puzzle: Puzzle) -> int:
    """Every line follows from the one before. Returns what its answer is worth."""
    *lines, answer = text.split("\n")
    left = list(puzzle)
    for line in lines:
        if back := BACK.fullmatch(line):
            assert left == [int(back[1])] != [24]
            assert back[2] == " ".join(map(str, puzzle))
            left = list(puzzle)
            continue
        move = MOVE.fullmatch(line)
        assert move, line
        a, b, result = int(move[1]), int(move[3]), int(move[4])
        left.remove(a)
        left.remove(b)
        assert evaluate(parse(f"{a}{move[2]}{b}")) == result
        left = sorted([*left, result])
        assert move[5] == " ".join(map(str, left))
    expression = parse(answer.removeprefix("Answer: "))
    assert sorted(operands(expression)) == sorted(puzzle)
    (last,) = left
    assert evaluate(expression) == last
    return last


@pytest.mark.parametrize("seed", range(3))
def test_attempts_are_valid_and_say_what_they_are(seed: int) -> None:
    rng, skill, right = Random(seed), Skill(early=0.5, back=0.7), 0
    for _ in range(300):
        puzzle = rng.choice(PUZZLES)
        made = attempt(puzzle, skill, rng, frozenset())
        assert made.value == check(made.text(), puzzle)
        assert made.right == Game(puzzle, 24).solved_by(made.expression)
        assert shipped()["reference"].answer.pattern is not None
        right += made.right
    assert 60 < right < 270


def test_skill_is_how_often_it_is_right() -> None:
    rng = Random(0)

    def share(skill: Skill) -> float:
        made = [attempt(rng.choice(PUZZLES), skill, rng, frozenset()) for _ in range(300)]
        return sum(m.right for m in made) / len(made)

    assert share(Skill(1, 1, 0)) == 1
    assert share(Skill(0, 0, 0)) < 0.3
    assert share(Skill(0.6, 0.9, 0)) < share(Skill(0.9, 0.98, 0))


def ways(made: Attempt) -> frozenset[Lines]:
    return frozenset(p for way in made.tried for p in prefixes(way))


def test_after_a_failure_it_goes_another_way() -> None:
    rng, failed, moved = Random(1), 0, 0
    for _ in range(300):
        puzzle = rng.choice(PUZZLES)
        first = attempt(puzzle, Skill(), rng, frozenset())
        if not first.right:
            other = attempt(puzzle, Skill(early=0.9), rng, ways(first))
            assert not {*other.tried} & {*first.tried}
            failed += 1
            moved += other.lines[0] not in {way[0] for way in first.tried}
    assert failed > 60
    assert moved > 0.7 * failed  # even its first move, unless that is the only good one


def solve(text: str) -> Puzzle:
    return tuple(map(int, re.findall(r"\d+", text)[:4]))


@pytest.mark.parametrize("seed", range(2))
def test_conversations(seed: int) -> None:
    """Each turn is what its kind says; a revision follows only what failed, and betters it."""
    rng, mixture = Random(seed), Mixture(alternative=150, check=150, analyse=100, decompose=150)
    first: list[bool] = []
    later: list[bool] = []
    asks = set()
    for _ in range(600):
        turns = conversation(rng.choice(PUZZLES), mixture, rng)
        puzzle, last = solve(turns[0]), 0
        assert solvable(puzzle) and len(turns) % 2 == 0
        for n in range(0, len(turns), 2):
            ask, reply = turns[n : n + 2]
            asks.add(ask if n else ask.partition("\n\n")[2])
            if ask.endswith(DECOMPOSE):
                assert evaluate(parse(reply)) == 24
            elif ask == CHECK:
                assert reply == ("24=24" if last == 24 else f"{last} is not 24")
            elif "Answer:" in reply:
                if ask == REVISE:
                    assert last != 24
                last = check(reply, puzzle)
                (later if ask == REVISE else first).append(last == 24)
    assert len(asks) == 7 and len(later) > 60  # six asks, and a plain question
    assert sum(later) / len(later) > sum(first) / len(first) + 0.05


def test_an_example_learns_the_words_of_the_assistant() -> None:
    turns = ["Use 4 9 10 13 to make 24.", "13+9=22 (left: 4 10 22)\nAnswer: 4", REVISE, "24=24"]
    ids, weight, target = example(turns)
    assert len(ids) == len(weight) == len(target) and all(t != t for t in target)
    said = [i for i, w in zip(ids, weight, strict=True) if w]
    assert decode(said) == turns[1] + turns[3]
    assert said.count(END) == 2 and said[-1] == END
    assert set(weight) == {0.0, 1.0}
