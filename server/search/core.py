"""A search, and the verbs a strategy has: grow, expand, spawn, prune, stop.

`run_search` owns every task and every engine request of a search: when it returns or raises,
none is alive. Strategies never look at the budget: what would exceed it raises `BudgetSpent`
in the task that asked, which ends quietly, while everything already in flight still lands.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from server.budget import Budget, BudgetSpent, ContextFull
from server.profiles import AnswerProfile
from server.reward.answer import key_of
from server.search.ahead import Ahead
from server.search.events import DecisionEvent, Listener, PruneEvent, ScoreEvent, StepEvent
from server.search.operators import PLAIN, Action, Opening, opening
from server.search.tasks import Arrivals, Tasks
from server.search.tree import Tree, merged, next_ordinal
from server.search.writer import Shape, Writer
from server.types import (
    Behaviour,
    Engine,
    Judge,
    Node,
    Operator,
    Prompt,
    Sampling,
    Scorer,
    Step,
    Stop,
)

OnStep = Callable[[Node], None]


class Runs(Protocol):
    """What a search needs of a strategy."""

    async def run(self, search: Search) -> None: ...


class Search:
    """One request: its tree, and what is at work on it."""

    def __init__(
        self,
        prompt: Prompt,
        engine: Engine,
        scorer: Scorer,
        budget: Budget,
        *,
        shape: Shape,
        sampling: Sampling | None = None,
        seed: int | None = None,
        listener: Listener | None = None,
        answer: AnswerProfile | None = None,
        judge: Judge | None = None,
        operators: Mapping[str, Operator] | None = None,
        actions: Sequence[Action] = (),
        ahead: Ahead | None = None,
        wanted: int = 1,
    ):
        """`answer` says when two answers are the same.
        `judge` rules on every finished answer; one that is right ends the search.
        `wanted` is how many answers must be finished before any of them ends it.
        `actions` are what the children of a node begin with, in turn; none: they just go on.
        `ahead` is what searches like this one have learned of branches that run ahead.
        """
        self.prompt, self.scorer, self.budget, self.judge = prompt, scorer, budget, judge
        self.wanted = wanted
        self.answer, self.operators = answer or AnswerProfile(), operators or {}
        self._actions = [self.operators.get(name, Operator()) for name in actions]
        anew = any(action.fresh for action in self._actions)
        sampling, ahead = sampling or Sampling(), ahead or Ahead()
        self.writer = Writer(engine, budget, shape, sampling, seed, ahead, anew=anew)
        self.rng = random.Random(seed)
        self.tree = Tree(prompt)
        self.root, self.nodes = self.tree.root, self.tree.nodes
        self.scorer_computed = self.scorer_cached = 0  # tokens
        self.decisions: list[dict[str, Any]] = []
        self.solved = False  # the judge found an answer right
        self.full: set[Node] = set()  # of which some continuation did not fit the context
        self._emit: Listener = listener or (lambda event: None)
        self._tasks = Tasks()
        self._owed: set[Callable[[], None]] = set()  # early stops that wait for more answers
        # What becomes of a first step that time cuts short while there is nothing better: the
        # answer, or at the soft deadline what the rest of the time goes on with.
        self.cut = Stop.LENGTH

    async def grow(
        self,
        parent: Node,
        *,
        until: Stop = Stop.STEP,
        score: bool = True,
        merge: bool = False,
        operator: Operator | None = None,
        on_step: OnStep | None = None,
        lookahead: int = 0,
    ) -> Node:
        """Sample one continuation of `parent`, attach it, score it; the node where it ends.

        `until=Stop.END` writes the whole answer: a chain of one node a step, scored at its
        end. `merge` returns the sibling that already says the same, if there is one, and
        counts it (`Node.multiplicity`). `operator` says how the policy is made to go on; if
        None, the search's actions do. `lookahead` is how many greedy steps further the scorer
        looks to value it. `on_step` is told of each step of a whole answer as it lands, while
        the policy writes on; not of the last one. A `CancelledError` of its own ends the answer
        there. Raises `BudgetSpent`, also where the context is full.
        """
        if self.solved and self.enough:
            raise BudgetSpent
        if score:
            self.budget.call()
        try:
            node = await self._write(parent, until, merge, operator, on_step)
            if score and node.score is None:
                score = False  # from here on the call is made
                await self._score(node, await self._ahead(node, lookahead))
            await self._rule(node)
            if self._owed and self.enough:
                while self._owed:
                    self._owed.pop()()
            return node
        except ContextFull:
            self.full.add(parent)
            raise
        finally:
            if score:
                self.budget.called -= 1

    async def score(self, node: Node) -> None:
        """Score what was grown without. Raises `BudgetSpent`."""
        if node.score is None:
            self.budget.call()
            await self._score(node)

    async def _write(
        self,
        node: Node,
        until: Stop,
        merge: bool,
        operator: Operator | None,
        on_step: OnStep | None,
        greedy: bool = False,
    ) -> Node:
        ordinal = next_ordinal(node)
        while True:
            how = operator or self._operator(node, ordinal)
            node = await self._turn(node, ordinal, until, merge, how, on_step, greedy)
            if until is Stop.STEP or node.finished:
                return node
            # An aside is over, and the answer is not: the policy is asked for the rest of it.
            operator, ordinal = None, next_ordinal(node)

    async def _turn(
        self,
        node: Node,
        ordinal: int,
        until: Stop,
        merge: bool,
        how: Operator,
        on_step: OnStep | None,
        greedy: bool = False,
    ) -> Node:
        """Write on under `how`, to the end of a step or of the turn."""
        begin = opening(node, how, self.writer.engine.tokenizer)
        if greedy:
            begin = replace(begin, greedy=True)
        place = (*node.place, ordinal)
        async with self.writer.path(node, place, begin, whole=until is Stop.END) as path:
            while True:
                try:
                    step = await path.next()
                except asyncio.CancelledError:
                    if len(self.nodes) == 1 and (rest := await path.cut_short(self.cut)):
                        self._attach(self.root, rest, ordinal, merge, begin)
                    raise
                path.wrote(self._attach(path.node, step, ordinal, merge, begin))
                begin = PLAIN
                if until is Stop.STEP or path.node.finished or step.stop is Stop.END:
                    return path.node
                if on_step is not None:
                    on_step(path.node)
                ordinal = next_ordinal(path.node)
                path.place = (*path.node.place, ordinal)

    def _operator(self, node: Node, ordinal: int) -> Operator:
        """How the child so numbered goes on, where the strategy does not say."""
        if _turn_is_over(node) or not self._actions:
            return self.plain(node)
        action = self._actions[ordinal % len(self._actions)]
        # Before the first word there is nothing to do anew.
        return Operator() if action.fresh and node.step is None else action

    def plain(self, node: Node) -> Operator:
        """How the answer that `node` belongs to is simply written on."""
        return self.operators[Behaviour.TASK_COMPLETION] if _turn_is_over(node) else Operator()

    def expand(self, parent: Node, n: int, **how: Any) -> Arrivals:
        """`n` grows of `parent` at once: `async for child in search.expand(node, 4)`."""
        return Arrivals([self.spawn(self.grow(parent, **how)) for _ in range(n)])

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `work` alongside. It ends quietly if the budget does; other errors end the search."""
        return self._tasks.spawn(work)

    async def stage(self, strategy: Runs) -> None:
        """Run `strategy` in this tree, to the end of all that it starts; its stop is its own.

        For a strategy that is made of others: it runs nothing else meanwhile.
        """
        owed = {*self._owed, self._tasks.halt}
        await self._tasks.stage(strategy.run(self))
        await self.writer.settled()  # what comes next looks at what is spent
        self._owed &= owed  # what the stage itself still waited with ends with it

    def prune(self, node: Node) -> None:
        """Give `node` up. What runs ahead of it is aborted in the engine, soon."""
        if not node.finished and not node.pruned:
            node.pruned = True
            self._emit(PruneEvent(node))
        self.writer.drop(node)

    @property
    def enough(self) -> bool:
        """Whether as many answers are finished as are wanted."""
        return self.tree.finished >= self.wanted

    def conclude(self) -> bool:
        """The strategy has its answer: stop, or go on until `enough` are finished and stop then.
        Whether it has stopped."""
        return self._once_enough(self._tasks.stop)

    def _once_enough(self, end: Callable[[], None]) -> bool:
        if not (enough := self.enough):
            self._owed.add(end)
        else:
            end()
        return enough

    def stop(self) -> None:
        """Abort whatever is in flight: there is nothing left for the strategy to do."""
        self._tasks.stop()

    def halt(self) -> None:
        """End the strategy, and those that it is made of."""
        self._tasks.halt()

    def key(self, node: Node) -> str | None:
        """The canonical form of the answer that ends at `node`; None if none is recognised."""
        return key_of(node, self.answer)

    def decide(self, **facts: Any) -> None:
        """Put on record what the strategy decided, and why. JSON values."""
        self.decisions.append(facts)
        self._emit(DecisionEvent(facts))

    def _attach(self, parent: Node, step: Step, ordinal: int, merge: bool, begin: Opening) -> Node:
        if merge and (twin := merged(parent, step, ordinal, begin)):
            return twin
        node = self.tree.attach(parent, step, ordinal, begin)
        self._emit(StepEvent(node))
        return node

    async def _ahead(self, node: Node, steps: int) -> Node:
        """Where the policy gets in so many greedy steps; the tree does not grow from those."""
        at = node
        with suppress(BudgetSpent):
            while at.depth < node.depth + steps and not at.finished:
                plain = self.plain(at)
                at = await self._write(at, Stop.STEP, False, plain, None, greedy=True)
                self.prune(at)
                await self._rule(at)
        return at

    async def _score(self, node: Node, end: Node | None = None) -> None:
        """Score `node` by the path to it, or by the path through it to `end`."""
        end = end or node
        path = end.path()
        verdict = await self.scorer.score(self.prompt, path)
        scored = path[len(path) - len(verdict.steps) :]
        for at, raw in zip(scored, verdict.steps, strict=True):
            at.raw = raw if at.raw is None else at.raw
        for name, verdicts in verdict.parts.items():
            for at, part in zip(path[len(path) - len(verdicts) :], verdicts, strict=True):
                if part is not None:
                    at.parts.setdefault(name, part)
        self.scorer_computed += verdict.computed
        self.scorer_cached += verdict.cached
        for valued in dict.fromkeys((node, end)):
            valued.score = verdict.value
            self._emit(ScoreEvent(valued))

    async def _rule(self, node: Node) -> None:
        """Have a finished answer judged; one that is right leaves nothing better to search for."""
        if self.judge is None or not node.ended or node.outcome is not None:
            return
        node.outcome = await self.judge.verdict(self.prompt, node.text())
        if node.outcome is not None and node.outcome >= 1 and not self.solved:
            self.solved = True
            self.decide(decision="stop", reason="an answer was found right", node=node.id)
            self._once_enough(self._tasks.halt)


def _turn_is_over(node: Node) -> bool:
    return node.step is not None and node.step.stop is Stop.END
