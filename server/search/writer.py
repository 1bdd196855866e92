"""How a path is written: engine requests, the tokens held for them, and what runs ahead.

A branch is an open stream (`server/engine`). It may stay open when its step has been taken, and
then runs ahead while the scorer works: bounded by the tokens held for it, only while the engine
has room and `ahead.py` finds it worth the risk, and thrown away (and counted as discarded) if
nobody continues that node.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from zlib import crc32

from server.budget import Budget, BudgetSpent, ContextFull, Hold
from server.engine.share import branch_priority
from server.search.ahead import Ahead
from server.search.branch import Branch, Ledger
from server.search.operators import PLAIN, Opening, spent
from server.types import Cut, Engine, Node, Sampling, Step, Stop


@dataclass(frozen=True, slots=True)
class Shape:
    """How long things may get. All lengths in policy tokens."""

    cut: Cut
    max_tokens: int  # of one answer
    chunk: int = 256  # held at a time for an answer written in one go
    lookahead: int = 0  # that an open branch may run ahead of its scorer; 0: not at all
    depth: int = 1 << 30  # steps of one answer; of a path, where its steps may begin anew
    top_logprobs: int = 0  # of the likeliest tokens, for each sampled one


class Writer:
    """All engine requests of one search."""

    def __init__(
        self,
        engine: Engine,
        budget: Budget,
        shape: Shape,
        sampling: Sampling,
        seed: int | None,
        ahead: Ahead,
        *,
        anew: bool,
    ):
        """`anew`: an answer may be begun at any step, so that only the path's length ends that."""
        self.engine, self.budget, self.shape, self.anew = engine, budget, shape, anew
        self.sampling, self.seed, self.ahead = sampling, seed, ahead
        self.greedy = sampling.model_copy(update={"temperature": 0.0})
        self.ledger = Ledger()
        self.last_resort = False  # finishing: a step cut short by the budget is better than none
        self.slots = asyncio.Semaphore(budget.concurrency or 1 << 30)
        self.writing = 0  # paths being written now
        self._parked: dict[Node, Branch] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def path(self, node: Node, place: tuple[int, ...], begin: Opening, *, whole: bool) -> Path:
        """Write on from `node`, for one step or (`whole`) for the rest of the turn.

        `place` is where in the tree that will stand; seeds derive from it.
        """
        return Path(self, node, place, begin, whole)

    def resume(self, node: Node) -> Branch | None:
        """Take over the branch that ran ahead of `node`, if there is one."""
        branch = self._parked.pop(node, None)
        if branch is not None:
            branch.parked = False
            self.ahead.went_on(branch.value)
            branch.value = node.value
        return branch

    def drop(self, node: Node) -> None:
        """Abort what runs ahead of `node`, while the search goes on; `settled` waits for it."""
        if branch := self._parked.pop(node, None):
            closing = asyncio.create_task(branch.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closed)

    def _closed(self, closing: asyncio.Task[None]) -> None:
        if not closing.cancelled() and closing.exception() is None:
            self._closing.remove(closing)

    async def settled(self) -> None:
        """Wait until all that was dropped has ended, and is paid for. Raises a failure, if any."""
        closings = set(self._closing)
        if not closings:
            return
        try:
            await asyncio.wait(closings)
        except asyncio.CancelledError:
            await asyncio.wait(closings)
            raise
        for closing in closings:
            closing.result()

    async def close(self) -> None:
        """Abort all that runs ahead. Raises a failure, if any, when all has been tried."""
        for node in list(self._parked):
            self.drop(node)
        await self.settled()

    def park(self, node: Node, branch: Branch) -> bool:
        """Let `branch` run ahead of the unfinished `node` it wrote, if that is wanted now."""
        wanted = branch.aside is not None and not node.finished and node not in self._parked
        if wanted and not self.budget.waiting and self.engine.load().room:
            branch.parked = True
            self._parked[node] = branch
            return True
        return False

    def room(self, node: Node, partial: Step | None, begin: Opening) -> int:
        """Tokens the answer may still have, or the aside to one that has ended."""
        written = sum(n.step.count for n in spent(node, begin.operator) if n.step)
        return self.shape.max_tokens - written - (partial.count if partial else 0)

    def deep(self, node: Node, begin: Opening) -> bool:
        """Whether the step that follows `node` is the last one that its answer may have."""
        most = self.shape.depth - 1
        return node.depth >= most and (self.anew or len(spent(node, begin.operator)) >= most)

    async def open(
        self,
        node: Node,
        place: tuple[int, ...],
        partial: Step | None,
        begin: Opening,
        whole: bool,
    ) -> Branch:
        """A new engine request for what follows `node` (and a step already begun)."""
        for closing in self._closing:
            if closing.done():
                closing.result()  # it failed, and so does the search
        begun = partial.count if partial else 0
        ids = begin.ids(node) + (partial.token_ids if partial else ())
        shape = self.shape
        left = self.engine.context - len(ids)
        if left < 1:
            raise ContextFull
        room = min(self.room(node, partial, begin), left)
        one_step = min(room, max(1, shape.cut.max_step_tokens - begun))
        if room < 1:
            raise BudgetSpent
        aside = None if whole or begin.greedy else self._aside(node)
        want = one_step
        if whole:
            want = min(room, max(shape.chunk, one_step))
        elif aside is not None:
            want = min(room, one_step + shape.lookahead)
        hold = None
        try:
            hold = await self._hold(want, 1 if self.last_resort else one_step)
        finally:
            if hold is None and aside is not None:
                self.ahead.settle(0, 0, aside)
        begun_step = min(begun, shape.cut.max_step_tokens - 1)
        cut = replace(shape.cut, begun=begun_step, halt=not whole and aside is None)
        try:
            stream = self.engine.stream(
                ids,
                max_tokens=hold.tokens,
                seed=None if self.seed is None else seed_of(self.seed, place, begun),
                sampling=self.greedy if begin.greedy else self.sampling,
                cut=cut,
                priority=branch_priority(node.value),
                top_logprobs=shape.top_logprobs,
            )
        except BaseException:
            self.budget.release(hold, 0)
            self.ahead.settle(0, 0, aside or 0.0)
            raise
        return Branch(stream, hold, self.budget, self.ledger, self.ahead, aside, node.value)

    def _aside(self, node: Node) -> float | None:
        """Whether what follows `node` may run ahead: tokens set aside for that."""
        if not self.shape.lookahead or not self.engine.load().room:
            return None
        return self.ahead.worth(node.value)

    async def _hold(self, want: int, least: int) -> Hold:
        """Set tokens aside; where they are short, what runs ahead gives its own back first."""
        while (hold := self.budget.hold(want, least)) is None:
            if self._parked and all(closing.done() for closing in self._closing):
                self.drop(min(self._parked, key=lambda n: n.value))
            await self.budget.freed()
        return hold


