"""Particle filtering over steps: paths are drawn in proportion to their weight, not picked.

Puri et al. 2025 (arXiv:2502.01618): n particles take a step each, the PRM weighs them, and n are
drawn from a softmax over the log-odds of its verdicts, so that a verdict r has the weight
r / (1 - r). A particle drawn k times goes on in k ways; finished ones
keep their weight and may be drawn too, so good answers end the search early. `threshold` draws
only when the effective sample size has fallen that far; until then weights multiply.

Drawing needs the whole generation. Without `lockstep` the search is a particle cascade instead
(Paige, Wood, Doucet & Teh 2014, arXiv:1407.2864, section 3): each particle compares itself with
those that came to its depth before it, and goes on at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from server.search.answers import Choice
from server.search.core import Search
from server.search.level import grow_all
from server.search.resampling import Queue, Resampling, effective_size, log_odds, resample
from server.search.strategy import Bound, Convincible
from server.types import Node


class Particles(Convincible):
    kind: Literal["particles"] = "particles"
    bounds: ClassVar[dict[str, Bound]] = {"n": "width"}
    n: int = Field(16, ge=1, description="particles")
    temperature: float = Field(
        1.0, ge=0.01, le=100, description="of the softmax over the log-odds of scores"
    )
    threshold: float = Field(
        1.0,
        ge=0,
        le=1,
        description="in lockstep: effective sample size, as a share of n, that has particles "
        "drawn anew; 1: at every step, 0: never",
    )
    resampling: Resampling = Field("multinomial", description="in lockstep: how they are drawn")
    lockstep: bool = Field(
        True, description="a generation is drawn when all of it has landed; no: a cascade"
    )
    choose: Choice = "best"

    @property
    def stepwise(self) -> bool:
        return True

    async def run(self, search: Search) -> None:
        if self.lockstep:
            await self._filter(search)
        else:
            self._cascade(search)

    async def _filter(self, search: Search) -> None:
        """`particles` may hold a finished node several times, an open one only between a draw
        and the step that follows it."""
        particles = [search.root] * self.n
        weights = [0.0] * self.n
        while any(not node.finished for node in particles):
            grown = await grow_all(search, [n for n in particles if not n.finished], self)
            landed = iter(grown)
            moved = [node if node.finished else next(landed) for node in particles]
            # One for whose step the budget did not suffice is lost.
            alive = [(n, w) for n, w in zip(moved, weights, strict=True) if n is not None]
            particles = [node for node, _ in alive]
            weights = [w + self._weight(node) for node, w in alive]
            if any(not node.finished for node in particles) and self._uneven(weights):
                particles = self._draw(search, particles, weights)
                weights = [0.0] * len(particles)

    def _weight(self, node: Node) -> float:
        return log_odds(node.value) / self.temperature

    def _uneven(self, weights: Sequence[float]) -> bool:
        if self.threshold in (0, 1):
            return self.threshold == 1
        return effective_size(weights) <= self.threshold * len(weights)

    def _draw(
        self, search: Search, particles: Sequence[Node], weights: Sequence[float]
    ) -> list[Node]:
        """The next generation; who is not drawn is given up."""
        counts = resample(weights, self.resampling, search.rng)
        for node, count in zip(particles, counts, strict=True):
            node.resampled = True
            if not count:
                search.prune(node)
        return [n for n, count in zip(particles, counts, strict=True) for _ in range(count)]

    def _cascade(self, search: Search) -> None:
        queues: defaultdict[int, Queue] = defaultdict(lambda: Queue(self.n))

        async def walk(parent: Node, weight: float) -> None:
            node = await search.grow(parent)
            if self.ends(search, node) or node.finished:
                return
            queue = queues[node.depth]
            count, each = queue.offspring(weight + self._weight(node), search.rng)
            node.resampled = True
            if not count:
                search.prune(node)
            for _ in range(count):
                search.spawn(walk(node, each))

        for _ in range(self.n):
            search.spawn(walk(search.root, 0.0))

    def worst_case(self, answer: int, path: int, step: int) -> int:
        return self.n * path

    def most_answers(self) -> int:
        return self.n
