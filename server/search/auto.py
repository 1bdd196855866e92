"""Chooses a search by how hard the question turns out to be, and how much of it to spend.

Compute-optimal test-time scaling (Snell et al. 2024, arXiv:2408.03314, sections 3 and 5.3): easy
questions want a few samples, hard ones a search. A probe of a few whole answers says which it is
(`server/search/probe.py`); they stay in the tree and count. The stages of the fitting level follow
in the same tree, the last one again and again, until the answer is sure or the allowance spent,
which is counted in answers as long as the probe's. Every decision is put on record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain, repeat
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.search.answers import Choice
from server.search.beam import Beam
from server.search.best_of_n import BestOfN
from server.search.core import Search
from server.search.mcts import MCTS
from server.search.probe import Seen, seen
from server.search.stopping import Adaptive
from server.search.strategy import BaseStrategy, Bound
from server.search.tree_policy import BACK_UP, set_priors
from server.search.vote import Vote
from server.types import Node

Stage = Annotated[Beam | BestOfN | MCTS | Vote, Field(discriminator="kind")]
IDLE = 3  # stages in a row that write less than an answer end the search


class Level(BaseModel):
    """What is done about questions up to a difficulty, where there is enough to spend."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    difficulty: float = Field(1.0, ge=0, le=1, description="of the hardest question it is for")
    least: int = Field(0, ge=0, description="answers that must be allowed for; else the next level")
    stages: tuple[Stage, ...] = Field(
        min_length=1, max_length=8, description="one after the other; the last one is repeated"
    )


EASY = Level(difficulty=0.5, stages=(Vote(n=8, choose="weighted", stop=Adaptive()),))
# A tree search that may write a few answers only spreads them over beginnings.
FEW = Level(stages=(BestOfN(n=4),))
HARD = Level(least=8, stages=(MCTS(simulations=16), MCTS(simulations=32)))


