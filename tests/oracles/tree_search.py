"""Monte Carlo tree search as its papers write it: one simulation at a time, no shared code.

`make(path, ordinal)` is the textbook's (`tests/oracles/textbook.py`); `rollout` gives, for the
place at which an answer was asked for, its steps from there to the end, as (text of the whole
path, mean log-probability), and its value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import exp, inf, log, sqrt

from tests.oracles.textbook import Key, Made, Make

Rollout = Callable[[str, Key], tuple[list[Made], float]]


@dataclass(eq=False)
class Vertex:
    key: Key
    made: Made | None = None
    n: int = 0
    returns: list[float] = field(default_factory=list)  # evaluations of this very node
    below: list[float] = field(default_factory=list)  # all evaluations backed up through it
    p: float = 0.0
    asked: int = 0
    sampled: int = 0
    cut: bool = False
    children: dict[str, Vertex] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.made is not None and self.made.end

    @property
    def text(self) -> str:
        return self.made.text if self.made else ""

    def mean(self) -> float:
        return sum(self.below) / len(self.below)

    def best(self) -> float:
        """Coulom's Max: the best child's, a leaf's own mean."""
        visited = [child for child in self.children.values() if child.n]
        if visited:
            return max(child.best() for child in visited)
        return sum(self.returns) / len(self.returns)


@dataclass
class Textbook:
    """`rule` is "puct" or "uct"; `maximum` backs up by max; `futile` cuts what scores below."""

    simulations: int
    branch: int
    c: float
    widen: float
    rule: str = "puct"
    maximum: bool = False
    futile: float = 0.0

    def steps(self, make: Make) -> dict[Key, tuple[int, float]]:
        """Visit count and Q of every node, each child being one step."""
        root = Vertex(())
        for _ in range(self.simulations):
            path = self.descend(root)
            leaf = path[-1]
            if leaf.ended:
                assert leaf.made is not None
                self.update(path, leaf.made.value)
                continue
            for child in self.sample(leaf, make):
                assert child.made is not None
                self.update([*path, child], child.made.value)
            self.cut(path)
            if root.cut:
                break
        return self.table(root)

    def solutions(self, rollout: Rollout) -> dict[Key, tuple[int, float]]:
        """The same where a child is a rollout, whose steps all stay in the tree."""
        assert self.branch == 1, "with several rollouts at once their order is not the textbook's"
        root = Vertex(())
        for _ in range(self.simulations):
            path = self.descend(root)
            leaf = path[-1]
            if leaf.ended:
                self.update(path, leaf.returns[0])
                continue
            at, value = self.write(path, rollout)
            if not at[-1].n:
                at[-1].returns.append(value)
                for vertex in at:
                    vertex.n += 1
                    vertex.below.append(value)
        return self.table(root)

    def write(self, path: list[Vertex], rollout: Rollout) -> tuple[list[Vertex], float]:
        """One rollout below the last of `path`; the path to its end."""
        leaf = path[-1]
        steps, value = rollout(leaf.text, (*leaf.key, leaf.asked))
        at = [*path]
        for made in steps:
            above = at[-1]
            if made.text not in above.children:
                above.children[made.text] = Vertex((*above.key, above.asked), made)
            above.asked += 1
            above.sampled += 1
            self.priors(above)
            at.append(above.children[made.text])
        return at, value

    def descend(self, root: Vertex) -> list[Vertex]:
        path = [root]
        while not self.wanted(path[-1]):
            at = path[-1]
            open_ones = [child for child in at.children.values() if not child.cut]
            if at.ended or not open_ones:
                break
            path.append(max(open_ones, key=lambda child: self.bound(at, child)))
        return path

    def bound(self, parent: Vertex, child: Vertex) -> float:
        if child.n == 0:
            return inf
        q = child.best() if self.maximum else child.mean()
        if self.rule == "uct":
            return q + self.c * sqrt(log(parent.n) / child.n)
        return q + self.c * child.p * sqrt(parent.n) / (1 + child.n)

    def wanted(self, vertex: Vertex) -> int:
        if vertex.ended:
            return 0
        if vertex.sampled == 0:
            return self.branch
        half = max(1, self.branch // 2)
        return half if vertex.sampled + half <= self.branch * vertex.n**self.widen else 0

    def sample(self, leaf: Vertex, make: Make) -> list[Vertex]:
        fresh: list[Vertex] = []
        for _ in range(self.wanted(leaf)):
            key = (*leaf.key, leaf.sampled)
            made = make(key)
            if made.text not in leaf.children:
                leaf.children[made.text] = Vertex(key, made)
                fresh.append(leaf.children[made.text])
            leaf.sampled += 1
        self.priors(leaf)
        return fresh

    def priors(self, vertex: Vertex) -> None:
        weights = [exp(child.made.logprob) for child in vertex.children.values() if child.made]
        for child in vertex.children.values():
            assert child.made is not None
            child.p = exp(child.made.logprob) / sum(weights)

    def update(self, path: list[Vertex], value: float) -> None:
        path[-1].returns.append(value)
        for vertex in path:
            vertex.n += 1
            vertex.below.append(value)

    def cut(self, path: list[Vertex]) -> None:
        """A futile leaf is cut; and a node whose children all are."""
        for child in path[-1].children.values():
            assert child.made is not None
            child.cut |= not child.made.end and child.made.value < self.futile
        for vertex in reversed(path):
            if all(child.cut for child in vertex.children.values()):
                vertex.cut = True

    def table(self, root: Vertex) -> dict[Key, tuple[int, float]]:
        found: dict[Key, tuple[int, float]] = {}
        todo = [root]
        while todo:
            at = todo.pop()
            found[at.key] = (at.n, at.best() if self.maximum else at.mean())
            todo += at.children.values()
        return found
