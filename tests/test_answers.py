"""Extraction, canonical keys, the final choice."""

from __future__ import annotations

from server.profiles import AnswerProfile, shipped
from server.reward.answer import answer_key
from server.search.answers import Choice, rank
from server.types import Node, Step, Stop

REFERENCE = shipped()["reference"].answer


def chain(root: Node, texts: list[str], score: float | None, stop: Stop = Stop.END) -> Node:
    """A finished path of these steps, as the next child of the root."""
    node = root
    for i, text in enumerate(texts):
        last = i == len(texts) - 1
        step = Step(text, (1,), (), stop if last else Stop.STEP, "v", 1)
        child = Node(parent=node, step=step, key=(*node.key, len(node.children)))
        node.children.append(child)
        node = child
    node.score = score
    return node


def tree(*paths: tuple[str, float | None]) -> list[Node]:
    root = Node()
    leaves = [chain(root, ["1+1=2 (left: 2)\n", f"Answer: {a}"], s) for a, s in paths]
    return [n for leaf in leaves for n in leaf.path()]


def finals(nodes: list[Node], choice: Choice) -> list[str | None]:
    return [a.final for a in rank(nodes, choice, REFERENCE)]


PATHS = (("(1+2)*8", 0.9), ("4*6", 0.5), ("6*4", 0.5), ("3*8", 0.3), ("8*3", 0.1), ("3*8", 0.1))


def test_each_choice_takes_its_own() -> None:
    nodes = tree(*PATHS)
    assert finals(nodes, "best")[0] == "(1+2)*8"
    assert finals(nodes, "weighted")[0] == "4*6"
    assert finals(nodes, "majority")[0] == "3*8"


def test_distinct_answers_come_before_repeats() -> None:
    answers = rank(tree(*PATHS), "best", REFERENCE)
    assert [a.final for a in answers] == ["(1+2)*8", "4*6", "3*8", "6*4", "8*3", "3*8"]
    assert [a.votes for a in answers] == [1, 2, 3, 2, 3, 3]


def test_a_merged_path_votes_as_often_as_it_was_sampled() -> None:
    nodes = tree(("1+1", 0.2), ("2+2", 0.9))
    nodes[1].multiplicity = 5
    assert finals(nodes, "majority")[0] == "1+1"
    assert finals(nodes, "weighted")[0] == "1+1"


def test_ended_paths_come_before_cut_ones_and_cut_before_open() -> None:
    root = Node()
    opened = chain(root, ["a\n"], 0.99, Stop.STEP)
    assert rank([root, opened], "best", REFERENCE)[0].finish_reason == "length"
    cut = chain(root, ["b\n", "Answer: 1"], 0.5, Stop.LENGTH)
    answer = rank([root, opened, *cut.path()], "best", REFERENCE)[0]
    assert (answer.final, answer.finish_reason) == ("1", "length")
    ended = chain(root, ["Answer: 2"], 0.1)
    answers = rank([root, opened, *cut.path(), ended], "best", REFERENCE)
    found = [(a.final, a.finish_reason) for a in answers]
    assert found == [("2", "stop"), ("1", "length")]


def test_what_is_unfinished_is_an_answer_only_where_nothing_is_finished() -> None:
    root = Node()
    opened = [chain(root, [text], score, Stop.STEP) for text, score in (("a\n", 0.2), ("b\n", 0.9))]
    answers = rank([root, *opened], "best", REFERENCE)
    assert [a.content for a in answers] == ["b\n", "a\n"]
    for stop in (Stop.END, Stop.LENGTH):
        done = chain(root, ["Answer: 1"], 0.1, stop)
        assert [a.node for a in rank([root, *opened, done], "best", REFERENCE)] == [done]


def test_an_answer_the_profile_recognises_beats_a_better_scored_one_without() -> None:
    root = Node()
    nodes = [chain(root, ["I give up"], 0.99), chain(root, ["Answer: 7"], 0.2)]
    assert [a.final for a in rank(nodes, "best", REFERENCE)] == ["7", None]


def test_content_starts_at_the_step_that_holds_the_answer() -> None:
    root = Node()
    leaf = chain(root, ["one\n", "two\n", "Answer: 3\n", "Done."], 1.0)
    answer = rank(leaf.path(), "best", REFERENCE)[0]
    assert answer.reasoning == ("one\n", "two\n")
    assert answer.content == "Answer: 3\nDone."


def test_without_a_pattern_the_whole_text_is_the_answer() -> None:
    leaf = chain(Node(), ["one\n", "two"], 1.0)
    answer = rank(leaf.path(), "best", AnswerProfile())[0]
    assert (answer.reasoning, answer.content, answer.final) == ((), "one\ntwo", "one\ntwo")


def test_keys() -> None:
    assert answer_key(" Forty  Two. ", "text") == answer_key("forty two", "text")
    assert answer_key("(10-4)*(13-9)", "expression") == answer_key("(13-9)*(10-4)", "expression")
    assert answer_key("4*6", "expression") != answer_key("24", "expression")
    assert answer_key("not one", "expression") == "not one"
    assert answer_key(None, "text") is None


def test_an_empty_tree_has_no_answer() -> None:
    assert rank([Node()], "best", REFERENCE) == []
