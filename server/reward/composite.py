"""Rewards made of rewards: a weighted sum, a product, a gate; any of them inside another.

The parts are scored at once; the trace has each one's raw verdicts, by its kind (`prm`, and
`prm#2` for a second one). Each part makes its own value of a path (last, min, prod, mean); these
values are combined. A combined verdict on a step is made of the parts' raw ones, as they are; a
step on which one of them has none has no combined verdict.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from math import fsum, prod
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.reward.models import Config, Models
from server.reward.parts import CompositeScorer, Part, Views, located
from server.types import Node, Prompt, Scorer

if TYPE_CHECKING:
    Reward = Config  # at run time the union of all rewards, which `server.reward` puts in

DEPTH = 3  # of composites inside each other
LEAVES = 16  # rewards that a composite is made of in the end


class Composite(Config):
    """Base of the rewards that are made of rewards."""

    @abstractmethod
    def pieces(self) -> Mapping[str, Config]:
        """The rewards it is made of, by their place in it."""

    @abstractmethod
    def combined(self, parts: Sequence[Part]) -> CompositeScorer:
        """The scorer over those of the pieces, in their order."""

    @property
    def depth(self) -> int:
        inner = (p.depth for p in self.pieces().values() if isinstance(p, Composite))
        return 1 + max(inner, default=0)

    def leaves(self) -> dict[str, Config]:
        """The rewards it is made of in the end, in order, by a name of their own."""
        counts: Counter[str] = Counter()
        found = {}
        for leaf in (leaf for piece in self.pieces().values() for leaf in _leaves(piece)):
            counts[leaf.kind] += 1
            n = counts[leaf.kind]
            found[leaf.kind if n == 1 else f"{leaf.kind}#{n}"] = leaf
        return found

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.depth > DEPTH:
            raise ValueError(f"at most {DEPTH} rewards of rewards inside each other are allowed")
        if len(self.leaves()) > LEAVES:
            raise ValueError(f"at most {LEAVES} rewards in all are allowed")
        return self

    def check(self, prompt: Prompt) -> None:
        for place, piece in self.pieces().items():
            with located(place):
                piece.check(prompt)

    def scorer(self, models: Models) -> Scorer:
        names = iter(self.leaves())
        parts = []
        for place, piece in self.pieces().items():
            with located(place):
                scorer = piece.scorer(models)
            inner = piece.leaves() if isinstance(piece, Composite) else {piece.kind: piece}
            parts.append(Part(scorer, place, {name: next(names) for name in inner}))
        return self.combined(parts)

    @property
    def top_logprobs(self) -> int:
        return max(piece.top_logprobs for piece in self.pieces().values())

    @property
    def partial(self) -> bool:
        return any(piece.partial for piece in self.pieces().values())

    def context(self, models: Models) -> int:
        return min(piece.context(models) for piece in self.pieces().values())

    def outcome(self, node: Node) -> float | None:
        verdicts = (node.parts.get(n) for n, leaf in self.leaves().items() if leaf.verifies)
        within = next((v for v in verdicts if v is not None), None)
        return within if node.outcome is None else node.outcome


def _leaves(reward: Config) -> list[Config]:
    return list(reward.leaves().values()) if isinstance(reward, Composite) else [reward]


class Weighted(BaseModel):
    """A term of a sum."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    weight: float = Field(1.0, gt=0, le=1e6, allow_inf_nan=False)
    reward: Reward


class Sum(Composite):
    """A weighted sum over the sum of the weights: values in [0, 1] stay there."""

    kind: Literal["sum"] = "sum"
    of: Annotated[tuple[Weighted, ...], Field(min_length=1, max_length=LEAVES)]

    def pieces(self) -> Mapping[str, Config]:
        return {f"of.{i}.reward": term.reward for i, term in enumerate(self.of)}

    def combined(self, parts: Sequence[Part]) -> CompositeScorer:
        return SumScorer("sum", parts, [term.weight for term in self.of])


class Product(Composite):
    """The product of the values."""

    kind: Literal["product"] = "product"
    of: Annotated[tuple[Reward, ...], Field(min_length=1, max_length=LEAVES)]

    def pieces(self) -> Mapping[str, Config]:
        return {f"of.{i}": reward for i, reward in enumerate(self.of)}

    def combined(self, parts: Sequence[Part]) -> CompositeScorer:
        return ProductScorer("product", parts)


class Gate(Composite):
    """One reward decides whether another's value counts.

    Without a threshold the value is the gate's times the other's, and `floor` where the gate's is
    0; with one, the other's where the gate's reaches it, else `floor`. A gate that has no verdict
    on any step of a path, as a verifier before its end, is open.
    """

    kind: Literal["gate"] = "gate"
    by: Reward = Field(description="the gate")
    of: Reward = Field(description="what counts where it is open")
    threshold: float | None = Field(None, gt=0, le=1, description="the gate's value that opens it")
    floor: float = Field(0.0, ge=-1, le=1, description="the value of a path that it refuses")

    def pieces(self) -> Mapping[str, Config]:
        return {"by": self.by, "of": self.of}

    def combined(self, parts: Sequence[Part]) -> CompositeScorer:
        return GateScorer("gate", parts, self.threshold, self.floor)


class SumScorer(CompositeScorer):
    def __init__(self, kind: str, parts: Sequence[Part], weights: Sequence[float]):
        super().__init__(kind, parts)
        self.weights = weights

    def value(self, paths: Sequence[Views]) -> float:
        return self._mean([path[-1].value for path in paths])

    def verdict(self, paths: Sequence[Views], step: int) -> float | None:
        raws = verdicts(paths, step)
        return None if raws is None else self._mean(raws)

    def _mean(self, values: Sequence[float]) -> float:
        terms = (w * v for w, v in zip(self.weights, values, strict=True))
        return fsum(terms) / fsum(self.weights)


class ProductScorer(CompositeScorer):
    def value(self, paths: Sequence[Views]) -> float:
        return prod(path[-1].value for path in paths)

    def verdict(self, paths: Sequence[Views], step: int) -> float | None:
        raws = verdicts(paths, step)
        return None if raws is None else prod(raws)


class GateScorer(CompositeScorer):
    """A step's verdict is the other's: the gate has its say on the path."""

    def __init__(self, kind: str, parts: Sequence[Part], threshold: float | None, floor: float):
        super().__init__(kind, parts)
        self.threshold, self.floor = threshold, floor

    def value(self, paths: Sequence[Views]) -> float:
        gate, other = paths
        worth = other[-1].value
        if all(view.raw is None for view in gate):
            return worth
        if self.threshold is not None:
            return worth if gate[-1].value >= self.threshold else self.floor
        return gate[-1].value * worth if gate[-1].value else self.floor

    def verdict(self, paths: Sequence[Views], step: int) -> float | None:
        return paths[1][step].raw


def verdicts(paths: Sequence[Views], step: int) -> list[float] | None:
    """The parts' raw ones on a step; None if one has none."""
    raws = [path[step].raw for path in paths]
    known = [raw for raw in raws if raw is not None]
    return known if len(known) == len(raws) else None