class Path:
    """`async with writer.path(node, place, whole=...) as path: step = await path.next()`."""

    def __init__(
        self, writer: Writer, node: Node, place: tuple[int, ...], begin: Opening, whole: bool
    ):
        self.writer, self.node, self.place, self.whole = writer, node, place, whole
        self.begin = begin
        self.branch: Branch | None = None
        # A step begun by an engine request that has ended, or by the operator's words.
        self.partial: Step | None = None

    async def __aenter__(self) -> Path:
        await self.writer.slots.acquire()
        self.writer.writing += 1
        # Not before there is a slot: a branch that waits for one would keep its tokens held.
        if self.begin is PLAIN:
            self.branch = self.writer.resume(self.node)
        return self

    def wrote(self, node: Node) -> None:
        """Go on below `node`."""
        self.node, self.begin = node, PLAIN

    async def __aexit__(self, *error: object) -> None:
        """Let the branch run ahead of the last node written, or close it."""
        self.writer.writing -= 1
        self.writer.slots.release()
        kept = error[0] is None and not self.node.greedy
        if kept and self.branch and self.writer.park(self.node, self.branch):
            return
        await self._close()

    async def next(self) -> Step:
        """The step after `self.node`. Raises `BudgetSpent`.

        An engine request ends at its hold; a step cut by that is continued by the next request,
        on the cached prefix.
        """
        self.partial = self.begin.spoken(self.writer.engine)
        while True:
            try:
                if self.branch is None:
                    self.branch = await self.writer.open(
                        self.node, self.place, self.partial, self.begin, self.whole
                    )
            except BudgetSpent:
                if self.partial is not None and self.writer.last_resort:
                    return self.partial
                raise
            piece = await self.branch.step()
            if piece is not None:
                step = self.partial + piece if self.partial else piece
                full = self.writer.room(self.node, step, self.begin) <= 0
                deep = self.writer.deep(self.node, self.begin)
                if step.stop is Stop.STEP and (full or deep):
                    return replace(step, stop=Stop.LENGTH)
                if step.stop is not Stop.LENGTH or full:
                    return step
                self.partial = step
            await self._close()

    async def cut_short(self, stop: Stop) -> Step | None:
        """Close the branch; what it had written of the next step, if anything."""
        branch, begun = self.branch, self.partial
        await self._close()
        rest = branch.stream.rest(stop) if branch else None
        step = begun + rest if begun and rest else begun or rest
        return replace(step, stop=stop) if step else None

    async def _close(self) -> None:
        branch, self.branch = self.branch, None
        if branch is not None:
            await branch.close()


def seed_of(seed: int, place: tuple[int, ...], begun: int) -> int:
    """A continuation is seeded by its place in the tree, never by timing."""
    return crc32(repr((seed, place, begun)).encode())
