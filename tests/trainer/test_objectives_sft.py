"""Best paths."""

from __future__ import annotations

from collections import Counter
from math import isnan
from typing import Any

import pytest

from tests.trainer.trees import Growing, small
from trainer.objectives.sft import Sft
from trainer.rows import TokenRow
from trainer.tree import Tree


def rows(tree: Tree, **settings: Any) -> tuple[list[Any], Counter[str]]:
    tally: Counter[str] = Counter()
    return list(Sft(**settings).rows([tree], tally)), tally


def test_the_right_path() -> None:
    (row,), tally = rows(small())
    assert isinstance(row, TokenRow)
    assert row.ids == (1, 2, *b"a\nc", 0)
    assert row.ce == [0, 0, 1, 1, 1, 1]
    assert (row.rl, row.advantage, row.version, row.temperature) == ((), (), "v1", 1.0)
    assert all(map(isnan, row.logp[:2]))
    assert list(row.logp[2:]) == [-0.125, -0.25, -0.125, -0.25]
    assert not tally


def test_of_right_paths_the_chosen_one_else_the_one_that_scores_highest() -> None:
    growing = Growing()
    growing.add(0, "a", outcome=1.0, prm_agg=0.25)
    growing.add(0, "b", outcome=1.0, prm_agg=0.75)
    growing.add(0, "c", outcome=0.0, prm_agg=1.0)
    assert rows(growing.tree())[0][0].ids[2:] == (ord("b"), 0)
    assert rows(growing.tree(selected=1))[0][0].ids[2:] == (ord("a"), 0)
    assert rows(growing.tree(selected=3))[0][0].ids[2:] == (ord("b"), 0)


@pytest.mark.parametrize("unknown", [False, True])
def test_without_an_outcome_only_if_wanted(unknown: bool) -> None:
    growing = Growing()
    growing.add(0, "a", outcome=None)
    found, tally = rows(growing.tree(selected=1), unknown=unknown)
    assert [r.ids[2:] for r in found] == [(ord("a"), 0)] * unknown
    assert tally == ({} if unknown else {"no outcome is known": 1})


def test_a_wrong_path_is_not_learned() -> None:
    growing = Growing()
    growing.add(0, "a", outcome=0.5)
    found, tally = rows(growing.tree(selected=1), unknown=True)
    assert not found
    assert tally == {"no path is good enough": 1}
    assert len(rows(growing.tree(), least=0.5)[0]) == 1


def test_words_of_the_server_weigh_nothing() -> None:
    growing = Growing()
    growing.add(0, "abc", outcome=1.0, forced=2)
    (row,), _ = rows(growing.tree())
    assert row.ce == [0, 0, 0, 0, 1, 1]
    assert [isnan(p) for p in row.logp] == [True] * 4 + [False] * 2


def test_each_turn_is_a_row() -> None:
    growing = Growing()
    a = growing.add(0, "a\n")
    growing.add(a, "b", outcome=1.0, prompt_ids=(1, 2, 9))
    found, _ = rows(growing.tree())
    assert [(r.ids, r.ce) for r in found] == [
        ((1, 2, *b"a\n"), [0, 0, 1, 1]),
        ((1, 2, 9, *b"b", 0), [0, 0, 0, 1, 1]),
    ]


@pytest.mark.parametrize(
    ("sampling", "known"),
    [
        ({"temperature": 0.7}, True),
        ({"temperature": 0.0}, False),
        ({"temperature": 0.7, "top_p": 0.9}, False),
        ({"temperature": 0.7, "logprobs_mode": "raw"}, False),
        ({"temperature": 1.0, "logprobs_mode": "raw"}, True),
    ],
)
def test_log_probabilities_are_those_that_were_sampled_by(
    sampling: dict[str, Any], known: bool
) -> None:
    (row,), _ = rows(small(sampling=sampling))
    assert bool(row.logp) == known
    assert row.temperature == (sampling["temperature"] or 1.0)
