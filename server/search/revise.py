"""Sequential revision: write an answer, see what is wrong with it, write a better one.

k chains of m revisions each, side by side (Snell et al. 2024, arXiv:2408.03314, section 6). With
`reflect` the policy first says what is wrong with its answer (internal feedback: Self-Refine,
Madaan et al. 2023, arXiv:2303.17651, section 2; Reflexion, Shinn et al. 2023, arXiv:2303.11366,
whose memory is the chat). A chain ends when the scorer likes its answer, unless a judge finds that
wrong, and the search when a judge finds one right (external feedback).

Budget forcing (s1, Muennighoff et al. 2025, arXiv:2501.19393, section 3.1): with `by: wait` a
revision takes the answer's end back and goes on after `wait`, and `think` calls for the answer
once so many tokens have been written.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from server.search.answers import Choice
from server.search.core import Search
from server.search.strategy import BaseStrategy, Bound
from server.types import Behaviour, Node, Operator, Stop


class Revise(BaseStrategy):
    kind: Literal["revise"] = "revise"
    bounds: ClassVar[dict[str, Bound]] = {"chains": "width", "revisions": "width"}
    chains: int = Field(1, ge=1, description="answers revised side by side")
    revisions: int = Field(3, ge=0, description="of each answer, at most")
    by: Literal["turn", "wait"] = Field(
        "turn", description="turn: the user asks for it; wait: the policy is made to go on"
    )
    reflect: bool = Field(False, description="the policy first says what is wrong")
    history: Literal["all", "last"] = Field(
        "all", description="by turn: earlier attempts that it is shown"
    )
    think: int | None = Field(
        None, ge=1, description="tokens of an answer after which its end is called for"
    )
    wait: str = Field(
        "Wait,", min_length=1, max_length=256, description="by wait: begins a revision"
    )
    conclude: str = Field(
        "\n\nFinal answer: ",
        min_length=1,
        max_length=256,
        description="under think: calls for the end",
    )
    stop_at: float = Field(1.0, gt=0, le=1, description="an answer scored this high is left alone")
    choose: Choice = "best"

    @model_validator(mode="after")
    def _reflects_in_a_turn(self) -> Self:
        if self.reflect and self.by == "wait":
            raise ValueError("reflect needs by turn: a forced revision stays in the same turn")
        return self

    async def run(self, search: Search) -> None:
        for _ in range(self.chains):
            search.spawn(self._chain(search))

    async def _chain(self, search: Search) -> None:
        answer, liked = await self._write(search, search.root, None), False
        for _ in range(self.revisions):
            liked = liked or answer.convinces(self.stop_at)
            if not answer.ended or (liked and search.enough):
                return
            answer = await self._revise(search, answer)

    async def _revise(self, search: Search, answer: Node) -> Node:
        if self.by == "wait":
            again = Operator(behaviour=Behaviour.SELF_CORRECTION, say=self.wait)
            return await self._write(search, answer, again)
        if self.reflect:
            evaluate = self._operator(search, Behaviour.SELF_EVALUATION)
            answer = await self._turn(search, answer, evaluate)
        correct = self._operator(search, Behaviour.SELF_CORRECTION)
        return await self._write(search, answer, correct)

    def _operator(self, search: Search, behaviour: Behaviour) -> Operator:
        return search.operators[behaviour].model_copy(update={"forget": self.history == "last"})

    async def _turn(self, search: Search, node: Node, operator: Operator) -> Node:
        """The policy's reply to an aside."""
        node = await search.grow(node, score=False, operator=operator)
        while node.step is not None and node.step.stop is Stop.STEP:
            node = await search.grow(node, score=False, operator=search.plain(node))
        return node

    async def _write(self, search: Search, node: Node, begin: Operator | None) -> Node:
        """An answer: to its end, or as far as it may think and then to its conclusion."""
        if self.think is None:
            return await search.grow(node, until=Stop.END, operator=begin)
        node = await search.grow(node, operator=begin)
        while not node.finished and node.tokens() < self.think:
            node = await search.grow(node, operator=search.plain(node))
        if node.finished:
            return node
        return await search.grow(node, until=Stop.END, operator=Operator(say=self.conclude))

    def worst_case(self, answer: int, path: int, step: int) -> int:
        return self.chains * (1 + self.revisions) * answer * (2 if self.reflect else 1)

    def most_answers(self) -> int:
        return self.chains * (1 + self.revisions)
