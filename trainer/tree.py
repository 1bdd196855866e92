"""A trace as training sees it: its answers, and what the policy saw when it wrote them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from server.errors import TraceError
from server.profiles import Profile, choose
from server.traces.codec import check
from server.traces.schema import NodeRecord, Proposal, Trace
from server.types import Message
from trainer.errors import DataError
from trainer.node import Node, problem_of


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
        if problem := problem_of(record, len(self.nodes)):
            raise DataError(f"{place}: {problem}")
        node = Node(record)
        if record.parent is not None:
            node.parent = parent = self.nodes[record.parent]
            parent.children.append(node)
            begins = node.first
            node.place = 0 if begins else parent.place + 1
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

    def states(self) -> Iterator[list[Node]]:
        """The steps that were drawn in one state, state by state; no lookahead of the search's."""
        seen: set[Node] = set()
        for node in self.steps:
            if node not in seen:
                siblings = node.siblings()
                seen.update(siblings)
                yield [n for n in siblings if n.record.proposal is not Proposal.GREEDY]

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
