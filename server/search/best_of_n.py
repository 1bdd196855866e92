"""Best of N: sample N whole answers, keep the one the scorer likes most.

Cobbe et al. 2021 (arXiv:2110.14168), section 4. Answers are scored as they arrive, so an early
stop aborts the rest.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from server.search.answers import Choice
from server.search.core import Search
from server.search.strategy import BaseStrategy, Bound
from server.types import Stop


class BestOfN(BaseStrategy):
    kind: Literal["best_of_n"] = "best_of_n"
    bounds: ClassVar[dict[str, Bound]] = {"n": "width"}
    n: int = Field(8, ge=1, description="answers")
    stop_at: float = Field(
        1.0, gt=0, le=1, description="an answer scored this high ends the search"
    )
    choose: Choice = "best"

    async def run(self, search: Search) -> None:
        async for answer in search.expand(search.root, self.n, until=Stop.END):
            if answer.value >= self.stop_at:
                return search.stop()

    def worst_case(self, answer: int, step: int) -> int:
        return self.n * answer

    def most_answers(self) -> int:
        return self.n
