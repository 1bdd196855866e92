"""A trace as training sees it: values, baselines, what the policy saw."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from server.search.beam import Beam
from server.search.mcts import MCTS
from server.search.operators import policy_ids
from server.types import Operator, Stop
from tests.searching import searched
from tests.trainer.trees import Growing, by_text, of_search, small, trees
from trainer.errors import DataError
from trainer.tree import Tree


def test_values_of_a_small_tree() -> None:
    tree = small()
    assert [n.q for n in tree.nodes[1:]] == [0.5, 0.0, 1.0, 0.0, 0.0, None]
    a, c = by_text(tree, "a"), by_text(tree, "c")
    assert a.baseline() == pytest.approx(1 / 6)
    assert c.baseline() == 0.5
    assert by_text(tree, "f").baseline() == 0.0  # of its sibling, which is known


def test_an_outcome_that_is_missing_is_not_a_zero() -> None:
    growing = Growing()
    growing.add(0, "x", outcome=None)
    growing.add(0, "y", outcome=1.0)
    tree = growing.tree()
    assert tree.steps[0].q is None
    assert tree.steps[0].baseline() == 1.0
    growing.records[2] = growing.records[2].model_copy(update={"outcome": None})
    assert growing.tree().steps[0].baseline() is None


def test_the_chosen_answer_has_the_outcome_and_the_feedback_of_the_trace() -> None:
    growing = Growing()
    growing.add(0, "x", outcome=None)
    growing.add(0, "y", outcome=None)
    assert [n.outcome for n in growing.tree(selected=1, outcome=1.0).steps] == [1.0, None]
    assert [n.outcome for n in growing.tree(selected=2, feedback=0.5).steps] == [None, 0.5]
    tree = Tree(growing.trace(selected=1, outcome=1.0), "here", {1: 0.0})
    assert tree.steps[0].outcome == 0.0  # the verifier's word comes first


def test_what_was_written_to_look_ahead_is_no_sample() -> None:
    growing = Growing()
    a = growing.add(0, "a\n")
    growing.add(a, "b", outcome=1.0, proposal="greedy")
    growing.add(a, "c", outcome=0.0)
    tree = growing.tree()
    assert tree.steps[0].q == 0.0
    assert by_text(tree, "b").q == 1.0
    assert by_text(tree, "c").baseline() == 0.0


def test_what_a_score_had_drawn_more_often_makes_no_baseline() -> None:
    growing = Growing()
    growing.add(0, "a", outcome=1.0, proposal="resampled")
    growing.add(0, "b", outcome=0.0)
    assert growing.tree().steps[0].baseline() == 0.0


def test_a_new_answer_counts_for_itself_alone() -> None:
    growing = Growing()
    a = growing.add(0, "a\n")
    b = growing.add(a, "b", outcome=0.0)
    growing.add(b, "c", outcome=1.0, fresh=True, prompt_ids=(1, 2, 7))
    tree = growing.tree()
    assert [n.q for n in tree.steps] == [0.0, 0.0, 1.0]
    (turn,) = tree.turns(tree.steps[2])
    assert turn.ids == (1, 2, 7, ord("c"), 0)
    assert by_text(tree, "c").text() == "c"


def test_a_turn_of_the_user_begins_a_sequence() -> None:
    growing = Growing()
    a = growing.add(0, "a\n")
    b = growing.add(a, "b\n", prompt_ids=(1, 2, 5), aside=True)
    growing.add(b, "c", outcome=1.0, prompt_ids=(1, 2, 6))
    tree = growing.tree()
    assert [t.ids for t in tree.turns(tree.steps[2])] == [
        (1, 2, *b"a\n"),
        (1, 2, 5, *b"b\n"),
        (1, 2, 6, *b"c", 0),
    ]
    assert tree.seen(by_text(tree, "c")) == (1, 2, 6)
    assert tree.steps[0].q == 1.0  # an aside is part of the answer


def test_an_end_that_was_taken_back_begins_no_sequence() -> None:
    """Budget forcing (arXiv 2501.19393): the policy goes on after its answer's end."""
    growing = Growing()
    a = growing.add(0, "a", outcome=0.0)
    growing.add(a, "Wait b", outcome=1.0, forced=5, prompt_ids=(1, 2, ord("a")))
    tree = growing.tree()
    (turn,) = tree.turns(tree.steps[1])
    assert turn.ids == (1, 2, *b"aWait b", 0)
    assert [p.size for p in turn.pieces] == [1, 7]
    assert tree.steps[0].q == 0.0  # of the end itself
    assert tree.steps[1].weights == (0,) * 5 + (1, 1)


