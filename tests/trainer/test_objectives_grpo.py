"""Group-relative advantages."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from math import sqrt
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.trees import Growing, small
from trainer.objectives.grpo import Grpo
from trainer.tree import Tree


def rows(*trees: Tree, **settings: Any) -> tuple[dict[bytes, Any], Counter[str]]:
    tally: Counter[str] = Counter()
    found: list[Any] = list(Grpo(**settings).rows(trees, tally))
    return {bytes(r.ids[2:]): r for r in found}, tally


def test_a_small_tree() -> None:
    """Of c, d and e one is right: mean 1/3, deviation sqrt(2)/3. The shared step a has the mean
    of c's and d's, in the row of the first."""
    found, tally = rows(small(), normalise=False)
    assert list(found) == [b"a\nc\0", b"a\nd\0", b"b\ne\0"]
    c, d, e = found.values()
    assert c.advantage[2:] == pytest.approx([1 / 6, 1 / 6, 2 / 3, 2 / 3])
    assert d.advantage[2:] == pytest.approx([0, 0, -1 / 3, -1 / 3])
    assert e.advantage[2:] == pytest.approx([-1 / 3] * 4)
    assert c.rl == [0, 0, 1, 1, 1, 1]
    assert d.rl == [0, 0, 0, 0, 1, 1]
    assert e.rl == [0, 0, 2, 2, 1, 1]  # b was drawn twice
    assert c.ref_kl == c.rl and c.ce == ()
    assert not tally
    scaled, _ = rows(small())
    assert scaled[b"a\nc\0"].advantage[4] == pytest.approx(2 / 3 / (sqrt(2) / 3))


def test_rows_of_whole_answers() -> None:
    found, _ = rows(small(), normalise=False, prefixes="per_leaf")
    c, d, _ = found.values()
    assert c.rl[2:] == [0.5, 0.5, 1, 1] == d.rl[2:]
    assert c.advantage[2:] == pytest.approx([2 / 3] * 4)
    assert d.advantage[2:] == pytest.approx([-1 / 3] * 4)
    whole, _ = rows(small(), normalise=False, prefixes="per_leaf", damping=0)
    assert whole[b"a\nc\0"].rl[2:] == [1, 1, 1, 1]


def test_siblings() -> None:
    """Q is 1/2 and 0 (twice) at the root, 1 and 0 below a; e is alone with what is not known."""
    found, tally = rows(small(), group="siblings", normalise=False)
    c, d, e = found.values()
    assert c.advantage[2:] == pytest.approx([1 / 3, 1 / 3, 1 / 2, 1 / 2])
    assert d.advantage[2:] == pytest.approx([0, 0, -1 / 2, -1 / 2])
    assert e.advantage[2:] == pytest.approx([-1 / 6, -1 / 6, 0, 0])
    assert e.rl == [0, 0, 2, 2, 0, 0]
    assert tally == {"a group with too few samples": 1}


def test_groups_that_say_nothing_are_left_out() -> None:
    growing = Growing()
    growing.add(0, "a", outcome=1.0)
    assert rows(growing.tree()) == ({}, {"a group with too few samples": 1})
    growing.add(0, "b", outcome=1.0)
    assert rows(growing.tree()) == ({}, {"a group whose samples are all worth the same": 1})
    found, _ = rows(growing.tree(), constant=True)
    assert [r.advantage[2:] for r in found.values()] == [[0, 0], [0, 0]]
    growing.add(0, "c", outcome=0.0)
    assert rows(growing.tree(), min_group=4) == ({}, {"a group with too few samples": 1})


def test_a_group_is_of_all_searches_of_a_problem() -> None:
    first, second = Growing(), Growing()
    first.add(0, "a", outcome=1.0)
    second.add(0, "b", outcome=0.0)
    assert Grpo().across and not Grpo(group="siblings").across
    found, _ = rows(first.tree(), second.tree())
    assert [r.advantage[2:] for r in found.values()] == [[1, 1], [-1, -1]]


def test_what_was_resampled_is_learned_but_does_not_move_the_mean() -> None:
    growing = Growing()
    growing.add(0, "a", outcome=1.0)
    growing.add(0, "b", outcome=0.0)
    growing.add(0, "c", outcome=0.0, proposal="resampled", multiplicity=3)
    found, _ = rows(growing.tree(), normalise=False)
    assert [r.advantage[2] for r in found.values()] == [0.5, -0.5, -0.5]


def test_what_was_written_to_look_ahead_has_no_gradient() -> None:
    growing = Growing()
    growing.add(0, "a", outcome=1.0)
    growing.add(0, "b", outcome=0.0)
    growing.add(0, "c", outcome=0.0, proposal="greedy")
    assert list(rows(growing.tree())[0]) == [b"a\0", b"b\0"]


def test_right_in_any_of_k() -> None:
    """Of c, d and e one is right; any 2 of the 3 have it in 2 of 3 cases. A wrong one had it beside
    it in 1 of 2: its worth is 1/2 - 2/3."""
    found, _ = rows(small(), k=2, normalise=False)
    c, d, e = found.values()
    assert c.advantage[4:] == pytest.approx([1 / 3] * 2)
    assert d.advantage[4:] == pytest.approx([-1 / 6] * 2)
    assert e.advantage[2:] == pytest.approx([-1 / 6] * 4)
    scaled, _ = rows(small(), k=2)
    assert scaled[b"a\nc\0"].advantage[4] == pytest.approx(1 / 3 / (sqrt(2) / 3))


def test_a_problem_that_k_answers_always_solve_moves_nothing() -> None:
    found, _ = rows(small(), k=3)
    assert {advantage for row in found.values() for advantage in row.advantage} == {0.0}


def test_too_few_answers_for_k() -> None:
    assert rows(small(), k=4) == ({}, {"a group with too few samples": 1})


@given(st.integers(2, 10), st.data())
def test_worth_in_k_is_the_gradient_of_pass_at_k(total: int, data: st.DataObject) -> None:
    """Of all k of the group that an answer is among, the mean reward, less that of any k."""
    right, k = data.draw(st.integers(1, total - 1)), data.draw(st.integers(1, total))
    group = [(1.0, 1.0)] * right + [(1.0, 0.0)] * (total - right)
    worth = Grpo(k=k, normalise=False)._worth(group)
    reward = {picked: min(picked) < right for picked in combinations(range(total), k)}
    for number, outcome in ((0, 1.0), (total - 1, 0.0)):
        mine = [found for picked, found in reward.items() if number in picked]
        assert worth(outcome) == pytest.approx(fmean(mine) - fmean(reward.values()))
