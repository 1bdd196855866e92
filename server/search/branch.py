"""One engine request of a search: the tokens held for it, and what it cost in the end."""

from __future__ import annotations

from dataclasses import dataclass

from server.budget import Budget, Hold
from server.search.ahead import Ahead
from server.types import Step, Stream


@dataclass(slots=True)
class Ledger:
    """Tokens of a search's engine requests, counted as each one closes."""

    generated: int = 0
    prompt: int = 0
    cached: int = 0
    least: int | None = None  # prompt tokens of a request; None: none has told them

    def count(self, stream: Stream) -> None:
        self.generated += stream.generated
        self.prompt += stream.prompt_tokens
        self.cached += stream.cached_tokens
        if stream.prompt_tokens:
            self.least = min(self.least or stream.prompt_tokens, stream.prompt_tokens)


@dataclass(eq=False, slots=True)
class Branch:
    """One engine request and the tokens held for it."""

    stream: Stream
    hold: Hold
    budget: Budget
    ledger: Ledger
    ahead: Ahead
    aside: float | None = None  # for what it may write in vain; None: it does not run ahead
    value: float = 0.0  # of the node that it goes on from
    taken: int = 0  # tokens
    parked: bool = False
    closed: bool = False

    async def step(self) -> Step | None:
        """The next step; None once the request has ended."""
        step = await anext(self.stream, None)
        self.taken += step.count if step else 0
        return step

    async def close(self) -> None:
        """Abort the request if it still runs, and settle what it generated."""
        if self.closed:
            return
        self.closed = True
        try:
            await self.stream.aclose()
        finally:
            self.budget.release(self.hold, self.stream.generated)
            self.ledger.count(self.stream)
            wasted = max(0, self.stream.generated - self.taken)
            self.ahead.settle(self.stream.generated, wasted, self.aside or 0.0)
            if self.parked:
                self.ahead.gave_up(self.value, wasted)