def test_words_of_the_server_are_masked() -> None:
    growing = Growing()
    growing.add(0, "abc", forced=2)
    growing.add(0, "\n", token_source="delimiter")
    assert [n.weights for n in growing.tree().steps] == [(0, 0, 1), (0,)]


def test_siblings_are_what_was_drawn_in_the_same_state() -> None:
    growing = Growing()
    growing.add(0, "a", outcome=1.0)
    growing.add(0, "b", outcome=0.0, behaviour="x", forced=1)
    growing.add(0, "c", outcome=0.0, prompt_ids=(9,))
    growing.add(0, "d", outcome=0.0)
    tree = growing.tree()
    assert [n.record.text for n in tree.steps[0].siblings()] == ["a", "d"]
    assert [n.baseline() for n in tree.steps] == [0.5, 0.0, 0.0, 0.5]


@pytest.mark.parametrize("strategy", [MCTS(simulations=8), Beam()])
def test_a_real_search(strategy: Any) -> None:
    tree = Tree(of_search(strategy), "here")
    assert len(tree.judged) > 1
    for end in tree.judged:
        (turn,) = tree.turns(end)
        assert turn.ids == tree.seen(end) + end.ids
        assert turn.ids[: len(tree.trace.prompt_ids)] == tree.trace.prompt_ids
    right = sum(e.record.multiplicity * (e.outcome or 0) for e in tree.judged)
    assert tree.steps[0].q is None or 0 <= tree.steps[0].q <= 1
    first = [n for n in tree.steps if n.first]
    assert sum(n.won for n in first) == pytest.approx(right)


def test_what_the_policy_saw_under_operators_is_what_the_engine_was_sent() -> None:
    class Twice(MCTS):
        async def run(self, search: Any) -> None:
            ask = Operator(ask="Again.", fresh=True)
            say = Operator(say="Wait, ")
            end = await search.grow(search.root, until=Stop.END)
            await search.grow(end, until=Stop.END, operator=ask)
            await search.grow(end, until=Stop.END, operator=say)

    ran = searched(Twice())
    tree = Tree(of_search(Twice()), "here")
    for node, ours in zip(ran.search.nodes[1:], tree.steps, strict=True):
        assert tree.seen(ours) + ours.ids == policy_ids(node)
    sent = set(ran.engine.prompts)
    begun = [n for n in tree.steps if n.first or n.record.prompt_ids is not None]
    assert {tree.seen(n) + n.ids[: n.record.forced] for n in begun} <= sent
    assert len(begun) == 3


@given(trees())
def test_sequences_are_what_the_policy_saw(tree: Tree) -> None:
    for end in tree.steps:
        turns = tree.turns(end)
        assert turns[-1].ids == tree.seen(end) + end.ids
        assert [p.node for t in turns for p in t.pieces] == end.path()


@given(trees())
def test_values_are_means(tree: Tree) -> None:
    for node in tree.steps:
        ends = [e for e in tree.judged if e.sampled and node in e.path()]
        times = [e.record.multiplicity for e in ends]
        if not node.finished:
            won = sum(t * (e.outcome or 0) for t, e in zip(times, ends, strict=True))
            assert node.q == (pytest.approx(won / sum(times)) if ends else None)


@given(trees())
def test_paths_go_through_all_steps(tree: Tree) -> None:
    through = {n for end in tree.paths(tree.steps) for n in end.path()}
    assert through == set(tree.steps)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"parent": 5}, r"node 1: parent: 5"),
        ({"parent": None}, r"node 1: parent: None"),
        ({"forced": 9}, r"node 1: forced: 9 of 2 tokens"),
        ({"logprobs": (-1.0,)}, r"node 1: logprobs: 1 for 2 tokens"),
        ({"logprobs": (-1.0, 2.0)}, r"node 1: logprobs: 2.0"),
        ({"multiplicity": 0}, r"node 1: multiplicity: 0"),
        ({"status": "lost"}, r"node 1: status: 'lost'; allowed are open"),
        ({"outcome": 1.5}, r"node 1: outcome: 1.5; allowed are 0 to 1"),
        ({"outcome": float("nan")}, r"nodes\[1\].outcome must be a finite number"),
        ({"prm_raw": float("nan")}, r"nodes\[1\].prm_raw must be a finite number"),
    ],
)
def test_a_trace_that_contradicts_itself(fields: dict[str, Any], complaint: str) -> None:
    growing = Growing()
    growing.add(0, "a", outcome=1.0)
    growing.records[1] = growing.records[1].model_copy(update=fields)
    with pytest.raises(DataError, match=r"here.*trace 't'.*" + complaint):
        growing.tree()


def test_an_unknown_choice() -> None:
    with pytest.raises(DataError, match="selected: there is no node 9"):
        small(selected=9)
