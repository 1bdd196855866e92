"""A trace as training sees it: answers, what the policy saw of them, and what became of them.

Q(n), the value of a step in its state, is the mean outcome of the answers that go through n (a
Monte Carlo estimate, as in Math-Shepherd, arXiv 2312.08935, section 3.3), each counted as often
as it was sampled. An answer without a known outcome does not count; where none is known, Q is
None. An answer that begins anew (`fresh`) is another one: it does not count for the one before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from server.errors import TraceError
from server.profiles import Profile, choose
from server.traces.codec import check
from server.traces.schema import NodeRecord, Proposal, Source, Trace
from server.types import Message, Status
from trainer.errors import DataError

FINISHED = (Status.TERMINAL, Status.TRUNCATED)


@dataclass(eq=False, slots=True)
class Node:
    """A step, with what is known of it."""

    record: NodeRecord
    parent: Node | None = field(default=None, repr=False)
    children: list[Node] = field(default_factory=list, repr=False)
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


@dataclass(frozen=True, slots=True)
class Piece:
    """A step as part of a sequence."""

    node: Node
    size: int  # of its tokens; fewer than it has where the policy's end was taken back

    @property
    def ids(self) -> tuple[int, ...]:
        return self.node.ids[: self.size]


@dataclass(frozen=True, slots=True)
class Turn:
    """A sequence as the policy saw and wrote it."""

    prompt: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        return (*self.prompt, *(i for piece in self.pieces for i in piece.ids))


class Tree:
    """`where` is its file, for errors. `outcomes` are verdicts by node that come before the
    trace's own; `profile` is the policy's, by its name if None. Raises `DataError`: the trace
    contradicts itself."""

    def __init__(
        self,
        trace: Trace,
        where: str,
        outcomes: Mapping[int, float | None] | None = None,
        profile: Profile | None = None,
    ):
        self.trace, self.where = trace, f"{where}, trace {trace.trace_id!r}"
        self.profile = profile or choose(trace.versions.model_id)
        try:
            check(trace)
        except TraceError as error:
            raise DataError(f"{where}: {error}") from error
        self.nodes: list[Node] = []
        for record in trace.nodes:
            self._add(record)
        if not self.nodes:
            raise DataError(f"{self.where}: nodes: none, not even a root")
        self.root = self.nodes[0]
        if trace.selected is not None and not 0 < trace.selected < len(self.nodes):
            raise DataError(f"{self.where}: selected: there is no node {trace.selected}")
        self._judge(outcomes or {})

    def _add(self, record: NodeRecord) -> None:
        place = f"{self.where}, node {len(self.nodes)}"
        if problem := _problem(record, len(self.nodes)):
            raise DataError(f"{place}: {problem}")
        node = Node(record)
        if record.parent is not None:
            node.parent = parent = self.nodes[record.parent]
            parent.children.append(node)
            begins = node.first
            drawn = record.proposal in (Proposal.IID, Proposal.RESAMPLED)
            node.sampled = drawn and (begins or parent.sampled)
            node.iid = record.proposal is Proposal.IID and (begins or parent.iid)
        self.nodes.append(node)

    def _judge(self, outcomes: Mapping[int, float | None]) -> None:
        trace = self.trace
        for node in self.nodes:
            if not node.finished:
                continue
            chosen = node.id == trace.selected
            said = (
                *(outcomes.get(node.id), node.record.outcome),
                *((trace.outcome, trace.feedback) if chosen else ()),
            )
            node.outcome = next((o for o in said if o is not None), None)
            if node.outcome is None:
                continue
            if not 0 <= node.outcome <= 1:
                raise DataError(
                    f"{self.where}, node {node.id}: outcome: {node.outcome}; allowed are 0 to 1"
                )
            if node.sampled:
                self._count(node, node.outcome)

    def _count(self, leaf: Node, outcome: float) -> None:
        times = leaf.record.multiplicity
        for node in leaf.path():
            node.known += times
            node.won += times * outcome

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was asked."""
        chat = self.trace.prompt_messages
        return tuple(Message(m.get("role", ""), m.get("content", "")) for m in chat)

    @property
    def ends(self) -> list[Node]:
        """The finished answers, in the order of their ids."""
        return [n for n in self.nodes if n.finished]

    @property
    def judged(self) -> list[Node]:
        return [n for n in self.ends if n.outcome is not None]

    @property
    def steps(self) -> list[Node]:
        return self.nodes[1:]

    @property
    def selected(self) -> Node | None:
        return None if self.trace.selected is None else self.nodes[self.trace.selected]

    def seen(self, node: Node) -> tuple[int, ...]:
        """What the policy saw before it wrote the step."""
        written: list[tuple[int, ...]] = []
        while node.parent is not None:
            if node.record.prompt_ids is not None:
                return _joined(node.record.prompt_ids, written)
            node = node.parent
            written.append(node.ids)
        return _joined(self.trace.prompt_ids, written)

    def turns(self, end: Node) -> list[Turn]:
        """The sequences that the answer up to `end` was written in, first one first.

        A new one begins where the policy was shown something else than what it had written; not
        where only its end token was taken back.
        """
        turns: list[Turn] = []
        for node in end.path():
            piece = Piece(node, len(node.ids))
            shown = node.record.prompt_ids
            if not turns:
                turns.append(Turn(self.seen(node), (piece,)))
            elif shown is None:
                turns[-1] = Turn(turns[-1].prompt, (*turns[-1].pieces, piece))
            elif (open_ := _taken_back(turns[-1], shown)) is not None:
                turns[-1] = Turn(open_.prompt, (*open_.pieces, piece))
            else:
                turns.append(Turn(shown, (piece,)))
        return turns

    def paths(self, steps: Sequence[Node]) -> Iterator[Node]:
        """Ends of paths, in the order of ids, that together go through all of `steps`."""
        wanted = {n.id for n in steps}
        inner = {p.id for n in steps for p in n.path()[:-1]}
        return (n for n in self.nodes if n.id in wanted and (n.finished or n.id not in inner))


def _joined(prompt: tuple[int, ...], written: list[tuple[int, ...]]) -> tuple[int, ...]:
    return (*prompt, *(i for ids in reversed(written) for i in ids))


def _taken_back(turn: Turn, shown: tuple[int, ...]) -> Turn | None:
    """`turn` without the tokens at its end that `shown` lacks; None if it is another one."""
    ids, last = turn.ids, turn.pieces[-1]
    gone = len(ids) - len(shown)
    if not 0 <= gone < last.size or ids[: len(shown)] != shown:
        return None
    return Turn(turn.prompt, (*turn.pieces[:-1], Piece(last.node, last.size - gone)))


def _problem(record: NodeRecord, place: int) -> str | None:
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
