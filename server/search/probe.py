"""What a few sampled answers tell of a question: how hard it is, and what an answer costs.

Model-predicted difficulty (Snell et al. 2024, arXiv:2408.03314, section 3.2) is the mean score of
sampled answers. Here it is what the leading answer has of all that the samples could have scored,
so that samples which disagree make a question hard, whatever each of them is worth.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from server.search.core import Search
from server.search.stopping import Ballot, lead
from server.types import Node


@dataclass(frozen=True, slots=True)
class Seen:
    """Of the answers that a search has by now. One that a verifier refuted speaks for nothing."""

    answers: int
    tokens_per_answer: float
    agreement: float  # share of the leading answer
    lead: float  # P(it beats the second), were there more of these samples
    best_score: float | None
    difficulty: float  # in [0, 1]

    def facts(self) -> dict[str, Any]:
        """Rounded, for the record."""
        found = asdict(self).items()
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in found}


def seen(search: Search) -> Seen:
    finished = [node for node in search.nodes if node.finished]
    standing = [node for node in finished if not node.refuted]
    ballots = [Ballot(search.key(n) if n.ended else None, _worth(n)) for n in standing]
    votes, worth = _sums(ballots)
    n = len(finished)
    return Seen(
        answers=n,
        tokens_per_answer=fmean(node.tokens() for node in finished) if n else 0.0,
        agreement=max(votes.values(), default=0) / n if n else 0.0,
        lead=lead(ballots),
        best_score=max((n.score for n in standing if n.score is not None), default=None),
        difficulty=1 - max(worth.values(), default=0.0) / n if n else 1.0,
    )


def _sums(ballots: Sequence[Ballot]) -> tuple[dict[str, int], dict[str, float]]:
    votes: defaultdict[str, int] = defaultdict(int)
    worth: defaultdict[str, float] = defaultdict(float)
    for ballot in ballots:
        if ballot.key is not None:
            votes[ballot.key] += 1
            worth[ballot.key] += ballot.weight
    return votes, worth


def _worth(node: Node) -> float:
    """Its score, as far as it lies in [0, 1]."""
    return min(1.0, max(0.0, node.score or 0.0))
