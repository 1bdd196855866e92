"""What a search may spend. Invariant: spent + held <= tokens, at every instant."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


class BudgetSpent(Exception):
    """Nothing more may start; what is in flight still lands."""


class ContextFull(BudgetSpent):
    """One path cannot go on: what the policy would read of it fills the context."""


@dataclass(slots=True)
class Hold:
    """Tokens set aside for one engine request."""

    tokens: int


@dataclass(slots=True)
class Budget:
    """Hard limits of one search. `reserve` tokens are kept back to finish the best open path."""

    tokens: int
    seconds: float | None = None
    calls: int | None = None  # scorer calls
    concurrency: int | None = None  # engine requests being waited for at once
    reserve: int = 0
    spent: int = 0
    held: int = 0
    called: int = 0
    waiting: int = 0  # requests that wait for tokens
    _freed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def free(self) -> int:
        """Tokens that a new request could still hold."""
        return self.tokens - self.reserve - self.spent - self.held

    def hold(self, want: int, least: int = 1) -> Hold | None:
        """Set `want` tokens aside, or what is left if that is at least `least`.

        None if that has to wait until another request gives some back; `BudgetSpent` if it
        never can.
        """
        assert 0 < least <= want
        granted = min(want, self.free)
        if granted < least:
            if self.held == 0 or self.free + self.held < least:
                raise BudgetSpent
            return None
        self.held += granted
        return Hold(granted)

    def release(self, hold: Hold, used: int) -> None:
        """Give a hold back; `used` of it were generated."""
        assert 0 <= used <= hold.tokens, f"an engine made {used} tokens of {hold.tokens} allowed"
        self.held -= hold.tokens
        self.spent += used
        hold.tokens = 0
        self._freed.set()

    async def freed(self) -> None:
        """Wait until some hold is released."""
        self._freed.clear()
        self.waiting += 1
        try:
            await self._freed.wait()
        finally:
            self.waiting -= 1

    def call(self) -> None:
        """Count one scorer call, or raise `BudgetSpent`."""
        if self.calls is not None and self.called >= self.calls:
            raise BudgetSpent
        self.called += 1
