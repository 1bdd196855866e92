"""Right answers against wrong ones."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.trainer.trees import Growing, small
from trainer.objectives.dpo import Dpo
from trainer.tree import Tree


def rows(*trees: Tree, **settings: Any) -> tuple[list[Any], Counter[str]]:
    tally: Counter[str] = Counter()
    return list(Dpo(**settings).rows(trees, tally)), tally


def test_a_small_tree() -> None:
    """c is right; d, which the search believed, and e are wrong; f is not known."""
    found, _ = rows(small())
    assert [r.prompt_ids for r in found] == [(1, 2)] * 2
    assert [r.chosen_ids for r in found] == [(*b"a\nc", 0)] * 2
    assert [r.rejected_ids for r in found] == [(*b"a\nd", 0), (*b"b\ne", 0)]
    assert found[0].chosen_mask == (1, 1, 1, 1)
    assert len(rows(small(), pairs=1)[0]) == 1


def test_answers_take_turns() -> None:
    growing = Growing()
    for text, outcome in zip("abcd", (1.0, 1.0, 0.0, 0.0), strict=True):
        growing.add(0, text, outcome=outcome)
    found, _ = rows(growing.tree(), pairs=2)
    assert [(chr(r.chosen_ids[0]), chr(r.rejected_ids[0])) for r in found] == [
        ("a", "c"),
        ("b", "d"),
    ]


def test_a_gap() -> None:
    growing = Growing()
    growing.add(0, "a", outcome=0.75)
    growing.add(0, "b", outcome=0.5)
    assert rows(growing.tree())[1] == {"no right answer beside a wrong one": 1}
    assert len(rows(growing.tree(), gap=0.25)[0]) == 1


def test_only_answers_to_the_same_prompt() -> None:
    growing = Growing()
    a = growing.add(0, "a", outcome=0.0)
    growing.add(a, "b", outcome=1.0, fresh=True, prompt_ids=(1, 2, 9))
    assert rows(growing.tree())[0] == []
    growing.add(a, "c", outcome=0.0, fresh=True, prompt_ids=(1, 2, 9))
    ((row,), _) = rows(growing.tree())
    assert row.prompt_ids == (1, 2, 9)


def test_answers_of_different_searches_if_wanted() -> None:
    first, second = Growing(), Growing()
    first.add(0, "a", outcome=1.0)
    second.add(0, "b", outcome=0.0)
    assert Dpo(joint=True).across and not Dpo().across
    found, _ = rows(first.tree(), second.tree(), joint=True)
    assert [(r.chosen_ids, r.rejected_ids) for r in found] == [((ord("a"), 0), (ord("b"), 0))]


def test_words_of_the_server_are_masked() -> None:
    growing = Growing()
    growing.add(0, "ab", outcome=1.0, forced=1)
    growing.add(0, "c", outcome=0.0)
    ((row,), _) = rows(growing.tree())
    assert (row.chosen_mask, row.rejected_mask) == ((0, 1, 1), (1, 1))
