"""A trace for the terminal."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.text import Text
from rich.tree import Tree

from server.traces.schema import NodeRecord, Trace
from server.types import Status


def render(trace: Trace) -> tuple[RenderableType, ...]:
    """The question, what was decided on the way, the tree, and the answer."""
    return (*_head(trace), *map(_decision, trace.decisions), _tree(trace), _answer(trace))


def _head(trace: Trace) -> tuple[Text, ...]:
    usage = trace.usage
    spent = f"{usage.nodes} nodes, {usage.policy} tokens, {usage.seconds:.2f} s"
    settings = ", ".join(f"{k} {v}" for k, v in trace.strategy.items() if k != "kind")
    title = f"{trace.trace_id}  {trace.created_at:%Y-%m-%d %H:%M:%S}  {trace.versions.model_id}"
    said = (Text(f"{m.get('role', '')}: {m.get('content', '')}") for m in trace.prompt_messages)
    kind = trace.strategy.get("kind", "search")
    by = [f"reward {_named(trace.reward)}"]
    by += [f"verify {_named(trace.verify)}"] if trace.verify else []
    search = Text(f"{kind} ({settings}), {', '.join(by)}: {spent}", "dim")
    return (Text(title, "bold"), *said, search)


def _named(part: Mapping[str, Any]) -> str:
    return str(part.get("kind", "unknown"))


def _decision(facts: Mapping[str, Any]) -> Text:
    return Text(decided(facts), "dim")


def decided(facts: Mapping[str, Any]) -> str:
    """A decision as a line."""
    said = [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in facts.items()]
    return "  ".join([f"{'decision':11}", *said])


def _tree(trace: Trace) -> Tree:
    chosen = chosen_path(trace)
    children: dict[int, list[NodeRecord]] = defaultdict(list)
    for node in trace.nodes:
        if node.parent is not None:
            children[node.parent].append(node)
    root = Tree("root", guide_style="dim")
    branches = [(root, child) for child in reversed(children[0])]
    while branches:  # a stack, for a tree may be deeper than Python's recursion
        parent, node = branches.pop()
        branch = parent.add(_label(node, node.id in chosen))
        branches += [(branch, child) for child in reversed(children[node.id])]
    return root


def chosen_path(trace: Trace) -> set[int]:
    """Ids from the root to the chosen leaf."""
    path: set[int] = set()
    at = trace.selected
    while at is not None and at not in path:
        path.add(at)
        at = trace.nodes[at].parent
    return path


def _label(node: NodeRecord, chosen: bool) -> Text:
    style = "bold green" if chosen else "dim" if node.status == Status.PRUNED else ""
    label = Text(("* " if chosen else "") + (node.text.strip() or "(empty)"), style)
    turn = (node.behaviour or "", "new answer" if node.fresh else "", "aside" if node.aside else "")
    facts = [
        *(f"[{fact}]" for fact in turn if fact),
        f"score {node.prm_agg:.3f}" if node.prm_agg is not None else "",
        f"outcome {node.outcome:g}" if node.outcome is not None else "",
        f"visits {node.visits}" if node.visits else "",
        f"x{node.multiplicity}" if node.multiplicity > 1 else "",
        node.status if node.status in set(Status) - {Status.OPEN, Status.EXPANDED} else "",
    ]
    return label.append("  " + "  ".join(filter(None, facts)), style or "cyan")


def _answer(trace: Trace) -> Text:
    if trace.error is not None:
        return Text(f"error: {trace.error}", "red")
    verdict = "" if trace.outcome is None else f", outcome {trace.outcome:g}"
    return Text(f"answer: {trace.answer}  ({trace.finish_reason}{verdict})", "bold")
