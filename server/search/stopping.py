"""When a vote has been decided before all of its answers are there.

The answers are looked at in the order they were asked for, each when all before it have landed:
where a vote stops does not depend on timing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from server.errors import ScorerError
from server.reward.certainty import LowestGroup, groups, token_confidence
from server.types import Node, Step


@dataclass(frozen=True, slots=True)
class Ballot:
    """A sampled answer's vote; no key: it was not recognised, has no end, or was refuted."""

    key: str | None
    weight: float = 1.0


class Rule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str

    @abstractmethod
    def asked(self, landed: int) -> int:
        """How many samples may have been asked for once the first `landed` are there."""

    @abstractmethod
    def settled(self, ballots: Sequence[Ballot]) -> bool:
        """Whether more samples would hardly change the vote."""

    @property
    def top_logprobs(self) -> int:
        """Likeliest tokens whose log-probabilities are wanted for each sampled one."""
        return 0

    def floor(self, landed: Sequence[Node]) -> float | None:
        """The confidence below which a sample is aborted; None: it never is."""
        return None

    def watch(self) -> LowestGroup | None:
        """What a sample is measured by while it is written; None: by nothing."""
        return None


class Esc(Rule):
    """Early-stopping self-consistency (Li et al. 2024, arXiv:2401.10480): windows of samples, one
    after the other, until one is unanimous."""

    kind: Literal["esc"] = "esc"
    window: int = Field(5, ge=2, description="samples that must all agree")

    def asked(self, landed: int) -> int:
        return (landed // self.window + 1) * self.window

    def settled(self, ballots: Sequence[Ballot]) -> bool:
        if len(ballots) % self.window:
            return False
        keys = {ballot.key for ballot in ballots[-self.window :]}
        return len(keys) == 1 and None not in keys


class Adaptive(Rule):
    """Adaptive-Consistency (Aggarwal et al. 2023, arXiv:2305.11860, section 3, Beta criterion):
    until the leading answer beats the second with a probability above `threshold`."""

    kind: Literal["adaptive"] = "adaptive"
    threshold: float = Field(0.95, ge=0.5, lt=1)
    parallel: int = Field(4, ge=1, description="samples in flight; 1: as in the paper")

    def asked(self, landed: int) -> int:
        return landed + self.parallel

    def settled(self, ballots: Sequence[Ballot]) -> bool:
        return lead(ballots) > self.threshold


class DeepConf(Rule):
    """DeepConf online (Fu et al. 2025, arXiv:2508.15260, section 3.3): the first `warmup` samples
    give a confidence below which later ones are aborted while they are written, and the vote ends
    when the leading answer has the share `tau` of it. The paper weights votes by confidence: that
    is `choose: weighted` under the reward `confidence` with `measure: lowest_group`."""

    kind: Literal["deepconf"] = "deepconf"
    warmup: int = Field(16, ge=1, description="samples that are never aborted")
    eta: float = Field(
        90, gt=0, le=100, description="percent of the warm-up that would not have been aborted"
    )
    group: int = Field(2048, ge=1, description="tokens over which confidence is averaged")
    tau: float = Field(0.95, gt=0.5, le=1, description="share of the vote that decides it")
    k: int = Field(20, ge=1, le=20, description="likeliest tokens that confidence is made of")
    parallel: int = Field(16, ge=1, description="samples in flight after the warm-up")

    @property
    def top_logprobs(self) -> int:
        return self.k

    def asked(self, landed: int) -> int:
        return self.warmup if landed < self.warmup else landed + self.parallel

    def settled(self, ballots: Sequence[Ballot]) -> bool:
        return len(ballots) >= self.warmup and share(ballots) >= self.tau

    def floor(self, landed: Sequence[Node]) -> float | None:
        if len(landed) < self.warmup:
            return None
        found = [self._lowest(confidences(node)) for node in landed[: self.warmup]]
        return percentile(found, 1 - self.eta / 100)

    def watch(self) -> LowestGroup:
        return LowestGroup(self.group)

    def _lowest(self, found: Sequence[float]) -> float:
        return min(groups(found, self.group), default=float("inf"))


Stopping = Annotated[Esc | Adaptive | DeepConf, Field(discriminator="kind")]


def lead(ballots: Sequence[Ballot]) -> float:
    """P(the leading answer's probability is above the second's), with a uniform prior on the two.

    The regularised incomplete beta function at 1/2, which for counts is a binomial tail.
    """
    counts = Counter(b.key for b in ballots if b.key is not None).most_common(2)
    first, second = [*(count for _, count in counts), 0, 0][:2]
    n = first + second + 1
    return sum(comb(n, k) for k in range(first + 1)) / 2**n if first else 0.0


def share(ballots: Sequence[Ballot]) -> float:
    """Of all weight, the leading answer's."""
    weights: defaultdict[str, float] = defaultdict(float)
    for ballot in ballots:
        if ballot.key is not None:
            weights[ballot.key] += ballot.weight
    total = sum(weights.values())
    return max(weights.values()) / total if total > 0 else 0.0


def confidences(node: Node) -> list[float]:
    """Of each sampled token of the path."""
    return [c for n in node.path() if n.step for c in step_confidences(n.step)]


def step_confidences(step: Step) -> list[float]:
    if step.sampled and not step.tops:
        raise ScorerError("this policy's engine gives no log-probabilities of the likeliest tokens")
    return [token_confidence(top) for top in step.tops if top]


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between the closest ranks."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])
