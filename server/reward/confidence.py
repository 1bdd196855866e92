"""The confidence reward: how sure the policy was of its own tokens. Needs no model.

By token, averaged over a step; a path's value is the mean over its steps:

- `mean`: exp(mean log-probability), the geometric mean of the tokens' probabilities;
- `entropy`: 1 - H / log k, H the entropy of the k likeliest tokens, which are made to sum to 1;
- `share`: the chosen token's probability among those of the k likeliest (Marco-o1, arXiv
  2411.14405).

Over the path so far, wherever its steps end:

- `tail`: as `mean`, of the last `window` tokens, or of the last step;
- `trace`, `lowest_group`, `bottom_groups`, `tail_group`: DeepConf (arXiv 2508.15260, section 3.1).
  A token's confidence is the negative mean log-probability of its k likeliest tokens; a group's the
  mean over a window of tokens, which slides token by token. A path is worth the mean of all its
  tokens, its lowest group, the mean of its lowest tenth of groups, or its last group. These have no
  upper bound: verdicts are logged as they are, and the value is 1 - log k / C, which rises with C
  and is 0 where all k tokens were equally likely. A step's verdict is the same of the windows that
  end in it, and before the first whole window, of all tokens so far.

At temperature 0 log-probabilities are those of temperature 1. Tokens of which the engine says
nothing do not count; if there are no others, the value is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp
from statistics import fmean
from typing import Literal, Self

from pydantic import Field, model_validator

from server.errors import ScorerError
from server.profiles import Aggregate
from server.reward.certainty import bounded, evenness, groups, lowest, share, token_confidence
from server.reward.models import Config, Models, check_logprobs
from server.reward.path import aggregate, unscored
from server.types import Node, Prompt, Score, Scorer, Step

Measure = Literal[
    "mean", "entropy", "share", "tail", "trace", "lowest_group", "bottom_groups", "tail_group"
]
OF_STEPS = ("mean", "entropy", "share")
GROUPED = ("trace", "lowest_group", "bottom_groups", "tail_group")
WINDOW = 2048  # tokens, DeepConf's
BOTTOM = 0.1  # of the groups, DeepConf's
TOPS = {"share": 5, "entropy": 20} | dict.fromkeys(GROUPED, 20)  # likeliest tokens, as published


class Confidence(Config):
    """The policy's own certainty."""

    kind: Literal["confidence"] = "confidence"
    measure: Measure = "mean"
    aggregate: Aggregate | None = Field(
        None, description="of mean, entropy and share: how steps make a path; unset: mean"
    )
    top: int | None = Field(None, ge=2, le=20, description="k, the likeliest tokens looked at")
    window: int | None = Field(
        None,
        ge=1,
        le=1 << 20,
        description="tokens of the tail or of a group; unset: 2048, and for the tail its last step",
    )
    bottom: float = Field(BOTTOM, gt=0, le=1, description="share of the groups in bottom_groups")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.aggregate is not None and self.measure not in OF_STEPS:
            raise ValueError(f"aggregate is for the measures {', '.join(OF_STEPS)}")
        if self.top is not None and self.measure not in TOPS:
            raise ValueError(f"top is for the measures {', '.join(TOPS)}")
        if self.window is not None and self.measure in (*OF_STEPS, "trace"):
            raise ValueError(
                "window is for the measures tail, lowest_group, bottom_groups and tail_group"
            )
        if self.bottom != BOTTOM and self.measure != "bottom_groups":
            raise ValueError("bottom is for the measure bottom_groups")
        return self

    @property
    def top_logprobs(self) -> int:
        return self.top or TOPS.get(self.measure, 0)

    def scorer(self, models: Models) -> Scorer:
        check_logprobs(models.policy, self.top_logprobs, "reward")
        version = models.policy.version
        if self.measure in OF_STEPS:
            return StepScorer(self, version)
        return TailScorer(self, version) if self.measure == "tail" else GroupScorer(self, version)


