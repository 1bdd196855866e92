"""Long conversations, no two alike: puzzles with attempts that failed, and a request to go on."""

from __future__ import annotations

import random
from collections.abc import Iterator

from benchmarks.puzzles import Puzzle, held_out, question
from server.types import Message

AGAIN = "That is not correct. Try another way."
ATTEMPTS = 6  # about 45 tokens each, of a context of 512


def conversations(seed: int) -> Iterator[list[Message]]:
    """Without end; others for each seed, so that no cache holds what an earlier run asked."""
    rng = random.Random(seed)
    while True:
        yield conversation(rng.choice(held_out()), rng)


def conversation(puzzle: Puzzle, rng: random.Random) -> list[Message]:
    """The first question differs, too: a conversation is known by it."""
    numbers = rng.sample(puzzle, len(puzzle))
    messages = [Message("user", question(numbers))]
    for _ in range(ATTEMPTS):
        messages += [Message("assistant", attempt(puzzle, rng)), Message("user", AGAIN)]
    return messages


def attempt(puzzle: Puzzle, rng: random.Random) -> str:
    """As the policy writes one: a line for each operation, then an expression."""
    left = [(n, str(n)) for n in puzzle]
    lines = []
    while len(left) > 1:
        (b, b_text), (a, a_text) = sorted(left.pop(rng.randrange(len(left))) for _ in range(2))
        op = rng.choice("+-")
        value = a + b if op == "+" else a - b
        left.append((value, f"({a_text}{op}{b_text})"))
        rest = " ".join(str(n) for n, _ in sorted(left))
        lines.append(f"{a}{op}{b}={value} (left: {rest})")
    return "\n".join([*lines, f"Answer: {left[0][1]}"])
