"""Diverse verifier tree search: several trees that never meet, each greedy in the scorer.

Beeching, Tunstall & Rush 2024 (Hugging Face, "Scaling test-time compute with open models",
section on DVTS; search-and-learn): n / m subtrees, each of which writes m steps, keeps the one
the PRM likes most and goes on from there until that one is finished. Trees do not compete, so
that a large n does not collapse into copies of one beam, and none waits for another.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from server.search.answers import Choice
from server.search.core import Search
from server.search.strategy import Bound, Convincible, Lookahead
from server.types import Node


class DVTS(Convincible):
    kind: Literal["dvts"] = "dvts"
    bounds: ClassVar[dict[str, Bound]] = {
        "trees": "width",
        "branch": "width",
        "lookahead": "depth",
    }
    trees: int = Field(4, ge=1, description="trees, side by side")
    branch: int = Field(4, ge=1, description="steps that a tree chooses from, each time")
    lookahead: Lookahead = 0
    choose: Choice = "best"

    @property
    def stepwise(self) -> bool:
        return True

    async def run(self, search: Search) -> None:
        for _ in range(self.trees):
            search.spawn(self._descend(search))

    async def _descend(self, search: Search) -> None:
        node = search.root
        while not node.finished:
            steps: list[Node] = []
            async for step in search.expand(node, self.branch, lookahead=self.lookahead):
                if self.ends(search, step):
                    return
                steps.append(step)
            if not steps:  # the budget is spent
                return
            node = max(steps, key=lambda n: n.rank)
            for other in steps:
                if other is not node:
                    search.prune(other)

    def worst_case(self, answer: int, path: int, step: int) -> int:
        return self.trees * self.branch * path * (1 + self.lookahead)

    def most_answers(self) -> int:
        return self.trees * self.branch * (1 + self.lookahead)
