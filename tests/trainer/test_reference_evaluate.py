"""The recipe's figures, by hand."""

from __future__ import annotations

from itertools import combinations
from random import Random
from statistics import fmean

import pytest

from trainer.reference.evaluate import (
    against_independent,
    by_depth,
    chosen,
    hopeful,
    pass_at,
)
from trainer.reference.rollouts import Rollout
from trainer.reference.scores import auc
from trainer.reference.tokenizer import END, encode

PUZZLE = (4, 9, 10, 13)


def rollout(text: str, right: bool = False, puzzle: tuple[int, ...] = PUZZLE) -> Rollout:
    return Rollout(puzzle, [1], [*encode(text), END], right)


def test_auc_is_the_share_of_pairs_in_order() -> None:
    rng = Random(0)
    scores = [rng.choice([0.1, 0.2, 0.5, 0.9]) for _ in range(40)]
    truths = [rng.random() < 0.4 for _ in range(40)]
    pairs = [
        (a > b) + (a == b) / 2
        for a, right in zip(scores, truths, strict=True)
        for b, wrong in zip(scores, truths, strict=True)
        if right and not wrong
    ]
    assert auc(scores, truths) == pytest.approx(fmean(pairs))
    assert auc([0.1, 0.2], [True, True]) is None


def test_pass_at_is_the_share_of_subsets_with_a_right_one() -> None:
    outcomes = {(1, 2, 3, 4): [True, False, False, True, False], PUZZLE: [False] * 4 + [True]}
    rows = [rollout("x", right, p) for p, known in outcomes.items() for right in known]
    for k in (1, 2, 3):
        by_hand = fmean(
            fmean(any(some) for some in combinations(known, k)) for known in outcomes.values()
        )
        assert pass_at(rows, k) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("text", "steps", "expected"),
    [
        ("13-9=4 (left: 4 4 10)\n10-4=6 (left: 4 6)", 2, True),
        ("13-9=4 (left: 4 4 10)\n10+4=14 (left: 4 14)", 1, True),
        ("13-9=4 (left: 4 4 10)\n10+4=14 (left: 4 14)", 2, False),  # 56, 18, 10
        ("13-9=5 (left: 4 5 10)", 1, False),  # a slip
        ("13-9=4 (left: 4 10)", 1, False),
        ("nonsense", 1, False),
    ],
)
def test_a_line_is_hopeful_if_valid_and_24_can_be_reached(
    text: str, steps: int, expected: bool
) -> None:
    assert hopeful(rollout(text), steps) is expected


def test_depths_are_compared_with_outcome_and_truth() -> None:
    good = rollout("13-9=4 (left: 4 4 10)\nAnswer: 1", right=True)
    bad = rollout("13-9=5 (left: 4 5 10)\nAnswer: 2")
    known = by_depth([good, bad, good], [[0.9, 0.2], [0.1, 0.8], [0.6, 0.8]])
    assert known["1"] == {"outcome": 1.0, "truth": 1.0}
    assert known["last"] == {"outcome": 0.25}
    assert known["3"] == {"outcome": None, "truth": None}  # none has so many lines


def test_best_of_takes_the_likeliest_and_the_vote_their_sum() -> None:
    right = [rollout("Answer: (10-4)*(13-9)", right=True), rollout("Answer: (13-9)*(10-4)", True)]
    wrong = [rollout("Answer: 4+9"), rollout("Answer: 10+13")]
    known = chosen([*right, *wrong], [[0.4], [0.4], [0.1, 0.7], [0.2]], 4)
    assert known == {"best_4": 0.0, "vote_4": 1.0}


def test_revision_is_compared_at_equal_tokens() -> None:
    """Independent samples of 2 tokens, right one time in two; chains that are right at once, or
    after a second attempt."""
    wrong, good = rollout("1"), rollout("2", right=True)
    independent = [wrong, good, wrong, good] * 6
    known = against_independent([[good], [wrong, good]], independent)
    assert known[0] == {"attempts": 1, "tokens": 2, "accuracy": 0.5, "independent": 0.5}
    assert known[1]["tokens"] == 3 and known[1]["accuracy"] == 1.0
    # 2 tokens: 0.5; 4 tokens, as the first of each pair is wrong: 1.
    assert known[1]["independent"] == pytest.approx(0.75)
