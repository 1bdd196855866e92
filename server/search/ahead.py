"""Which branches may run ahead of the scorer: as many as a share of the tokens pays for.

A branch that runs ahead saves a request, and the time in which its step is scored, if its path
goes on; if it does not, what it wrote is thrown away. So there is an account of tokens that may be:
every generated token pays `WASTE` in, what is thrown away is paid from it, and what a new branch
can be expected to cost is set aside when it opens. How often a path goes on is learned by the score
that it goes on from (a Beta posterior's mean), and the less likely, the fuller the account must be:
the first to run ahead are branches of good paths.

One of these serves all searches by one strategy, so that a search begins with what the last has
learned.
"""

from __future__ import annotations

from dataclasses import dataclass

WASTE = 0.13  # of the generated tokens, that may be thrown away in the long run
MOST = 256.0  # tokens saved up in the account: with them it is 0.15 of 13,000
BINS = 10  # of scores
MEMORY = 64.0  # branches that a bin remembers


@dataclass(slots=True)
class Odds:
    """That a path goes on, of the branches that ran ahead of it."""

    went_on: float = 1.0
    given_up: float = 1.0

    @property
    def mean(self) -> float:
        return self.went_on / (self.went_on + self.given_up)

    def count(self, *, went_on: bool) -> None:
        if self.went_on + self.given_up >= MEMORY:
            self.went_on, self.given_up = self.went_on / 2, self.given_up / 2
        if went_on:
            self.went_on += 1
        else:
            self.given_up += 1


class Ahead:
    """The account."""

    def __init__(self, waste: float = WASTE):
        self.free = MOST  # tokens that may be thrown away now
        self._waste = waste
        self._odds = [Odds() for _ in range(BINS)]
        self._cost = 8.0  # tokens that a branch had written in vain when it was given up, lately

    def worth(self, value: float) -> float | None:
        """Tokens set aside for a branch to run ahead of the next step of a path scored `value`;
        None if none may. `settle` gives them back."""
        unlikely = 1 - self._at(value).mean
        cost = unlikely * self._cost
        if self.free < cost or self.free < unlikely * MOST:
            return None
        self.free -= cost
        return cost

    def went_on(self, value: float) -> None:
        """A branch that ran ahead was taken up."""
        self._at(value).count(went_on=True)

    def gave_up(self, value: float, wasted: int) -> None:
        """A branch that ran ahead was dropped, and `wasted` tokens with it."""
        self._at(value).count(went_on=False)
        self._cost += (wasted - self._cost) / 16

    def settle(self, generated: int, wasted: int, aside: float) -> None:
        """An engine request has ended. Others than those that ran ahead pay in, too."""
        self.free = min(MOST, self.free + aside + self._waste * generated - wasted)

    def _at(self, value: float) -> Odds:
        return self._odds[int(min(max(value, 0.0), 1.0) * (BINS - 1))]  # -inf: not scored
