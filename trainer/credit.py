"""What a step is credited with beside the outcome: potentials, and the progress of a prover.

Potential-based shaping (Ng, Harada and Russell 1999, theorem 1): with r' = r + gamma phi(s') -
phi(s), phi being 0 where an episode ends, the same policies are optimal as with r. Process
advantage verifiers (arXiv 2410.08146, section 3): a step is worth Q(s, a) + alpha A(s, a), the
advantage being that of another policy, the prover.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config import Frozen
from trainer.node import Node

Value = Annotated[
    str, Field(min_length=1, description="prm, tree (Q), or the name of a composite's part")
]


class Shaping(Frozen):
    """The potential of the state that a step leads to."""

    phi: Value = "prm"

    def knows(self, node: Node) -> bool:
        return value(node, self.phi) is not None

    def potential(self, node: Node | None) -> float:
        """0 at an answer's start and end; the last one known where a step has none."""
        if node is None or node.finished:
            return 0.0
        while (found := value(node, self.phi)) is None:
            if node.first or node.parent is None:
                return 0.0
            node = node.parent
        return found


class Pav(Frozen):
    """alpha A(s, a) of the prover.

    `best_of` is the best of k answers of the policy itself, which is right with probability
    1 - (1 - Q)^k: the paper's choice. Any other one is known by its values of the steps.
    """

    alpha: float = Field(1.0, ge=0)
    prover: Value | Literal["best_of"] = "best_of"
    k: int = Field(4, ge=2, description="of best_of")

    def knows(self, node: Node) -> bool:
        return self.prover == "best_of" or value(node, self.prover) is not None

    def progress(self, node: Node) -> float | None:
        """None where the prover's values are not known."""
        if self.prover == "best_of":
            q, before = node.q, node.baseline()
            if q is None or before is None:
                return None
            return self.alpha * ((1 - before) ** self.k - (1 - q) ** self.k)
        after, state = value(node, self.prover), mean_value(node, self.prover)
        return None if after is None or state is None else self.alpha * (after - state)


def value(node: Node, of: str) -> float | None:
    """What a scorer said of a step, or the tree's own Q of it."""
    if of == "tree":
        return node.q
    if of == "prm":
        return node.record.prm_raw
    return next((part.raw for part in node.record.parts if part.name == of), None)


def mean_value(node: Node, of: str) -> float | None:
    """Of the state before a step: the mean over the steps that were drawn in it."""
    drawn = [
        (n.record.multiplicity, v)
        for n in node.siblings()
        if n.proposed and (v := value(n, of)) is not None
    ]
    total = sum(times for times, _ in drawn)
    return sum(times * v for times, v in drawn) / total if total else None


def before(node: Node) -> Node | None:
    """The step before this one, of the same answer."""
    return None if node.first else node.parent


def shaped(reward: float, phi: float, phi_next: float, gamma: float) -> float:
    """The reward of a step between states of these potentials."""
    return reward + gamma * phi_next - phi
