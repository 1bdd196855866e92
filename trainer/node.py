"""A step of a tree, and what is known of it.

Q(n), the value of a step in its state, is the mean outcome of the answers that go through n (a
Monte Carlo estimate, as in Math-Shepherd, arXiv 2312.08935, section 3.3), each counted as often
as it was sampled. An answer without a known outcome does not count; where none is known, Q is
None. An answer that begins anew (`fresh`) is another one: it does not count for the one before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from server.traces.schema import NodeRecord, Proposal, Source
from server.types import Status

By = Literal["outcome", "mcts"]
FINISHED = (Status.TERMINAL, Status.TRUNCATED)


@dataclass(eq=False, slots=True)
class Node:
    """A step, with what is known of it."""

    record: NodeRecord
    parent: Node | None = field(default=None, repr=False)
    children: list[Node] = field(default_factory=list, repr=False)
    place: int = 0  # in its answer, whose first step has 0
    outcome: float | None = None  # of the answer that ends here, in [0, 1]
    sampled: bool = False  # the policy drew it, and all steps of its answer before it
    iid: bool = False  # and how often was decided by no score
    known: float = 0.0  # answers through here whose outcome is known
    won: float = 0.0  # and the sum of their outcomes

    @property
    def id(self) -> int:
        return self.record.id

    @property
    def ids(self) -> tuple[int, ...]:
        return self.record.token_ids

    @property
    def finished(self) -> bool:
        return self.record.status in FINISHED

    @property
    def q(self) -> float | None:
        """Of an end: its outcome, whatever was written when the end was taken back."""
        if self.finished:
            return self.outcome
        return self.won / self.known if self.known else None

    @property
    def backed_up(self) -> float | None:
        """The value that the search gave it, where it visited it."""
        record = self.record
        return record.value_sum / record.visits if record.visits else None

    def estimate(self, by: By, least: int) -> float | None:
        """Its value by outcomes, Q, or by the search's backups; None where that is of fewer than
        `least` answers or visits."""
        if by == "mcts":
            return self.backed_up if self.record.visits >= least else None
        return self.q if self.finished or self.known >= least else None

    @property
    def ended(self) -> bool:
        """The policy ended the answer; else its tokens ran out, if it is finished at all."""
        return self.record.status == Status.TERMINAL

    @property
    def proposed(self) -> bool:
        """Whether it was drawn in its state as often as its siblings were, whatever came of it."""
        return self.record.proposal is Proposal.IID

    @property
    def weights(self) -> tuple[float, ...]:
        """1 for each token that the policy chose, 0 for what the server put in."""
        forced = self.record.forced
        chosen = float(self.record.token_source is Source.SAMPLED)
        return (0.0,) * forced + (chosen,) * (len(self.ids) - forced)

    @property
    def first(self) -> bool:
        """Whether an answer begins here."""
        return self.record.fresh or (self.parent is not None and self.parent.parent is None)

    def path(self) -> list[Node]:
        """The steps of the answer this belongs to, first one first (`server.types.Node.path`)."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            nodes.append(node)
            node = None if node.record.fresh else node.parent
        return nodes[::-1]

    def text(self) -> str:
        return "".join(n.record.text for n in self.path())

    def siblings(self) -> list[Node]:
        """What was drawn in the same state, this one among them: the children of its parent that
        answer to the same, and in whose mouth the same words were put."""
        assert self.parent is not None
        return [n for n in self.parent.children if n._state == self._state]

    @property
    def _state(self) -> tuple[object, ...]:
        record = self.record
        return record.prompt_ids, record.fresh, record.behaviour, self.ids[: record.forced]

    def baseline(self) -> float | None:
        """V of the state before this step: the mean Q of the steps that were drawn in it, each as
        often as it was drawn. Of iid proposals only: where a score decided what is drawn, the
        mean is biased. None if no outcome is known."""
        drawn = [n for n in self.siblings() if n.proposed and n.q is not None]
        total = sum(n.record.multiplicity for n in drawn)
        return sum(n.record.multiplicity * (n.q or 0.0) for n in drawn) / total if total else None


def problem_of(record: NodeRecord, place: int) -> str | None:
    """What contradicts itself in the record of the node at `place`."""
    size = len(record.token_ids)
    if record.id != place:
        return f"id: {record.id}"
    if place == 0:
        return "parent: the first node has one" if record.parent is not None else None
    if record.parent is None or not 0 <= record.parent < place:
        return f"parent: {record.parent}; allowed are the nodes before it"
    if not 0 <= record.forced <= size:
        return f"forced: {record.forced} of {size} tokens"
    if record.logprobs is not None and len(record.logprobs) != size - record.forced:
        return f"logprobs: {len(record.logprobs)} for {size - record.forced} tokens"
    if record.logprobs is not None and max(record.logprobs, default=0.0) > 1e-3:
        return f"logprobs: {max(record.logprobs)}; allowed are numbers up to 0"
    if record.multiplicity < 1:
        return f"multiplicity: {record.multiplicity}; allowed are 1 and more"
    if record.status not in list(Status):
        return f"status: {record.status!r}; allowed are {', '.join(Status)}"
    return None
