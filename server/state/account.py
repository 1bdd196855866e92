"""What one tenant has taken of its quota: in this process; `account_redis.py` does the same there.

A minute's limits are buckets that hold one minute's worth and drain steadily; a day's limit is a
count that begins anew at midnight, UTC. What a search might take is held before it begins, if all
of it fits; when it has ended, what it took is taken, and the rest of the hold is gone. What is held
does not drain: else more than was there would be given back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from server.state.settings import Quota

DAY = 86_400
SLACK = 1e-6  # of a search or a token, for what rounding makes of a full bucket


@dataclass(frozen=True, slots=True)
class Taken:
    """Of each limit, by the account's own clock; 0 where there is none."""

    requests: float  # in the minute's bucket
    tokens: float  # in the minute's bucket, or held
    day: int  # tokens, those held among them
    now: float  # Unix seconds


@dataclass(frozen=True, slots=True)
class Verdict:
    granted: bool
    taken: Taken  # with what was granted


class Ledger(Protocol):
    """The accounts of all tenants. Raises `StateError` if it cannot be had."""

    async def hold(
        self, tenant: str, quota: Quota, hold: str, tokens: int, seconds: float
    ) -> Verdict:
        """Hold one request and `tokens`, all or nothing; twice under one name is once.

        Who has not settled it after `seconds` is taken for dead, and has used all of it.
        """
        ...

    async def settle(self, tenant: str, quota: Quota, hold: str, used: int) -> None:
        """End a hold, once: what it did not use is given back, and what it used beyond is taken.

        Of one that is not known, for it was held elsewhere or is forgotten, all that it used is.
        """
        ...


@dataclass(slots=True)
class Account:
    """One tenant's. Whoever holds lives as long as it does."""

    at: float  # the buckets stand as they did then
    requests: float = 0.0
    tokens: float = 0.0
    held: int = 0  # tokens
    day: int = 0  # since the epoch
    used: int = 0  # tokens of that day, held or taken
    holds: dict[str, tuple[int, int]] = field(default_factory=dict)  # by name: day, tokens

    def go_on(self, quota: Quota, now: float) -> None:
        minutes = max(0.0, now - self.at) / 60
        self.at = max(now, self.at)
        self.requests = max(0.0, self.requests - minutes * (quota.requests_per_minute or 0))
        self.tokens = max(0.0, self.tokens - minutes * (quota.tokens_per_minute or 0))
        if (today := int(now // DAY)) > self.day:
            self.day, self.used = today, 0

    def hold(self, quota: Quota, name: str, tokens: int) -> bool:
        if name in self.holds:
            return True
        if not (
            _fits(self.requests + 1, quota.requests_per_minute)
            and _fits(self.tokens + self.held + tokens, quota.tokens_per_minute)
            and _fits(self.used + tokens, quota.tokens_per_day)
        ):
            return False
        self.holds[name] = self.day, tokens
        self.requests += quota.requests_per_minute is not None
        self.held += tokens
        self.used += tokens
        return True

    def settle(self, quota: Quota, name: str, used: int) -> None:
        if name not in self.holds:
            return  # settled: nothing is forgotten here
        day, tokens = self.holds.pop(name)
        self.held -= tokens
        self.tokens += used if quota.tokens_per_minute is not None else 0
        if day == self.day:
            self.used += used - tokens

    def taken(self) -> Taken:
        return Taken(self.requests, self.tokens + self.held, self.used, self.at)


def _fits(amount: float, most: int | None) -> bool:
    return most is None or amount <= most + SLACK


class MemoryLedger:
    """All accounts, in this process."""

    def __init__(self, clock: Callable[[], float] = time.time):
        self._clock = clock
        self._accounts: dict[str, Account] = {}

    def _account(self, tenant: str, quota: Quota) -> Account:
        now = self._clock()
        account = self._accounts.setdefault(tenant, Account(now))
        account.go_on(quota, now)
        return account

    async def hold(
        self, tenant: str, quota: Quota, hold: str, tokens: int, seconds: float
    ) -> Verdict:
        account = self._account(tenant, quota)
        granted = account.hold(quota, hold, tokens)
        return Verdict(granted, account.taken())

    async def settle(self, tenant: str, quota: Quota, hold: str, used: int) -> None:
        self._account(tenant, quota).settle(quota, hold, used)

    def learn(self, tenant: str, quota: Quota, taken: Taken) -> None:
        """What is known elsewhere of the tenant, for when it cannot be asked there."""
        account = self._account(tenant, quota)
        account.requests, account.tokens, account.used = taken.requests, taken.tokens, taken.day
