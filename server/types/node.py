"""The tree's nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from server.types.prompt import Prompt
from server.types.step import Step, Stop


class Status(StrEnum):
    """What became of a node."""

    OPEN = "open"  # could have gone on
    EXPANDED = "expanded"
    PRUNED = "pruned"  # the strategy gave it up
    TERMINAL = "terminal"  # ended by the policy
    TRUNCATED = "truncated"  # ended by its token allowance


@dataclass(eq=False, slots=True)
class Node:
    """A partial or finished answer: the path of steps from the root to here."""

    parent: Node | None = field(default=None, repr=False)
    step: Step | None = None  # None only at the root
    prompt: Prompt | None = None  # set if the policy saw something else than the path
    id: int = 0  # position in the tree, in the order of attachment; the root is 0
    key: tuple[int, ...] = ()  # ordinals from the root, (0, 2, 1): names the node
    # The first of the places at which equal siblings were asked for: what its key would be had
    # that one landed first. Seeds and ties go by it, so that they do not depend on timing.
    place: tuple[int, ...] = ()
    raw: float | None = None  # the scorer's verdict on this step alone, as it gave it
    score: float | None = None  # the scorer's value of the whole path
    prior: float | None = None  # probability among its siblings, where a strategy used one
    visits: int = 0
    value_sum: float = 0.0
    multiplicity: int = 1  # how many times it was sampled (equal siblings are merged)
    children: list[Node] = field(default_factory=list, repr=False)
    asked: int = 0  # children requested so far
    pruned: bool = False
    behaviour: str | None = None  # of the operator it was written under
    fresh: bool = False  # the answer begins anew here
    aside: bool = False  # of a turn whose end is not the end of the answer
    greedy: bool = False  # written at temperature 0, to look ahead: no sample of the policy
    resampled: bool = False  # how many children it has was decided by resampling
    outcome: float | None = None  # a verifier's verdict on the answer that ends here
    parts: dict[str, float] = field(default_factory=dict)  # raw verdicts of a composite's scorers

    @property
    def depth(self) -> int:
        return len(self.key)

    @property
    def finished(self) -> bool:
        """Nothing follows: the policy ended the answer, or its tokens ran out."""
        return self.ended or (self.step is not None and self.step.stop is Stop.LENGTH)

    @property
    def ended(self) -> bool:
        """The policy ended the answer."""
        return self.step is not None and self.step.stop is Stop.END and not self.aside

    @property
    def value(self) -> float:
        """`score`, with an unscored node below every scored one."""
        return self.score if self.score is not None else float("-inf")

    @property
    def refuted(self) -> bool:
        """A verifier found fault with the answer that ends here."""
        return self.outcome is not None and self.outcome < 1

    def convinces(self, least: float) -> bool:
        """Whether an answer ends here that is worth at least `least` and is not refuted."""
        return self.finished and self.value >= least and not self.refuted

    @property
    def status(self) -> Status:
        if self.finished:
            assert self.step is not None
            return Status.TERMINAL if self.step.stop is Stop.END else Status.TRUNCATED
        if self.pruned:
            return Status.PRUNED
        return Status.EXPANDED if self.children else Status.OPEN

    @property
    def rank(self) -> tuple[float, tuple[int, ...]]:
        """Orders nodes by value; of equals the one asked for first is the greater."""
        return self.value, tuple(-k for k in self.place)

    def path(self) -> list[Node]:
        """The steps of the answer this belongs to, first one first: from the last node that began
        an answer anew, or from the root's child."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None and node.step is not None:
            nodes.append(node)
            node = None if node.fresh else node.parent
        return nodes[::-1]

    def text(self) -> str:
        return "".join(n.step.text for n in self.path() if n.step)

    def tokens(self) -> int:
        """Tokens of the path, the prompt not counted."""
        return sum(n.step.count for n in self.path() if n.step)