@dataclass(frozen=True, slots=True)
class StepScorer:
    """`mean`, `entropy` and `share`."""

    settings: Confidence
    version: str  # of the policy
    name: str = "confidence"

    async def score(self, prompt: Prompt, path: Sequence[Node]) -> Score:
        new = path[len(path) - unscored(path) :]
        verdicts = tuple(self._certainty(node.step) for node in new if node.step)
        return Score(aggregate(self.settings.aggregate or "mean", path, verdicts), verdicts)

    def _certainty(self, step: Step) -> float | None:
        """In [0, 1]; None for a step of which nothing is known."""
        if self.settings.measure == "mean":
            found = logprobs(step)
            return min(1.0, exp(fmean(found))) if found else None
        rows = tops(step)
        if self.settings.measure == "entropy":
            return fmean(1 - evenness(row) for row in rows if row) if any(rows) else None
        pairs = zip(logprobs(step), rows, strict=True)
        return fmean(share(p, row) for p, row in pairs if row) if any(rows) else None


@dataclass(frozen=True, slots=True)
class TailScorer:
    """`tail`."""

    settings: Confidence
    version: str
    name: str = "confidence"

    async def score(self, prompt: Prompt, path: Sequence[Node]) -> Score:
        first = len(path) - unscored(path)
        verdicts = tuple(self._tail(path[: i + 1]) for i in range(first, len(path)))
        known = [v for v in (*(n.raw for n in path[:first]), *verdicts) if v is not None]
        return Score(known[-1] if known else 0.0, verdicts)

    def _tail(self, path: Sequence[Node]) -> float | None:
        found: list[float] = []
        window = self.settings.window
        for node in reversed(path):
            assert node.step is not None
            found = [*logprobs(node.step), *found]
            if window is None or len(found) >= window:
                break
        return min(1.0, exp(fmean(found[-(window or len(found)) :]))) if found else None


@dataclass(frozen=True, slots=True)
class GroupScorer:
    """DeepConf's measures."""

    settings: Confidence
    version: str
    name: str = "confidence"
    _confidences: dict[Node, tuple[float, ...]] = field(default_factory=dict)

    async def score(self, prompt: Prompt, path: Sequence[Node]) -> Score:
        known = [self._of(node) for node in path]
        tokens = [c for step in known for c in step]
        first = len(path) - unscored(path)
        end, verdicts = sum(map(len, known[:first])), []
        for step in known[first:]:
            begin, end = end, end + len(step)
            verdicts.append(self._measure(tokens[:end], begin) if step else None)
        value = bounded(self._measure(tokens), self.settings.top_logprobs) if tokens else 0.0
        return Score(value, tuple(verdicts))

    def _of(self, node: Node) -> tuple[float, ...]:
        """The confidence of each token of a step."""
        if node not in self._confidences:
            assert node.step is not None
            found = tuple(token_confidence(row) for row in tops(node.step) if row)
            self._confidences[node] = found
        return self._confidences[node]

    def _measure(self, tokens: Sequence[float], since: int = 0) -> float:
        """Of all windows that end at `since` or later. There must be tokens."""
        measure, window = self.settings.measure, self.settings.window or WINDOW
        if measure == "trace":
            return fmean(tokens[since:])
        if measure == "tail_group":
            return fmean(tokens[-window:])
        part = self.settings.bottom if measure == "bottom_groups" else 0.0
        return lowest(groups(tokens, window, since), part)


def logprobs(step: Step) -> tuple[float, ...]:
    """Of the sampled tokens. Raises `ScorerError` if the engine gives none."""
    if step.sampled and not step.logprobs:
        raise ScorerError("this policy's engine gives no log-probabilities; use another reward")
    return step.logprobs


def tops(step: Step) -> tuple[tuple[float, ...], ...]:
    """Of the sampled tokens; () for one of which nothing is known. Raises `ScorerError`."""
    if step.sampled and not step.tops:
        raise ScorerError(
            "this policy's engine does not give the likeliest tokens' log-probabilities; use the "
            "measure mean or tail, or another reward"
        )
    return step.tops
