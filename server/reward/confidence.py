"""The confidence reward: how sure the policy was of its own tokens. Needs no model.

A step's verdict is exp(mean token log-probability), the geometric mean of its tokens'
probabilities under the sampling distribution; a path's value is the mean over its steps, as
in self-certainty (arXiv 2502.18581) and the trace confidence of DeepConf (arXiv 2508.15260).
At temperature 0 every token has probability 1, and so has every path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from statistics import fmean
from typing import Literal

from server.errors import ScorerError
from server.profiles import Aggregate
from server.reward.models import Config, Models
from server.reward.path import aggregate, unscored
from server.types import Node, Prompt, Score, Scorer, Step


class Confidence(Config):
    """The policy's own certainty."""

    kind: Literal["confidence"] = "confidence"
    aggregate: Aggregate = "mean"

    def check(self, prompt: Prompt) -> None:
        """Any prompt will do."""

    def scorer(self, models: Models) -> Scorer:
        return ConfidenceScorer(self.aggregate, models.policy.version)


@dataclass(slots=True)
class ConfidenceScorer:
    rule: Aggregate
    version: str  # of the policy
    name: str = "confidence"

    async def score(self, prompt: Prompt, path: Sequence[Node]) -> Score:
        new = path[len(path) - unscored(path) :]
        verdicts = tuple(certainty(node.step) for node in new if node.step)
        return Score(aggregate(self.rule, path, verdicts), verdicts)


def certainty(step: Step) -> float | None:
    """In [0, 1]; None for a step without tokens."""
    if step.count == 0:
        return None
    if not step.logprobs:
        raise ScorerError("this policy's engine gives no log-probabilities; use another reward")
    return min(1.0, exp(fmean(step.logprobs)))