class Auto(BaseStrategy):
    kind: Literal["auto"] = "auto"
    bounds: ClassVar[dict[str, Bound]] = {"probe": "width", "answers": "width"}
    probe: int = Field(4, ge=1, description="answers sampled to see how hard the question is")
    answers: int = Field(
        16,
        ge=1,
        description="tokens to spend at most, in answers as long as the probe's, which count",
    )
    stop_at: float = Field(
        1.0, gt=0, le=1, description="an answer scored this high ends the search"
    )
    agree: float = Field(
        0.95,
        gt=0.5,
        le=1,
        description="samples that agree so that their answer leads with this probability end it",
    )
    levels: tuple[Level, ...] = Field(
        (EASY, HARD, FEW),
        min_length=1,
        max_length=8,
        description="by difficulty; the last is for all",
    )
    choose: Choice = "weighted"

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        limits = [(level.difficulty, -level.least) for level in self.levels]
        if limits != sorted(set(limits)) or limits[-1] != (1, 0):
            raise ValueError(
                "of levels the difficulty must rise, or at the same one `least` fall; "
                "the last must have difficulty 1 and least 0"
            )
        for stage in self.parts.values():
            if stage.depth is not None or stage.behaviours:
                raise ValueError("depth and behaviours belong to auto, not to its stages")
        return self

    async def run(self, search: Search) -> None:
        await search.stage(BestOfN(n=min(self.probe, self.answers), stop_at=self.stop_at))
        first = seen(search)
        level = next(x for x in self.levels if self._fits(x, first))
        search.decide(decision="probe", **first.facts())
        sure = self._sure(search, sampled=True)
        if self._ended(search, sure):
            return
        self._allow(search, first)
        await self._climb(search, level, first.tokens_per_answer, sure)

    def _fits(self, level: Level, first: Seen) -> bool:
        return first.difficulty <= level.difficulty and self.answers >= level.least

    def _allow(self, search: Search, first: Seen) -> None:
        """Hold back what the caller's budget has and this strategy shall not spend."""
        budget = search.budget
        allowed = round(self.answers * first.tokens_per_answer)
        budget.reserve = max(budget.reserve, budget.tokens - allowed)

    async def _climb(self, search: Search, level: Level, answer: float, sure: str | None) -> None:
        sampled, idle = True, 0
        for stage in chain(level.stages, repeat(level.stages[-1])):
            spent = search.budget.spent
            self._say(search, level, stage)
            if isinstance(stage, MCTS):
                await adopt(search, stage)
            await search.stage(self._eager(stage))
            sampled = sampled and isinstance(stage, BestOfN | Vote)
            sure = sure or self._sure(search, sampled=sampled)
            if self._ended(search, sure):
                return
            idle = idle + 1 if search.budget.spent - spent < answer else 0
            if idle == IDLE or search.budget.free <= 0:
                reason = "little new was found" if idle == IDLE else "the allowance is spent"
                return search.decide(decision="stop", reason=reason)

    def _say(self, search: Search, level: Level, stage: BaseStrategy) -> None:
        search.decide(
            decision="search",
            strategy=stage.model_dump(mode="json", exclude_unset=True) | {"kind": stage.kind},
            reason=f"difficulty up to {level.difficulty:g}; {search.budget.free} tokens left",
        )

    def _eager(self, stage: Any) -> Any:
        """The stage, ended by an answer that ends the whole search, unless it has a say itself."""
        if "stop_at" not in type(stage).model_fields or "stop_at" in stage.model_fields_set:
            return stage
        return stage.model_copy(update={"stop_at": self.stop_at})

    def _sure(self, search: Search, *, sampled: bool) -> str | None:
        """Why the answer is sure by now, if it is. Agreement tells only of independent samples."""
        now = seen(search)
        if now.best_score is not None and now.best_score >= self.stop_at:
            return f"an answer scored {now.best_score:.3f}, at least {self.stop_at:g}"
        if sampled and now.lead > self.agree and now.difficulty <= self.levels[0].difficulty:
            return f"{now.agreement:.0%} of {now.answers} samples agree"
        return None

    def _ended(self, search: Search, sure: str | None) -> bool:
        """Whether what is `sure` ends the search; where more answers are wanted, it ends the next
        stage as soon as they are there."""
        if sure is None or not search.conclude():
            return False
        search.decide(decision="stop", reason=sure)
        return True

    @property
    def top_logprobs(self) -> int:
        return max(stage.top_logprobs for stage in self.parts.values())

    @property
    def parts(self) -> Mapping[str, BaseStrategy]:
        return {
            f"levels.{i}.stages.{j}": stage
            for i, level in enumerate(self.levels)
            for j, stage in enumerate(level.stages)
        }

    def fitted(self, fit: Callable[[Any], Any]) -> Self:
        levels = tuple(
            level.model_copy(update={"stages": tuple(map(fit, level.stages))})
            for level in self.levels
        )
        return self.model_copy(update={"levels": levels})

    def worst_case(self, answer: int, path: int, step: int) -> int:
        """Of the probe: what follows makes do with the budget there is."""
        return min(self.probe, self.answers) * answer

    def most(self, worst: int, answer: int) -> int:
        return max(worst, self.answers * answer)

    def most_answers(self) -> int:
        return self.answers


async def adopt(search: Search, strategy: MCTS) -> None:
    """Let what the tree holds already count as evaluations of the tree search that goes on."""
    for node in search.nodes[1:]:
        if not node.visits:
            await search.score(node)
            BACK_UP[strategy.backup](lineage(node), node.value)
    for node in search.nodes:
        if node.children:
            set_priors(node, strategy.prior)


def lineage(node: Node) -> list[Node]:
    """From the root to `node`."""
    nodes = [node]
    while nodes[-1].parent is not None:
        nodes.append(nodes[-1].parent)
    return nodes[::-1]
