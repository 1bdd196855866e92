"""From numbers on steps to rows of tokens: what each step weighs, in which row.

A step that several answers share has its weight in one row (`once`), or a share of it in the row
of each (`per_leaf`): the sum is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import nan
from typing import Literal

from server.traces.schema import Proposal, Trace
from trainer.node import Node
from trainer.rows import TokenRow
from trainer.tree import Piece, Tree, Turn

Prefixes = Literal["once", "per_leaf"]
WEIGHTS = ("ce", "rl", "advantage", "ref_kl")  # streams of a row, fields of a mark


@dataclass(frozen=True, slots=True)
class Mark:
    """What each token of a step that the policy chose is to count in the parts of the loss; and
    the verdict that is asked for after one of its tokens."""

    ce: float = 0.0
    rl: float = 0.0
    advantage: float = 0.0
    ref_kl: float = 0.0
    verdict: float = nan
    after: int = 0  # of its tokens the verdict comes


Marks = Callable[[Node, Node], Mark | None]  # of a step, in the row of the answer with this end


def sequences(
    tree: Tree,
    ends: Iterable[Node],
    marks: Marks,
    prefixes: Prefixes = "once",
    labels: Sequence[int] = (),
) -> Iterator[TokenRow]:
    """The rows of the answers with these ends; none for a sequence on which nothing counts.

    `once`: the first answer through a step has it. `labels` give the verdicts of the marks.
    """
    done: set[Node] = set()
    for end in ends:
        for turn in tree.turns(end):
            found = [
                None if prefixes == "once" and piece.node in done else marks(piece.node, end)
                for piece in turn.pieces
            ]
            done.update(p.node for p, mark in zip(turn.pieces, found, strict=True) if mark)
            row = _row(tree, turn, found, labels)
            if row.asks:
                yield row


def weighted(tree: Tree, weights: Mapping[Node, float]) -> Iterator[TokenRow]:
    """Rows of steps whose cross-entropy weighs so much, each in one row; others weigh nothing."""

    def mark(node: Node, end: Node) -> Mark | None:
        return Mark(ce=weights[node]) if node in weights else None

    return sequences(tree, tree.paths(list(weights)), mark)


def _row(tree: Tree, turn: Turn, marks: Sequence[Mark | None], labels: Sequence[int]) -> TokenRow:
    before = len(turn.prompt)
    streams: dict[str, list[float]] = {name: [0.0] * before for name in WEIGHTS}
    verdict = [nan] * before
    for piece, found in zip(turn.pieces, marks, strict=True):
        mark = found or Mark()
        for name, values in streams.items():
            values += [getattr(mark, name) * w for w in piece.node.weights[: piece.size]]
        verdict += [mark.verdict if n == mark.after else nan for n in range(piece.size)]
    ce, rl, ref_kl = streams["ce"], streams["rl"], streams["ref_kl"]
    asked = any(v == v for v in verdict)
    logp, temperature = logged(tree.trace, turn)
    return TokenRow(
        trace_id=tree.trace.trace_id,
        problem_id=problem(tree.trace),
        ids=turn.ids,
        ce=ce if any(ce) else (),
        rl=rl if any(rl) else (),
        advantage=streams["advantage"] if any(rl) else (),
        ref_kl=ref_kl if any(ref_kl) else (),
        logp=logp,
        temperature=temperature,
        version=version(turn),
        verdict=verdict if asked else (),
        labels=labels if asked else (),
    )


def logged(trace: Trace, turn: Turn) -> tuple[Sequence[float], float]:
    """Log-probabilities of a sequence, and the temperature that they are under.

    None where they are not those that the tokens were sampled by: under top-p and the like, at
    temperature 0, or logged before temperature was applied.
    """
    temperature = float(trace.sampling.get("temperature", 1.0))
    raw = trace.sampling.get("logprobs_mode", "processed") != "processed"
    if temperature <= 0 or _truncated(trace) or (raw and temperature != 1):
        return (), temperature if temperature > 0 else 1.0
    logp = [nan] * len(turn.prompt)
    for piece in turn.pieces:
        logp += _logprobs(piece)
    return (logp if any(p == p for p in logp) else ()), temperature


def _truncated(trace: Trace) -> bool:
    """Whether the policy was sampled from another distribution than its own at a temperature."""
    off = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    return any(trace.sampling.get(name, value) != value for name, value in off.items())


def _logprobs(piece: Piece) -> list[float]:
    record = piece.node.record
    if record.logprobs is None or record.proposal is Proposal.GREEDY:
        return [nan] * piece.size
    values = (*[nan] * record.forced, *record.logprobs)
    weights = piece.node.weights
    return [v if w else nan for v, w in zip(values, weights, strict=True)][: piece.size]


def version(turn: Turn) -> str:
    """Of the policy that wrote a sequence; several where it was changed meanwhile."""
    spans = (s for p in turn.pieces for s in p.node.record.policy_version_spans)
    return ",".join(dict.fromkeys(s.version for s in spans if s.end > s.start))


def problem(trace: Trace) -> str:
    """What traces of one problem have in common: its id, else what was asked."""
    if trace.problem_id is not None:
        return trace.problem_id
    asked = trace.prompt_messages or trace.prompt_ids
    return blake2b(repr(asked).encode(), digest_size=8).hexdigest()
