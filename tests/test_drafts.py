"""The table that drafts are made from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine import drafts
from server.engine.drafts import BITS, ORDERS, RIGHT, STATES, WRONG, Drafts

texts = st.lists(st.integers(0, 5), min_size=1, max_size=40)


def learnt(*written: list[int]) -> Drafts:
    table = Drafts()
    for ids in written:
        table.learn(ids, len(ids))
    return table


def test_what_was_written_before_is_drafted() -> None:
    text = list(range(20))
    assert learnt(*[text] * 9).draft(text[:4], 6, 0.2) == text[4:10]
    assert learnt(text).draft([77, 78], 6, 0.0) == []


def test_the_surest_context_is_believed() -> None:
    table = learnt(*[[i, i, 3, 4, 6] for i in range(10, 20)], *[[1, 2, 3, 4, 5]] * 3)
    assert table.draft([8, 8, 3, 4], 1, 0.0) == [6]
    assert table.draft([1, 2, 3, 4], 1, 0.0) == [5], "the longer one knows better"
    table.learn([1, 2, 3, 4, 7], 1)
    assert table.draft([1, 2, 3, 4], 1, 0.0) != [7], "once is not enough"


def test_a_context_learns_only_what_longer_ones_did_not_know() -> None:
    table = learnt(*[[9, 2, 3, 4, 6]] * 8, *[[1, 2, 3, 4, 5]] * 100)
    assert table.draft([7, 7, 3, 4], 1, 0.0) == [6] == table.draft([9, 2, 3, 4], 1, 0.0)
    assert table.draft([1, 2, 3, 4], 1, 0.0) == [5]


def test_a_draft_ends_where_it_is_not_worth_its_tokens() -> None:
    table = learnt(*[[1, 2, 3, 4, 5, 6]] * 4)
    lengths = [len(table.draft([1, 2], 9, worth / 100)) for worth in range(101)]
    assert lengths == sorted(lengths, reverse=True)
    assert set(lengths) == {4, 3, 2, 1, 0}


def test_how_sure_an_entry_is_it_learns_from_all_of_its_kind() -> None:
    """Contexts that were met once are right again here, and never there."""
    right, wrong = Drafts(), Drafts()
    for i in range(100):
        for after in (1, 1):
            right.learn([i, i + 1000, after], 1)
        for after in (1, 2):
            wrong.learn([i, i + 1000, after], 1)
    right.learn([5000, 5001, 1], 1)
    wrong.learn([5000, 5001, 1], 1)
    assert right.draft([5000, 5001], 1, 0.9) == [1]
    assert wrong.draft([5000, 5001], 1, 0.1) == []


def test_what_no_longer_follows_is_unlearnt() -> None:
    table = learnt(*[[1, 2, 3]] * 1000)
    written = 0
    while table.draft([1, 2], 1, 0.0) != [4]:
        table.learn([1, 2, 4], 1)
        written += 1
    assert 1 < written <= len(STATES)


def test_the_states_of_an_entry() -> None:
    for state, right, wrong in zip(STATES, RIGHT, WRONG, strict=True):
        assert STATES[right][0] >= state[0] and STATES[right][1] <= state[1]
        assert wrong < 0 or STATES[wrong][0] / STATES[wrong][1] < state[0] / (state[1] or 0.1)
    assert len(STATES) <= 1 << BITS


@given(st.lists(texts, max_size=8), texts, st.integers(0, 8), st.floats(0, 1))
def test_drafts(written: list[list[int]], ids: list[int], most: int, worth: float) -> None:
    """Each token of a draft has followed the ones before it at some time."""
    draft = learnt(*written).draft(ids, most, worth)
    assert len(draft) <= most
    followed = {(*w[i - 2 : i], w[i]) for w in written for i in range(2, len(w))}
    whole = ids + draft
    assert all(tuple(whole[i - 2 : i + 1]) in followed for i in range(len(ids), len(whole)))


@given(texts, st.integers(1, 40))
def test_learning_in_parts_is_learning_the_whole(ids: list[int], size: int) -> None:
    """A part comes with as much of what is before it as a context holds."""
    parts = Drafts()
    for at in range(0, len(ids), size):
        part = ids[at : at + size]
        parts.learn(ids[max(0, at - ORDERS[0]) : at] + part, len(part))
    assert (parts._young, parts._old) == (learnt(ids)._young, {})


def test_it_forgets_what_it_has_not_met_for_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "ENTRIES", 100)
    table = learnt([1, 2, 3])
    for i in range(200):
        table.learn([10 + i, 1000 + i, 2000 + i], 3)
        table.learn([1, 2, 3], 3)
        assert len(table) <= 2 * 100 + len(ORDERS) + 1
    assert table.draft([1, 2], 1, 0.5) == [3]
    assert table.draft([10, 1000], 1, 0.0) == []
    assert table.draft([209, 1199], 1, 0.0) == [2199]
