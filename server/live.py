"""A search as it runs, in the terminal: a tree on a screen, plain lines anywhere else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from ponder_client import (
    Answer,
    AnswerEvent,
    Asked,
    AsyncPonder,
    DecisionEvent,
    Event,
    Patience,
    PruneEvent,
    ScoreEvent,
    StepEvent,
    Usage,
    UsageEvent,
)
from rich.color import Color
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.style import Style
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from server.traces.tree import decided

Key = tuple[int, ...]
LATEST = 3  # decisions on the screen
PATIENCE = Patience(retries=2)  # somebody sits there and waits


@dataclass(slots=True)
class Branch:
    """One step as the terminal knows it."""

    key: Key
    text: str
    stop: str = "step"
    score: float | None = None
    pruned: bool = False


@dataclass(slots=True)
class View:
    """What the events said so far."""

    question: str
    branches: dict[Key, Branch] = field(default_factory=dict)
    decisions: list[str] = field(default_factory=list)
    tokens: int = 0  # of the policy, as far as the steps tell
    answer: Answer | None = None
    usage: Usage | None = None

    def take(self, event: Event) -> None:
        match event:
            case StepEvent(key=key, text=text, stop=stop, tokens=tokens):
                self.branches[key] = Branch(key, text.strip(), stop)
                self.tokens += tokens
            case ScoreEvent(key=key, score=score):
                self.branches[key].score = score
            case PruneEvent(key=key):
                if branch := self.branches.get(key):
                    branch.pruned = True
            case DecisionEvent(facts=facts):
                self.decisions.append(decided(facts))
            case AnswerEvent():
                self.answer = self.answer or event  # the chosen one comes first
            case UsageEvent():
                self.usage = event

    def status(self) -> Text:
        scored = sum(branch.score is not None for branch in self.branches.values())
        finished = sum(branch.stop != "step" for branch in self.branches.values())
        return Text(
            f"{len(self.branches)} steps, {finished} finished, {scored} scored, "
            f"{self.tokens} tokens",
            style="dim",
        )

    def tree(self, lines: int) -> Tree:
        """The most promising steps with all before them, in at most about `lines` lines."""
        shown = self._promising(lines)
        root = Tree(Text(self.question, style="bold"), guide_style="dim")
        twigs: dict[Key, Tree] = {(): root}
        for key in sorted(shown, key=lambda k: (len(k), -self._best(k), k)):
            twigs[key] = twigs[key[:-1]].add(self._label(self.branches[key]))
        if hidden := len(self.branches) - len(shown):
            root.add(Text(f"and {hidden} more steps", style="dim italic"))
        return root

    def _promising(self, lines: int) -> set[Key]:
        shown: set[Key] = set()
        for key in sorted(self.branches, key=lambda k: (-self._score(k), len(k), k)):
            path = {key[:n] for n in range(1, len(key) + 1)} & self.branches.keys()
            if len(shown | path) <= lines:
                shown |= path
        return shown

    def _score(self, key: Key) -> float:
        branch = self.branches[key]
        return -1.0 if branch.score is None or branch.pruned else branch.score

    def _best(self, key: Key) -> float:
        return max(self._score(k) for k in self.branches if k[: len(key)] == key)

    def _label(self, branch: Branch) -> Text:
        score = "     " if branch.score is None else f"{branch.score:.3f}"
        label = Text.assemble((score, _shade(branch.score)), "  ", branch.text)
        if branch.pruned:
            label.stylize("dim strike")
        elif branch.stop != "step":
            label.stylize("bold", len(score))
        return label


def _shade(score: float | None) -> Style:
    """From red at 0 to green at 1."""
    share = min(max(score or 0.0, 0.0), 1.0)
    return Style(color=Color.from_rgb(220 - 160 * share, 60 + 140 * share, 70))


async def show(events: AsyncIterator[Event], question: str, console: Console) -> View:
    """Draw the events while they come; the view as it was when they ended."""
    view = View(question)
    if not console.is_terminal:
        async for event in events:
            line = plain(event, view)
            view.take(event)
            if line:
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    else:
        with Live(
            console=console, refresh_per_second=10, get_renderable=lambda: _draw(view, console)
        ):
            async for event in events:
                view.take(event)
    console.print(result(view))
    return view


def _draw(view: View, console: Console) -> RenderableType:
    decisions = Text("\n".join(view.decisions[-LATEST:]), "dim", no_wrap=True, overflow="ellipsis")
    lines = console.height - 12 - min(LATEST, len(view.decisions))
    return Group(view.tree(lines), decisions, view.status())


def plain(event: Event, view: View) -> str | None:
    """An event as a line; None where it says nothing that `view` or the result does not."""
    if isinstance(event, DecisionEvent):
        return decided(event.facts)
    if not isinstance(event, StepEvent | ScoreEvent | PruneEvent):
        return None
    branch = view.branches.get(event.key)
    score = event.score if isinstance(event, ScoreEvent) else None
    if score is not None and branch is not None and branch.score == score:
        return None  # a step that was sampled again
    text = event.text.strip() if isinstance(event, StepEvent) else branch.text if branch else ""
    number = "" if score is None else f"{score:.3f}"
    return f"{event.type:5}  {number:5}  {'.'.join(map(str, event.key)):<12}  {text}"


def result(view: View) -> RenderableType:
    """The answer, and what it took."""
    assert view.answer is not None and view.usage is not None, "a stream ends with both"
    table = Table.grid(padding=(0, 2))
    for step in view.answer.reasoning:
        table.add_row("", Text(step.strip(), style="dim"))
    table.add_row("answer", Text(view.answer.content.strip(), style="bold green"))
    if view.answer.score is not None:
        table.add_row("score", f"{view.answer.score:.3f}")
    table.add_row("took", spent(view.usage))
    return table


def spent(usage: Usage) -> str:
    """In words."""
    tokens = usage.tokens
    return (
        f"{tokens.policy} policy tokens, {tokens.prm} scorer tokens "
        f"(and {tokens.prm_cached} cached), {usage.nodes} nodes, {usage.seconds:.2f} s"
    )


async def ask(url: str, api_key: str | None, question: str, asked: Asked, *, as_json: bool) -> None:
    """Put a question to the server at `url`; print the search, or the whole reply as JSON. Raises
    `ponder_client.PonderError`."""
    async with AsyncPonder(url, api_key, patience=PATIENCE) as ponder:
        if as_json:
            whole: Asked = {**asked, "include": ["steps", "scores"]}
            reply = await ponder.reason(question, **whole)
            print(json.dumps(reply.model_dump(mode="json", exclude_unset=True), indent=2))
        else:
            await show(ponder.stream(question, **asked), question, Console())
