"""Which traces may be learned from: with consent, nothing private or held out, each tree once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b

from server.traces.schema import Trace
from trainer.held_out import HeldOut


class Sift:
    """Says of one trace after the other why it is left out; None if it may stay.

    Rewritten text is no longer what the token ids and their log-probabilities say, so a trace
    with something to redact goes as a whole.
    """

    def __init__(self, private: Sequence[str], held_out: Sequence[HeldOut]):
        self._private = [re.compile(pattern) for pattern in private]
        self._held_out = held_out
        self._ids: set[str] = set()
        self._trees: set[bytes] = set()

    def objection(self, trace: Trace) -> str | None:
        if not trace.consent:
            return "no consent"
        if trace.redaction_status != "none":
            return "redacted"
        if any(rule.holds(trace) for rule in self._held_out):
            return "held out"
        if found := self._leak(trace):
            return f"private: {found}"
        return self._again(trace)

    def _leak(self, trace: Trace) -> str | None:
        """The pattern that finds something in what was asked or written."""
        if not self._private:
            return None
        texts = [m.get("content", "") for m in trace.prompt_messages] + written(trace)
        hits = (p.pattern for p in self._private if any(p.search(text) for text in texts))
        return next(hits, None)

    def _again(self, trace: Trace) -> str | None:
        tree = blake2b(repr((trace.prompt_ids, shape(trace))).encode()).digest()
        known_id, known_tree = trace.trace_id in self._ids, tree in self._trees
        self._ids.add(trace.trace_id)
        self._trees.add(tree)
        return "same trace again" if known_id else "same tree again" if known_tree else None


def written(trace: Trace) -> list[str]:
    """The text of each path to a leaf."""
    texts: dict[int, str] = {}
    for node in trace.nodes:
        above = texts.get(node.parent, "") if node.parent is not None else ""
        texts[node.id] = above + node.text
    inner = {node.parent for node in trace.nodes}
    return [text for i, text in texts.items() if i not in inner]


def shape(trace: Trace) -> list[tuple[object, ...]]:
    """What makes a tree the same as another."""
    return [(n.parent, n.token_ids, n.text, n.forced, n.prompt_ids) for n in trace.nodes]
