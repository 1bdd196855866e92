"""The table that drafts are made from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine import drafts
from server.engine.drafts import MEMORY, ORDERS, Drafts

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


def test_the_longest_context_is_believed() -> None:
    table = learnt(*[[1, 2, 3, 4, 5]] * 3, *[[9, 2, 3, 4, 6]] * 20)
    assert table.draft([2, 3, 4], 1, 0.0) == [6]
    table.learn([7, 7, 1, 2, 3, 4, 5], 7)
    assert table.draft([7, 1, 2, 3, 4], 1, 0.0) == [5]


def test_a_draft_ends_where_it_is_not_worth_its_tokens() -> None:
    table = learnt(*[[1, 2, 3, 4, 5, 6]] * 4)  # each token right four times of five
    assert [len(table.draft([1, 2], 9, worth)) for worth in (0.9, 0.7, 0.5, 0.0)] == [0, 1, 3, 4]


def test_what_no_longer_follows_is_unlearnt() -> None:
    table = learnt(*[[1, 2, 3]] * 1000)
    written = 0
    while table.draft([1, 2], 1, 0.0) != [4]:
        table.learn([1, 2, 4], 1)
        written += 1
    assert 1 < written <= MEMORY + 1


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
