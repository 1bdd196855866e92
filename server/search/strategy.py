"""What every strategy is: a frozen pydantic class that holds its settings and its `run`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from server.search.answers import Choice
from server.search.core import Search
from server.search.operators import Action
from server.types import Node

Bound = Literal["width", "simulations", "depth"]  # of server.config.Limits
Lookahead = Annotated[
    int, Field(ge=0, description="greedy steps beyond each step, by whose end it is scored")
]


class BaseStrategy(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    bounds: ClassVar[dict[str, Bound]] = {}  # field -> the server's limit that caps it
    kind: str
    choose: Choice
    depth: int | None = Field(
        None, ge=1, description="steps of an answer, at most; open: the server's limit"
    )
    behaviours: tuple[Action, ...] = Field(
        (),
        max_length=16,
        description="what the children of a node begin with, in turn; none: they just go on",
    )

    @property
    def top_logprobs(self) -> int:
        """Likeliest tokens whose log-probabilities it needs of each sampled one."""
        return 0

    @property
    def scored(self) -> bool:
        """Whether a score of an answer has any effect."""
        return True

    @property
    def stepwise(self) -> bool:
        """Whether it goes by scores of answers that are not finished."""
        return False

    @property
    def parts(self) -> Mapping[str, BaseStrategy]:
        """The strategies that it is made of, by their place in it."""
        return {}

    def fitted(self, fit: Callable[[Any], Any]) -> Self:
        """The same, made of what `fit` makes of its parts."""
        return self

    @abstractmethod
    async def run(self, search: Search) -> None:
        """Grow the tree. Ends early when the budget does."""

    @abstractmethod
    def worst_case(self, answer: int, path: int, step: int) -> int:
        """Policy tokens that its search may take, with answers, paths and steps of at most so
        many. A path is longer than an answer where it has several, each begun anew. Of searches
        that go on from some steps of a level and not from others: where all are of one length."""

    def most(self, worst: int, answer: int) -> int:
        """Policy tokens that it takes where it may, `worst` being its worst case: one that makes
        do with the budget there is may take more than that."""
        return worst

    @abstractmethod
    def most_answers(self) -> int:
        """Finished paths this can end with, at most."""


class Convincible(BaseStrategy):
    """One that an answer with a high enough score ends."""

    stop_at: float = Field(
        1.0, gt=0, le=1, description="an answer scored this high ends the search"
    )

    def ends(self, search: Search, node: Node) -> bool:
        """Whether `node` ends the search; if so, what is in flight is aborted."""
        return node.convinces(self.stop_at) and search.conclude()
