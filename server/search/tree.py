"""The nodes of a search, and how a step becomes one."""

from __future__ import annotations

from server.search.operators import Opening
from server.types import Node, Prompt, Step


class Tree:
    """Every node, in the order they were attached; the root is the first."""

    def __init__(self, prompt: Prompt):
        self.root = Node(prompt=prompt)
        self.nodes = [self.root]

    @property
    def answered(self) -> bool:
        """Whether some path was ended by the policy itself."""
        return any(n.ended for n in self.nodes)

    @property
    def finished(self) -> int:
        """Paths that nothing follows: the answers there are."""
        return sum(n.finished for n in self.nodes)

    @property
    def kept(self) -> int:
        """Policy tokens in the tree, merged siblings counted as often as they were sampled."""
        return sum(n.step.sampled * n.multiplicity for n in self.nodes if n.step)

    def best_open(self) -> Node | None:
        """The leaf that is first to be written on: the best, of those not given up if any."""
        leaves = (n for n in self.nodes if not n.finished and not n.children)
        return max(leaves, key=lambda n: (not n.pruned, n.value, n.depth), default=None)

    def attach(self, parent: Node, step: Step, ordinal: int, begin: Opening) -> Node:
        key, place = (*parent.key, ordinal), (*parent.place, ordinal)
        node = Node(parent=parent, step=step, id=len(self.nodes), key=key, place=place)
        begin.mark(node)
        parent.children.append(node)
        self.nodes.append(node)
        return node


def merged(parent: Node, step: Step, ordinal: int, begin: Opening) -> Node | None:
    """The child of `parent` that already says exactly this, in answer to the same; it counts
    for one more."""
    for child in parent.children:
        assert child.step is not None
        same = child.step.token_ids == step.token_ids and child.step.stop is step.stop
        if same and child.prompt == begin.prompt and child.behaviour == begin.behaviour(parent):
            child.multiplicity += 1
            if not child.children:
                child.place = min(child.place, (*parent.place, ordinal))
            return child
    return None


def next_ordinal(parent: Node) -> int:
    parent.asked += 1
    return parent.asked - 1
