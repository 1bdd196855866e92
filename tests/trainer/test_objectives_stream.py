"""A tree as one text."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from server.engine.tokenizer import HFTokenizer
from server.profiles import Profile, shipped
from server.traces.schema import Trace, Versions
from tests.trainer.trees import PUZZLE, Growing
from trainer.errors import DataError
from trainer.objectives.stream_of_search import StreamOfSearch
from trainer.tree import Tree

MODEL = str(Path(__file__).parents[2] / "models" / "policy")
VERSIONS = Versions(
    model_id="ponder-reference",
    policy_version="v1",
    tokenizer_sha=HFTokenizer(MODEL).sha,
    scorer_id="s",
    scorer_version="1",
)
END = "<end>"


class Writing(Growing):
    """Steps in the words of the reference policy."""

    tokenizer = HFTokenizer(MODEL)

    def add(self, parent: int, text: str, **fields: Any) -> int:
        end = (self.tokenizer.ids_of(END),) if "outcome" in fields else ()
        ids = (*self.tokenizer.encode(text), *end)
        number = super().add(parent, text, logprobs=None, **fields)
        self.records[number] = self.records[number].model_copy(update={"token_ids": ids})
        return number

    def trace(self, trace_id: str = "t", **fields: Any) -> Trace:
        chat = {"prompt_messages": PUZZLE, "prompt_ids": self.tokenizer.encode("Q")}
        return super().trace(trace_id, **{"versions": VERSIONS} | chat | fields)


def grown() -> Writing:
    """Two wrong ways, one of them past the first right step, and the right one."""
    tree = Writing()
    wrong = tree.add(0, "1+2=3 (left: 3 3 4)\n")
    dead = tree.add(wrong, "3+3=6 (left: 4 6)\n")
    tree.add(dead, "Answer: 1\n", outcome=0.0, prm_agg=0.5)
    right = tree.add(0, "4*3=12 (left: 1 2 12)\n")
    miss = tree.add(right, "12+2=14 (left: 1 14)\n")
    tree.add(miss, "Answer: 2\n", outcome=0.0, prm_agg=0.25)
    good = tree.add(right, "12*2=24 (left: 1 24)\n")
    tree.add(good, "Answer: 1*2*3*4\n", outcome=1.0)
    return tree


def told(tree: Tree, **settings: Any) -> tuple[list[tuple[str, Any]], Counter[str]]:
    tally: Counter[str] = Counter()
    rows: list[Any] = list(StreamOfSearch(model=MODEL, **settings).rows([tree], tally))
    return [(Writing.tokenizer.decode(row.ids), row) for row in rows], tally


def test_a_tree_is_told_depth_first() -> None:
    ((text, row),), _ = told(grown().tree())
    assert text == (
        "Q1+2=3 (left: 3 3 4)\n3+3=6 (left: 4 6)\n"
        "4 6 is not 24, back to 1 2 3 4\n"
        "4*3=12 (left: 1 2 12)\n12+2=14 (left: 1 14)\n"
        "1 14 is not 24, back to 1 2 12\n"
        "12*2=24 (left: 1 24)\nAnswer: 1*2*3*4\n"
    )
    assert row.ce == [0.0] + [1.0] * (len(row.ids) - 1)
    assert row.ids[-1] == Writing.tokenizer.ids_of(END)
    assert (row.logp, row.rl, row.version) == ((), (), "v1")


def test_only_so_many_branches_the_ones_that_scored_highest() -> None:
    ((text, _),), _ = told(grown().tree(), branches=1)
    assert text.count("is not 24") == 1
    assert "3+3=6" in text and "12+2=14" not in text


def test_a_branch_that_stands_where_the_right_one_does_is_not_called_wrong() -> None:
    """Its answer is wrong, but \"24 is not 24\" would be, too."""
    tree = grown()
    slip = tree.add(0, "1+2=24 (left: 1 24)\n")
    tree.add(slip, "Answer: 1+2\n", outcome=0.0, prm_agg=1.0)
    assert told(tree.tree())[0][0][0] == told(grown().tree())[0][0][0]


def test_wrong_steps_may_weigh_nothing() -> None:
    ((_, row),), _ = told(grown().tree(), wrong=0.0)
    kept = [i for i, w in zip(row.ids, row.ce, strict=True) if w]
    assert Writing.tokenizer.decode(kept) == (
        "4 6 is not 24, back to 1 2 3 4\n4*3=12 (left: 1 2 12)\n"
        "1 14 is not 24, back to 1 2 12\n12*2=24 (left: 1 24)\nAnswer: 1*2*3*4\n"
    )


def test_the_words_are_the_profile_s() -> None:
    profile = Profile(name="x", delimiter="\n", answer=shipped()["reference"].answer)
    tree = Tree(grown().trace(), "here", profile=profile)
    ((text, _),), _ = told(tree, branches=1)
    assert "\nThis leads nowhere. I go back to: Use 1 2 3 4 to make 24.\n" in text


def test_nothing_to_tell() -> None:
    tree = Writing()
    tree.add(0, "Answer: 1\n", outcome=1.0)
    assert told(tree.tree()) == ([], {"no wrong branch beside the right one": 1})
    tree.add(0, "Answer: 2\n", outcome=0.0)  # nothing was written before it
    assert told(tree.tree()) == ([], {"no wrong branch beside the right one": 1})
    tree = Writing()
    tree.add(0, "Answer: 2\n", outcome=0.0)
    assert told(tree.tree()) == ([], {"no right answer in one turn": 1})


def test_another_tokenizer_than_the_policy_s() -> None:
    versions = VERSIONS.model_copy(update={"tokenizer_sha": "other"})
    with pytest.raises(DataError, match=r"here, trace 't': its tokenizer is not that of"):
        told(grown().tree(versions=versions))
