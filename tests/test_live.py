"""The terminal's view of a search: what it keeps, what it draws."""

from __future__ import annotations

from collections.abc import AsyncIterator
from io import StringIO
from typing import Any

import pytest
from ponder_client import Event
from ponder_client.events import event
from rich.console import Console

from server.live import View, show

USAGE = {
    "tokens": {
        **{"policy": 30, "discarded": 0, "prm": 20, "prm_cached": 10},
        **{"prompt": 0, "prompt_cached": 0},
    },
    "prompt_tokens": 5,
    "policy_tokens": 30,
    "nodes": 4,
    "seconds": 1.234,
    "scorer_calls": 3,
}
ANSWER = {
    **{"content": "Answer: 24", "reasoning": ["4*6=24\n"], "final": "24", "score": 0.9},
    **{"index": 0, "key": "24", "outcome": None, "votes": 1, "finish_reason": "stop"},
}
EVENTS: list[tuple[str, dict[str, Any]]] = [
    ("step", {"key": [0], "text": "4*6=24\n", "tokens": 10, "stop": "step"}),
    ("step", {"key": [1], "text": "4+6=10\n", "tokens": 10, "stop": "step"}),
    ("score", {"key": [0], "raw": 0.8, "score": 0.8}),
    ("score", {"key": [1], "raw": 0.1, "score": 0.1}),
    ("score", {"key": [1], "raw": 0.1, "score": 0.1}),
    ("prune", {"key": [1]}),
    ("step", {"key": [0, 0], "text": "Answer: 24", "tokens": 10, "stop": "end"}),
    ("score", {"key": [0, 0], "raw": 0.9, "score": 0.9}),
    ("answer", ANSWER),
    ("answer", {**ANSWER, "content": "Answer: second"}),
    ("usage", USAGE),
    ("done", {"trace_id": "t"}),
]


def typed(kind: str, data: dict[str, Any], number: int = 0) -> Event:
    return event({"type": kind, "sequence_number": number, **data})


async def told(events: list[tuple[str, dict[str, Any]]]) -> AsyncIterator[Event]:
    for number, (kind, data) in enumerate(events):
        yield typed(kind, data, number)


def console(*, terminal: bool, height: int = 40) -> Console:
    return Console(
        file=StringIO(), force_terminal=terminal, width=100, height=height, color_system=None
    )


def printed(screen: Console) -> str:
    assert isinstance(screen.file, StringIO)
    return screen.file.getvalue()


async def test_a_pipe_gets_a_line_for_each_thing_that_happened() -> None:
    screen = console(terminal=False)
    view = await show(told(EVENTS), "Make 24.", screen)
    lines = [line.rstrip() for line in printed(screen).splitlines()]
    assert lines[:6] == [
        "step          0             4*6=24",
        "step          1             4+6=10",
        "score  0.800  0             4*6=24",
        "score  0.100  1             4+6=10",
        "prune         1             4+6=10",
        "step          0.0           Answer: 24",
    ]
    assert lines[6] == "score  0.900  0.0           Answer: 24"
    assert view.tokens == 30
    assert view.answer is not None
    assert view.answer.votes == 1
    assert view.answer.content == ANSWER["content"]


@pytest.mark.parametrize("terminal", [True, False])
async def test_the_result_is_the_first_answer_and_what_it_took(terminal: bool) -> None:
    screen = console(terminal=terminal)
    await show(told(EVENTS), "Make 24.", screen)
    end = printed(screen)[-500:]
    assert "Answer: 24" in end
    assert "second" not in end
    assert "0.900" in end
    assert "30 policy tokens, 20 scorer tokens (and 10 cached), 4 nodes, 1.23 s" in end


async def test_a_terminal_gets_the_tree() -> None:
    screen = console(terminal=True)
    await show(told(EVENTS), "Make 24.", screen)
    drawn = printed(screen)
    assert "Make 24." in drawn
    assert "├── 0.800  4*6=24" in drawn
    assert "│   └── 0.900  Answer: 24" in drawn
    assert "3 steps, 1 finished, 3 scored, 30 tokens" in drawn


async def test_a_terminal_gets_the_latest_decisions() -> None:
    screen = console(terminal=True)
    decisions = [("decision", {"decision": "search", "reason": f"r{i}"}) for i in range(4)]
    await show(told([*decisions, *EVENTS]), "Make 24.", screen)
    last = printed(screen)[-1500:]
    assert all(f"reason=r{i}" in last for i in (1, 2, 3))
    assert "reason=r0" not in last


def grown(*, width: int) -> View:
    view = View("q")
    for i in range(width):
        view.take(typed("step", {"key": [i], "text": f"step {i}", "tokens": 1, "stop": "step"}))
        view.take(typed("score", {"key": [i], "raw": i / width, "score": i / width}))
        view.take(typed("step", {"key": [i, 0], "text": f"leaf {i}", "tokens": 1, "stop": "end"}))
    return view


def test_a_large_tree_shows_its_best_in_few_lines() -> None:
    screen = console(terminal=True)
    screen.print(grown(width=100).tree(lines=10))
    lines = printed(screen).splitlines()
    assert len(lines) == 12  # the question, ten steps, what is left out
    assert "step 99" in lines[1]
    assert "step 0 " not in printed(screen)
    assert "and 190 more steps" in lines[-1]


def test_every_step_shown_has_all_before_it() -> None:
    view = View("q")
    for depth in range(1, 6):
        key = [0] * depth
        view.take(typed("step", {"key": key, "text": f"d{depth}", "tokens": 1, "stop": "step"}))
        view.take(typed("score", {"key": key, "raw": 0.1 * depth, "score": 0.1 * depth}))
    screen = console(terminal=True)
    screen.print(view.tree(lines=5))
    assert [line.strip("│└─├ ")[-2:] for line in printed(screen).splitlines()[1:]] == [
        "d1",
        "d2",
        "d3",
        "d4",
        "d5",
    ]


def test_text_of_the_policy_is_no_markup() -> None:
    view = View("[bold]q[/]")
    view.take(typed("step", {"key": [0], "text": "[red]x[/red]", "tokens": 1, "stop": "step"}))
    screen = console(terminal=True)
    screen.print(view.tree(lines=5))
    assert "[red]x[/red]" in printed(screen)
    assert "[bold]q[/]" in printed(screen)


async def test_a_decision_is_a_line() -> None:
    screen = console(terminal=False)
    facts = {"decision": "search", "strategy": {"kind": "mcts"}, "reason": "difficulty up to 1"}
    event = {"type": "decision", "sequence_number": 3, **facts}
    await show(told([("decision", event), *EVENTS]), "Make 24.", screen)
    assert printed(screen).splitlines()[0] == (
        'decision     decision=search  strategy={"kind": "mcts"}  reason=difficulty up to 1'
    )
