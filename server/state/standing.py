"""Where a tenant stands with its quota, as OpenAI's headers and errors tell it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from server.errors import Overloaded
from server.state.account import DAY, SLACK, Taken
from server.state.settings import Quota

AT_ONCE = "ask for fewer: a lower max_tokens or budget.tokens, or a smaller strategy"


class RateLimited(Overloaded):
    """A quota is used up. `retry` unless that is no use within the next minutes."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, limit: str, code: str | None, headers: dict[str, str]):
        super().__init__(message, code=code)
        self.limit = limit  # the setting's name
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Limit:
    """One of the limits."""

    name: str  # the setting's
    header: str  # what x-ratelimit-*- ends with
    most: int
    taken: float
    whole: float  # seconds until all of it is there again

    @property
    def left(self) -> int:
        return max(0, math.floor(self.most - self.taken + SLACK))

    def wait(self, want: int) -> float:
        """Seconds until so much fits, if nobody else takes it; infinite if it never does."""
        if want > self.most:
            return math.inf
        missing = self.taken + want - self.most
        if missing <= SLACK:
            return 0.0
        return self.whole if self.name == "tokens_per_day" else missing * 60 / self.most


@dataclass(frozen=True, slots=True)
class Standing:
    """What is taken of a quota."""

    quota: Quota
    taken: Taken

    def limits(self) -> list[Limit]:
        quota, taken, found = self.quota, self.taken, []
        if (most := quota.requests_per_minute) is not None:
            whole = taken.requests * 60 / most
            found.append(Limit("requests_per_minute", "requests", most, taken.requests, whole))
        if (most := quota.tokens_per_minute) is not None:
            whole = taken.tokens * 60 / most
            found.append(Limit("tokens_per_minute", "tokens", most, taken.tokens, whole))
        if (most := quota.tokens_per_day) is not None:
            whole = DAY - taken.now % DAY
            found.append(Limit("tokens_per_day", "tokens-day", most, taken.day, whole))
        return found

    def headers(self) -> dict[str, str]:
        found = {}
        for limit in self.limits():
            found[f"x-ratelimit-limit-{limit.header}"] = str(limit.most)
            found[f"x-ratelimit-remaining-{limit.header}"] = str(limit.left)
            found[f"x-ratelimit-reset-{limit.header}"] = spell(limit.whole)
        return found


def refusal(standing: Standing, tokens: int) -> RateLimited:
    """Why one more search of so many tokens may not begin, and when it may."""
    wants = {limit: 1 if limit.header == "requests" else tokens for limit in standing.limits()}
    limit = max(wants, key=lambda limit: limit.wait(wants[limit]))
    seconds = limit.wait(wants[limit])
    unit = "searches" if limit.header == "requests" else "tokens"
    told = f"{limit.name}: limit {limit.most}, {limit.left} {unit} left, {wants[limit]} asked for"
    headers = standing.headers()
    if math.isinf(seconds):
        error = RateLimited(
            f"{told}; {AT_ONCE}", limit=limit.name, code="request_too_large", headers=headers
        )
        error.retry = False
        return error
    headers["retry-after"] = str(max(1, math.ceil(seconds)))
    day = limit.name == "tokens_per_day"
    error = RateLimited(
        f"{told}; try again in {spell(seconds)}",
        limit=limit.name,
        code="insufficient_quota" if day else None,
        headers=headers,
    )
    error.retry = not day
    return error


def spell(seconds: float) -> str:
    """As OpenAI writes it: 6m0s, 1.5s, 20ms."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    head = f"{hours}h" if hours else ""
    return head + (f"{minutes}m" if whole >= 60 else "") + f"{whole % 60}s"
