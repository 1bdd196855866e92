"""Potential-based shaping (Ng, Harada and Russell 1999): r'(s, a, s') = r + gamma phi(s') - phi(s).

What it adds telescopes: whatever the potential phi, the same policies are optimal with it as
without, provided that phi is 0 where an episode ends. (At its start phi is 0 here, too, so that a
finished path has the same discounted return as without.) What it changes is when the return is
known: a path that is not finished is worth its rewards so far plus the discounted potential of
where it stands, so that a verifier's one verdict at the end is spread over the steps before.

It matters where rewards are added up step by step: for a trainer that reads the raw verdicts of a
trace as rewards, and for returns that MCTS backs up. A search that only ranks finished answers
chooses the same one with it as without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import fsum
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import Field

from server.reward.composite import Composite
from server.reward.models import Config
from server.reward.parts import CompositeScorer, Part, Views

if TYPE_CHECKING:
    Reward = Config  # as in composite.py

Number = TypeVar("Number", float, Fraction)


class Shaped(Composite):
    """`reward`, shaped by `potential`: their raw verdicts on a step are r and phi(s').

    A step without a verdict has reward 0, and the potential of the step before. The value of a
    path is its discounted return.
    """

    kind: Literal["shaped"] = "shaped"
    reward: Reward
    potential: Reward
    gamma: float = Field(1.0, gt=0, le=1, description="discount of each further step")

    def pieces(self) -> Mapping[str, Config]:
        return {"reward": self.reward, "potential": self.potential}

    def combined(self, parts: Sequence[Part]) -> CompositeScorer:
        return ShapedScorer("shaped", parts, self.gamma)


class ShapedScorer(CompositeScorer):
    def __init__(self, kind: str, parts: Sequence[Part], gamma: float):
        super().__init__(kind, parts)
        self.gamma = gamma

    def value(self, paths: Sequence[Views]) -> float:
        return fsum(self.gamma**step * r for step, r in enumerate(self._rewards(paths)))

    def verdict(self, paths: Sequence[Views], step: int) -> float:
        return self._rewards(paths)[step]

    def _rewards(self, paths: Sequence[Views]) -> list[float]:
        """One for each step of the path."""
        reward, potential = paths
        states = phi(potential)
        return [
            shaped(view.raw or 0.0, before, after, self.gamma)
            for view, before, after in zip(reward, states, states[1:], strict=False)
        ]


def shaped(reward: Number, before: Number, after: Number, gamma: Number) -> Number:
    """The reward of a step from a state of potential `before` to one of potential `after`."""
    return reward + gamma * after - before


def phi(path: Views) -> list[float]:
    """The potential before a path's first step and after each: 0 at the start and at an end."""
    states, last = [0.0], 0.0
    for view in path:
        last = last if view.raw is None else view.raw
        states.append(0.0 if view.finished else last)
    return states
