"""Operators: what the policy reads when it is made to go on in a certain way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from server.profiles import AnswerProfile, shipped
from server.search import MCTS, Beam, BestOfN, Revise
from server.search.core import Search
from server.search.operators import conversation, policy_ids
from server.search.record import node_records
from server.types import Behaviour, Message, Node, Operator, Prompt, Stop
from tests.fakes import EOS, FakeEngine
from tests.searching import PROMPT, Ran, searched

OPERATORS = shipped()["default"].operators


class Script:
    """A strategy that is written in the test."""

    def __init__(self, work: Callable[[Search], Awaitable[Any]]):
        self.work = work

    async def run(self, search: Search) -> None:
        await self.work(search)


def played(work: Callable[[Search], Awaitable[Any]], **options: Any) -> Ran:
    return searched(Script(work), operators=OPERATORS, **options)


def contents(node: Node) -> list[tuple[str, str]]:
    assert node.prompt is not None
    return [(m.role, m.content) for m in node.prompt.messages]


def test_words_put_in_its_mouth_are_read_not_paid_for() -> None:
    async def work(search: Search) -> None:
        await search.grow(search.root, operator=Operator(behaviour="x", say="So "))

    ran = played(work)
    node = ran.search.nodes[1]
    assert node.step is not None
    assert node.text().startswith("So ")
    assert (node.step.forced, len(node.step.logprobs)) == (3, node.step.count - 3)
    assert ran.engine.prompts[0] == (*PROMPT.ids, *map(ord, "So "))
    assert ran.search.tree.kept == ran.search.budget.spent
    assert node.behaviour == "x"


def test_an_end_is_taken_back() -> None:
    """s1: the end token goes, the word comes, and the policy thinks on in the same turn."""

    async def work(search: Search) -> None:
        node = await search.grow(search.root, until=Stop.END)
        await search.grow(node, until=Stop.END, operator=Operator(say="Wait,"))

    ran = played(work)
    first = next(n for n in ran.search.nodes if n.ended)
    second = first.children[0]
    assert policy_ids(first)[-1] == EOS
    assert ran.engine.prompts[1] == (*policy_ids(first)[:-1], *map(ord, "Wait,"))
    assert second.text() == first.text() + (second.step.text if second.step else "")
    last = max(ran.search.nodes, key=lambda n: n.id)
    assert conversation(last) == (*PROMPT.messages, Message("assistant", last.text()))


def test_a_turn_of_the_user() -> None:
    async def work(search: Search) -> None:
        node = await search.grow(search.root)
        await search.grow(node, operator=Operator(ask="And?"))

    ran = played(work)
    first, second = ran.search.nodes[1:3]
    assert contents(second) == [("user", "Q"), ("assistant", first.text()), ("user", "And?")]
    assert second.prompt is not None
    assert ran.engine.prompts[1] == second.prompt.ids
    assert [n.id for n in second.path()] == [first.id, second.id]  # more of the same answer


def test_before_the_first_word_the_request_joins_the_question() -> None:
    async def work(search: Search) -> None:
        await search.grow(search.root, operator=OPERATORS[Behaviour.PROBLEM_ANALYSIS])

    node = played(work).search.nodes[1]
    ask = OPERATORS[Behaviour.PROBLEM_ANALYSIS].ask
    assert contents(node) == [("user", f"Q\n\n{ask}")]


@pytest.mark.parametrize("forget", [False, True])
def test_revisions_begin_anew(forget: bool) -> None:
    operator = OPERATORS[Behaviour.SELF_CORRECTION].model_copy(update={"forget": forget})

    async def work(search: Search) -> None:
        node = search.root
        for operators in (None, operator, operator):
            node = await search.grow(node, until=Stop.END, operator=operators)

    ran = played(work)
    answers = [n for n in ran.search.nodes if n.ended]
    firsts = [n.path()[0] for n in answers]
    assert [n.fresh for n in firsts] == [False, True, True]
    texts = [n.text() for n in answers]
    shown = contents(firsts[2])
    both = [("assistant", texts[0]), ("user", operator.ask)]
    assert shown == [
        ("user", "Q"),
        *([] if forget else both),
        ("assistant", texts[1]),
        ("user", operator.ask),
    ]


def test_an_aside_is_no_answer() -> None:
    """Its end is followed by the request to complete the task."""

    async def work(search: Search) -> None:
        analysis = OPERATORS[Behaviour.PROBLEM_ANALYSIS]
        await search.grow(search.root, until=Stop.END, operator=analysis)

    ran = played(work)
    over = [n for n in ran.search.nodes if n.step and n.step.stop is Stop.END]
    assert [n.aside for n in over] == [True, False]
    assert [n.finished for n in over] == [False, True]
    turn = next(n for n in over[1].path() if n.behaviour == Behaviour.TASK_COMPLETION)
    assert contents(turn)[1:] == [
        ("assistant", over[0].text()),
        ("user", OPERATORS[Behaviour.TASK_COMPLETION].ask),
    ]
    assert over[1].text().startswith(over[0].text())


@pytest.mark.parametrize("strategy", [Beam, BestOfN])
def test_any_strategy_takes_behaviours(strategy: type[Beam] | type[BestOfN]) -> None:
    """The children of a node take them in turn, and each is named in the tree."""
    actions = ("continue", Behaviour.TASK_DECOMPOSITION, Behaviour.SELF_CORRECTION)
    ran = searched(strategy(behaviours=actions), operators=OPERATORS)
    for child in ran.search.root.children:
        wanted = (None, "task_decomposition", None)[child.key[0] % 3]
        assert child.behaviour == wanted
    deeper = {n.behaviour for n in ran.search.nodes if n.depth > 1 and n.fresh}
    assert deeper == ({"self_correction"} if strategy is Beam else set())


def test_a_tree_search_over_the_six_behaviours() -> None:
    """The children of a node begin with them in turn, until an aside is over: then the task is
    completed. Each was asked for in its own words, and the trace names it."""
    six = tuple(Behaviour)
    strategy = MCTS(simulations=24, branch=6, behaviours=six)
    ran = searched(strategy, operators=OPERATORS, engine=FakeEngine(p_end=0.15))
    seen = set()
    for node in ran.search.nodes[1:]:
        assert node.parent is not None
        before, action = node.parent.step, six[node.key[-1] % 6]
        if before is not None and before.stop is Stop.END:
            action = Behaviour.TASK_COMPLETION
        if before is None and OPERATORS[action].fresh:  # nothing is written that it could revise
            assert (node.behaviour, node.prompt) == (None, None)
            continue
        assert node.behaviour == action
        role, said = contents(node)[-1]
        assert role == "user" and said.endswith(OPERATORS[action].ask)
        assert (node.fresh, node.aside) == (OPERATORS[action].fresh, OPERATORS[action].aside)
        seen.add((action, node.depth > 1))
    assert {action for action, deep in seen if deep} == set(six)
    records = node_records(ran.search, AnswerProfile(), lambda node: None)
    assert [r.behaviour for r in records] == [n.behaviour for n in ran.search.nodes]
    assert ran.search.tree.answered and ran.search.root.visits >= 24


@pytest.mark.parametrize("first", [Behaviour.SELF_CORRECTION, Behaviour.PROBLEM_ANALYSIS])
def test_what_is_looked_at_is_the_same_answer_written_on(first: Behaviour) -> None:
    """And its step is a part of that, so that it has a verdict."""
    strategy = Beam(width=2, branch=2, lookahead=2, behaviours=(first, "continue"))
    ran = searched(strategy, operators=OPERATORS, engine=FakeEngine(p_end=0.15))
    greedy = [n for n in ran.search.nodes if n.greedy]
    assert greedy
    for node in greedy:
        assert node.parent is not None
        assert node.path()[:-1] == node.parent.path()
        assert node.behaviour in (node.parent.behaviour, "task_completion")
    assert all(n.raw is not None for n in ran.search.nodes[1:])


def test_what_is_finished_in_the_end_is_the_best_open_path() -> None:
    budget = {"tokens": 400, "reserve": 300}
    strategy = Beam(width=1, branch=2, behaviours=(Behaviour.SELF_CORRECTION, "continue"))
    ran = searched(strategy, operators=OPERATORS, engine=FakeEngine(p_end=0.01), budget=budget)
    leaf = ran.search.nodes[-1]
    assert leaf.finished and leaf.score is None
    assert any(node.score is not None for node in leaf.path())


@pytest.mark.parametrize("reflect", [False, True])
def test_chains_of_revisions(reflect: bool) -> None:
    ran = searched(Revise(chains=3, revisions=2, reflect=reflect), operators=OPERATORS)
    ended = [n for n in ran.search.nodes if n.ended]
    assert len(ended) == 9
    assert len([n for n in ran.search.nodes if n.aside]) > 0 or not reflect
    asides = [n for n in ran.search.nodes if n.aside and n.step and n.step.stop is Stop.END]
    assert len(asides) == (6 if reflect else 0)
    assert all(n.behaviour == "self_evaluation" for n in asides)
    assert all(n.outcome is None for n in asides)


@pytest.mark.parametrize("reflect", [False, True])
def test_each_revision_may_have_as_many_steps(reflect: bool) -> None:
    """And so may what is said of it."""
    strategy = Revise(revisions=3, depth=4, reflect=reflect)
    ran = searched(strategy, operators=OPERATORS, engine=FakeEngine(p_end=0.4), seed=3)
    written = [n for n in ran.search.nodes if n.step is not None]
    assert len([n for n in written if n.ended]) == 4
    assert max(n.depth for n in written) > 8
    for node in written:
        asides = [n for n in node.path() if n.aside]
        assert max(len(node.path()) - len(asides), len(asides)) <= 4


def test_what_is_said_of_a_full_answer_has_room() -> None:
    """An answer of `max_tokens`, and in several steps as many again about it."""
    said = [*map(ord, "12\n345\nAnswer: 7"), EOS]

    class Talks(FakeEngine):
        def stream(self, prompt_ids: Any, **how: Any) -> Any:
            stream = super().stream(prompt_ids, **how)
            begun = [n for n in range(len(said)) if list(prompt_ids[-n:]) == said[:n]]
            stream.ids = said[max(begun, default=0) :][: how["max_tokens"]]
            return stream

    ran = searched(
        Revise(revisions=1, reflect=True),
        operators=OPERATORS,
        engine=Talks(),
        max_tokens=len(said),
    )
    answer, aside, revised = (
        n for n in ran.search.nodes if n.step is not None and n.step.stop is Stop.END
    )
    assert aside.aside and not answer.aside
    assert "".join(n.step.text for n in ran.search.nodes if n.aside and n.step) == answer.text()
    assert revised.ended and revised.tokens() == answer.tokens() == len(said)


def test_forced_revisions_stay_in_one_turn() -> None:
    ran = searched(Revise(revisions=2, by="wait"), operators=OPERATORS)
    ended = [n for n in ran.search.nodes if n.ended]
    assert [n.text().count("Wait,") for n in ended] == [0, 1, 2]
    assert not any(n.fresh for n in ran.search.nodes)


def test_thinking_is_brought_to_its_end() -> None:
    strategy = Revise(revisions=0, think=20, conclude="\nAnswer: ")
    ran = searched(strategy, engine=FakeEngine(p_end=0.01), max_tokens=400)
    leaf = ran.search.nodes[-1]
    before = [n for n in leaf.path() if n.step and n.step.forced == 0]
    assert leaf.text().count("\nAnswer: ") == 1
    forced = next(n for n in leaf.path() if n.step and n.step.forced)
    assert forced.parent is not None and forced.parent.tokens() >= 20
    assert forced.parent.parent is not None and forced.parent.parent.tokens() < 20
    assert before


def test_the_conversation_must_fit() -> None:
    """A revision that the context cannot hold is not begun; what was written stands."""
    engine = FakeEngine(context=300)
    ran = searched(Revise(revisions=5), operators=OPERATORS, engine=engine, max_tokens=200)
    assert all(len(p) < 300 for p in engine.prompts)
    assert len(engine.prompts) < 6
    assert ran.search.tree.answered


def full(strategy: Any, context: int) -> Ran:
    """One whose turns soon fill the context."""
    engine = FakeEngine(
        p_end=0.3 if isinstance(strategy, MCTS) else 0.1, context=context, length=20
    )
    return searched(strategy, operators=OPERATORS, engine=engine, seed=3, max_tokens=200)


def test_a_beam_goes_on_without_what_does_not_fit() -> None:
    behaviours = ("continue", "continue", "continue", Behaviour.SELF_CORRECTION)
    ran = full(Beam(width=2, branch=4, depth=10, behaviours=behaviours), 260)
    assert ran.search.full
    assert not [n for n in ran.search.nodes if n.status == "open"]
    assert max(n.depth for n in ran.search.nodes) > 4


def test_a_tree_search_gives_up_what_does_not_fit() -> None:
    """Or all its simulations might end there."""
    strategy = MCTS(simulations=64, branch=4, behaviours=(Behaviour.SELF_EVALUATION, "continue"))
    ran = full(strategy, 360)
    stuck = [n for n in ran.search.full if not n.children]
    assert stuck and all(n.pruned and n.asked == 4 for n in stuck)
    assert len(ran.search.nodes) > 100


@pytest.mark.parametrize(
    ("strategy", "answers"),
    [
        (Revise(chains=2, revisions=3, stop_at=0.01), 8),
        (BestOfN(n=12, stop_at=0.01), 12),
        (BestOfN(n=12, stop_at=0.01, reject=0.05), 12),
    ],
)
def test_a_score_that_a_verdict_contradicts_ends_nothing(strategy: Any, answers: int) -> None:
    liked = searched(strategy, operators=OPERATORS)
    judged = searched(strategy, operators=OPERATORS, judge=Tells("never"))
    assert len([n for n in liked.search.nodes if n.ended]) < answers
    assert len([n for n in judged.search.nodes if n.ended]) == answers


class Tells:
    """Judges by the answer's text."""

    def __init__(self, right: str):
        self.right, self.asked = right, 0

    async def verdict(self, prompt: Prompt, text: str) -> float | None:
        self.asked += 1
        return float(text.endswith(self.right))


@pytest.mark.parametrize("strategy", [Revise(chains=2, revisions=9), BestOfN(n=30), Beam()])
def test_a_right_answer_ends_the_search(strategy: Any) -> None:
    judge = Tells("Answer: 2")
    ran = searched(strategy, operators=OPERATORS, judge=judge)
    right = [n for n in ran.search.nodes if n.outcome == 1]
    assert len(right) == 1
    assert ran.search.solved
    (decision,) = ran.search.decisions
    assert (decision["decision"], decision["node"]) == ("stop", right[0].id)
    assert judge.asked == len([n for n in ran.search.nodes if n.outcome is not None])
    assert ran.engine.open_streams == 0
    assert judge.asked < 20
