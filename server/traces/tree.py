"""A trace for the terminal."""

from __future__ import annotations

from collections import defaultdict

from rich.console import RenderableType
from rich.text import Text
from rich.tree import Tree

from server.traces.schema import NodeRecord, Trace
from server.types import Status


def render(trace: Trace) -> tuple[RenderableType, ...]:
    """The question, the tree, and the answer."""
    return (*_head(trace), _tree(trace), _answer(trace))


def _head(trace: Trace) -> tuple[Text, ...]:
    usage = trace.usage
    spent = f"{usage.nodes} nodes, {usage.policy} tokens, {usage.seconds:.2f} s"
    settings = ", ".join(f"{k} {v}" for k, v in trace.strategy.items() if k != "kind")
    title = f"{trace.trace_id}  {trace.created_at:%Y-%m-%d %H:%M:%S}  {trace.versions.model_id}"
    said = (Text(f"{m.get('role', '')}: {m.get('content', '')}") for m in trace.prompt_messages)
    kind = trace.strategy.get("kind", "search")
    return (Text(title, "bold"), *said, Text(f"{kind} ({settings}): {spent}", "dim"))


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
    facts = [
        f"score {node.prm_agg:.3f}" if node.prm_agg is not None else "",
        f"visits {node.visits}" if node.visits else "",
        f"x{node.multiplicity}" if node.multiplicity > 1 else "",
        node.status if node.status in set(Status) - {Status.OPEN, Status.EXPANDED} else "",
    ]
    return label.append("  " + "  ".join(filter(None, facts)), style or "cyan")


def _answer(trace: Trace) -> Text:
    if trace.error is not None:
        return Text(f"error: {trace.error}", "red")
    return Text(f"answer: {trace.answer}  ({trace.finish_reason})", "bold")
