"""Which tasks come when, when learning changes, and what the records of a loop say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.loop.schedule import chosen, phase, portion
from trainer.loop.standing import Standing


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ([0.13], 0),
        ([0.13, 0.31], 0),
        ([0.13, 0.31, 0.315], 1),  # half a point
        ([0.13, 0.31, 0.32], 0),  # a whole one, to the last digit
        ([0.13, 0.31, 0.20, 0.32], 1),  # measured against the best, not the last
        ([0.13, 0.13, 0.13, 0.13], 2),
        ([0.13, 0.13, 0.13, 0.13, 0.13], 2),  # the last one goes on
        ([0.13, 0.13, 0.40, 0.41], 1),
    ],
)
def test_a_phase_ends_with_a_round_that_gained_too_little(
    figures: list[float], expected: int
) -> None:
    assert phase(figures, 1.0, 3) == expected


def test_a_loop_of_one_phase_stays_in_it() -> None:
    assert phase([0.5, 0.1, 0.1], 1.0, 1) == 0


@given(
    size=st.integers(1, 30),
    count=st.integers(1, 30),
    seed=st.integers(0, 9),
    turn=st.integers(0, 9),
)
def test_turns_are_fresh_until_all_came(size: int, count: int, seed: int, turn: int) -> None:
    each = count = min(count, size)
    tasks = list(range(size))
    per_pass = size // each
    got = [chosen(tasks, count, t, seed) for t in range(per_pass)]
    flat = [task for turn_ in got for task in turn_]
    assert all(len(turn_) == each for turn_ in got)
    assert len(set(flat)) == len(flat) == each * per_pass
    assert chosen(tasks, count, turn, seed) == chosen(tasks, count, turn, seed)
    assert len(set(chosen(tasks, count, turn, seed))) == each


def test_another_seed_and_another_pass_are_in_another_order() -> None:
    tasks = list(range(50))
    orders = {tuple(chosen(tasks, 50, turn, seed)) for turn in range(2) for seed in range(2)}
    assert len(orders) == 4
    assert portion(50, 10, 0, 0) == sorted(portion(50, 10, 0, 0))


def record(**figures: Any) -> dict[str, Any]:
    return {"candidate": figures, "accepted": True}


STAGES: dict[str, Any] = {
    "0/base": {"policy": {"folder": "/p0"}, "prm": {"folder": "/r0"}},
    "0/gate": {"pass_at_1": 0.1, "search": 0.6},
    "1/gate": record(pass_at_1=0.3, search=0.7),
    "1/publish": {"policy": {"folder": "/p1"}, "prm": {"folder": "/r1"}, "seconds": 1.0},
    "2/gate": {**record(pass_at_1=0.2, search=0.6), "accepted": False},
}


def test_what_serves_is_what_was_promoted_last() -> None:
    standing = Standing(STAGES)
    assert standing.now() == {"policy": "/p1", "prm": "/r1"}
    assert standing.base("policy") == "/p0"
    first = Standing({name: STAGES[name] for name in ("0/base", "0/gate")})
    assert first.now() == {"policy": "/p0", "prm": "/r0"}
    assert first.held() == {"serving": {"pass_at_1": 0.1, "search": 0.6}}


def test_what_was_refused_counts_for_nothing() -> None:
    standing = Standing(STAGES)
    base = {"pass_at_1": 0.1, "search": 0.6}
    assert standing.held() == {"serving": {"pass_at_1": 0.3, "search": 0.7}, "base": base}
    assert standing.risen(2) == [0.1, 0.3, 0.3]
    assert standing.phase(2, 1.0, 2) == 0
    assert standing.phase(3, 1.0, 2) == 1


def test_without_a_gate_the_evaluation_says_what_a_round_gained() -> None:
    stages = {f"{n}/evaluation": {"pass_at_1": p} for n, p in enumerate((0.1, 0.3, 0.29))}
    assert Standing(stages).risen(2) == [0.1, 0.3, 0.29]
    assert Standing(stages).phase(3, 1.0, 2) == 1
