"""A search as it runs, in the terminal: a tree on a screen, plain lines anywhere else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.color import Color
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.style import Style
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from server import asking
from server.traces.tree import decided

Events = AsyncIterator[tuple[str, dict[str, Any]]]
Key = tuple[int, ...]
LATEST = 3  # decisions on the screen


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
    answer: dict[str, Any] | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def take(self, name: str, data: dict[str, Any]) -> None:
        if name == "step":
            key = tuple(data["key"])
            self.branches[key] = Branch(key, data["text"].strip(), data["stop"])
            self.tokens += data["tokens"]
        elif name == "score":
            self.branches[tuple(data["key"])].score = data["score"]
        elif name == "prune":
            if branch := self.branches.get(tuple(data["key"])):
                branch.pruned = True
        elif name == "decision":
            self.decisions.append(_decision(data))
        elif name == "answer":
            self.answer = self.answer or data  # the chosen one comes first
        elif name == "usage":
            self.usage = data
        elif name == "error":
            self.error = data["error"]["message"]

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


async def show(events: Events, question: str, console: Console) -> View:
    """Draw the events while they come; the view as it was when they ended."""
    view = View(question)
    if not console.is_terminal:
        async for name, data in events:
            line = plain(name, data, view)
            view.take(name, data)
            if line:
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    else:
        with Live(
            console=console, refresh_per_second=10, get_renderable=lambda: _draw(view, console)
        ):
            async for name, data in events:
                view.take(name, data)
    console.print(result(view))
    return view


def _draw(view: View, console: Console) -> RenderableType:
    decisions = Text("\n".join(view.decisions[-LATEST:]), "dim", no_wrap=True, overflow="ellipsis")
    lines = console.height - 12 - min(LATEST, len(view.decisions))
    return Group(view.tree(lines), decisions, view.status())


def _decision(data: dict[str, Any]) -> str:
    """A decision as a line, without what every event of a stream has."""
    return decided({k: v for k, v in data.items() if k not in ("type", "sequence_number")})


def plain(name: str, data: dict[str, Any], view: View) -> str | None:
    """An event as a line; None where it says nothing that `view` or the result does not."""
    if name == "decision":
        return _decision(data)
    if name not in ("step", "score", "prune"):
        return None
    branch = view.branches.get(tuple(data["key"]))
    score = data.get("score")
    if name == "score" and branch is not None and branch.score == score:
        return None  # a step that was sampled again
    text = data["text"].strip() if branch is None else branch.text
    number = "" if score is None else f"{score:.3f}"
    return f"{name:5}  {number:5}  {'.'.join(map(str, data['key'])):<12}  {text}"


def result(view: View) -> RenderableType:
    """The answer, and what it took."""
    if view.error or view.answer is None:
        return Text(view.error or "the stream ended without an answer", style="bold red")
    table = Table.grid(padding=(0, 2))
    answer = view.answer
    for step in answer.get("reasoning", []):
        table.add_row("", Text(step.strip(), style="dim"))
    table.add_row("answer", Text(answer["content"].strip(), style="bold green"))
    if answer.get("score") is not None:
        table.add_row("score", f"{answer['score']:.3f}")
    table.add_row("took", spent(view.usage))
    return table


def spent(usage: Mapping[str, Any]) -> str:
    """The usage of a reply of `/v1/reason`, in words."""
    tokens = usage["tokens"]
    return (
        f"{tokens['policy']} policy tokens, {tokens['prm']} scorer tokens "
        f"(and {tokens['prm_cached']} cached), {usage['nodes']} nodes, {usage['seconds']:.2f} s"
    )


async def ask(url: str, api_key: str | None, body: Mapping[str, Any], *, as_json: bool) -> bool:
    """Whether the server at `url` answered. Prints the search, or the whole reply as JSON."""
    async with asking.client(url, api_key) as http:
        if as_json:
            print(json.dumps(await asking.reason(http, body), indent=2))
            return True
        view = await show(asking.events(http, body), body["question"], Console())
        return view.answer is not None
