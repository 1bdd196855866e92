"""Voting: sample N whole answers and let equal ones vote together.

Majority is self-consistency (Wang et al. 2022, arXiv:2203.11171) and needs no scorer; weighted
adds up the scores of equal answers (Li et al. 2022, arXiv:2206.02336).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from server.search.answers import Choice
from server.search.core import Search
from server.search.strategy import BaseStrategy, Bound
from server.types import Stop


class Vote(BaseStrategy):
    kind: Literal["vote"] = "vote"
    bounds: ClassVar[dict[str, Bound]] = {"n": "width"}
    n: int = Field(16, ge=1, description="answers")
    choose: Choice = "majority"

    async def run(self, search: Search) -> None:
        search.expand(search.root, self.n, until=Stop.END, score=self.choose != "majority")

    def worst_case(self, answer: int, step: int) -> int:
        return self.n * answer

    def most_answers(self) -> int:
        return self.n
