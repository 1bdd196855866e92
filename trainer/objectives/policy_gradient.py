"""What the policy gradients share: an advantage for each step, and how often a step counts.

A step that L answers go through was drawn m times. Its tokens weigh m (L / m)^(1 - damping): with
damping 1 a step counts as often as it was drawn, however many answers share it; with 0 once for
each of them, as in rows of whole answers; with 1/2 as in TreeRL (arXiv 2506.11902, section 3.3).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import ClassVar

from pydantic import Field

from trainer.credit import Pav
from trainer.node import Node
from trainer.objectives.objective import Objective, Tally
from trainer.rows import Kind, Row
from trainer.sequences import Mark, Prefixes, sequences
from trainer.tree import Tree

Credit = Callable[[Node, Node], float | None]  # the advantage of a step, in the answer of this end


class PolicyGradient(Objective):
    makes: ClassVar[Kind] = "tokens"
    prefixes: Prefixes = Field("once", description="the rows that a shared step has its weight in")
    damping: float = Field(1.0, ge=0, le=1, description="of the weight of steps that answers share")
    min_group: int = Field(2, ge=2, description="samples that are compared, at least")
    constant: bool = Field(False, description="groups in which all are worth the same, too")
    kl: bool = Field(True, description="weigh the divergence from the reference policy, too")
    pav: Pav | None = None

    @abstractmethod
    def credits(self, trees: Sequence[Tree], tally: Tally) -> Iterator[tuple[Tree, Credit]]:
        """What each step of each tree that can be learned from is credited with."""

    def rows(self, trees: Sequence[Tree], tally: Tally) -> Iterator[Row]:
        for tree, credit in self.credits(trees, tally):
            if self.pav is not None and not any(self.pav.knows(n) for n in tree.steps):
                tally[f"no step has a value of the prover {self.pav.prover!r}"] += 1
                continue
            credit = self._with_progress(credit)
            shares = Shares(tree, credit, self.damping, self.prefixes, self.kl)
            if not shares.known:
                tally["no step has an advantage"] += 1
            yield from sequences(tree, shares.ends, shares.mark, self.prefixes)

    def _with_progress(self, credit: Credit) -> Credit:
        if (pav := self.pav) is None:
            return credit

        def both(node: Node, end: Node) -> float | None:
            own, progress = credit(node, end), pav.progress(node)
            return None if own is None else own + (progress or 0.0)

        return both

    def comparable(self, group: Sequence[tuple[float, float]], tally: Tally) -> bool:
        """Whether weights and values of a group say anything of each other."""
        if sum(weight for weight, _ in group) < self.min_group:
            tally["a group with too few samples"] += 1
            return False
        if not self.constant and len({value for _, value in group}) < 2:
            tally["a group whose samples are all worth the same"] += 1
            return False
        return True


@dataclass
class Shares:
    """Each step's advantage and weight, in one row or divided among those of its answers."""

    tree: Tree
    credit: Credit
    damping: float
    prefixes: Prefixes
    kl: bool
    ends: list[Node] = field(init=False)
    _credits: dict[Node, dict[Node, float]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.ends = [end for end in self.tree.judged if end.sampled]
        for end in self.ends:
            for node in end.path():
                if (worth := self.credit(node, end)) is not None:
                    self._credits.setdefault(node, {})[end] = worth

    @property
    def known(self) -> bool:
        return bool(self._credits)

    def mark(self, node: Node, end: Node) -> Mark | None:
        found = self._credits.get(node, {})
        if not found or end not in found:
            # Another answer through it may have a credit: it is left to the row of that.
            return None
        times = {e: e.record.multiplicity for e in found}
        through, drawn = sum(times.values()), node.record.multiplicity
        weight = drawn * max(1.0, through / drawn) ** (1 - self.damping)
        if self.prefixes == "per_leaf":
            return self._mark(weight * times[end] / through, found[end])
        mean = sum(times[e] * worth for e, worth in found.items()) / through
        return self._mark(weight, mean)

    def _mark(self, weight: float, advantage: float) -> Mark:
        return Mark(rl=weight, advantage=advantage, ref_kl=weight if self.kl else 0.0)


def moments(group: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean and standard deviation of weighted values, the whole group being the population."""
    total = sum(weight for weight, _ in group)
    mean = sum(weight * value for weight, value in group) / total
    return mean, sqrt(sum(weight * (value - mean) ** 2 for weight, value in group) / total)


def weighed(nodes: Sequence[Node]) -> list[tuple[float, float]]:
    """How often each was drawn, and its value; those without are left out."""
    return [(float(n.record.multiplicity), n.q) for n in nodes if n.q is not None]
