"""The tries of one call: what each sends, and whether another follows. No I/O.

Another try is safe. A call that asks for work bears an `Idempotency-Key`, by which the server knows
a try that it has taken up: as long as the server lives, the next one joins it, or is told how it
ended, and costs nothing. A try that was refused was not taken up; where there is a deadline, what
follows it is another request. Under one key all bodies must be the same: what is left of the
deadline stands in a header beside them.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import inf
from typing import Any, TypedDict
from uuid import uuid4

import httpx

from ponder_client import errors
from ponder_client.calls import Call
from ponder_client.errors import DeadlineExceeded, PonderError, StreamBroken, Unreachable

log = logging.getLogger("ponder_client")

BUSY = (408, 429, 502, 503, 504)  # worth another try, unless the server says otherwise
NOT_TAKEN = (429, 503)  # the server did not begin
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout)
WAITED = (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout)  # long enough, as it is
CONNECT = 10.0  # seconds
SILENCE = 60.0  # of a stream, in which the server says at least a comment every 5 s
LEAST = 0.001  # seconds: none at all would be no time
WAY_BACK = 1.0  # seconds of a deadline that are left to the reply, or a tenth where that is less


class Timeouts(TypedDict):
    """Of httpx, in seconds. It counts them one after the other."""

    connect: float
    pool: float
    write: float
    read: float


@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how often."""

    retries: int = 4
    timeout: float = 600.0  # seconds without a word, for a call without a deadline
    first: float = 0.5  # seconds before the second try, and twice that after each further one
    longest: float = 8.0
    asked: float = 60.0  # the longest Retry-After that is waited for
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random

    def backoff(self, tried: int) -> float:
        """Half of it is left to chance, so that those who were refused together part."""
        most = min(self.first * 2.0 ** (tried - 1), self.longest)
        return most * (0.5 + self.chance() / 2)


class Tries:
    def __init__(self, call: Call[Any], patience: Patience):
        self._call, self._patience = call, patience
        if call.deadline is not None and not 0 < call.deadline < inf:
            raise ValueError(f"deadline must be above 0 seconds and finite, not {call.deadline}")
        self._ends = None if call.deadline is None else patience.clock() + call.deadline
        self._key = call.key or uuid4().hex
        self._content: bytes | None = None  # the same for all tries under one key
        self._tried = 0
        self._url = httpx.URL(call.path)
        self._taken = call.key is not None  # the server may know of this request
        self.streams = call.streams
        self.resumes = False  # only the search that was begun is of use, no other

    def left(self) -> float | None:
        """Seconds. Raises `DeadlineExceeded` where there are none."""
        if self._ends is None:
            return None
        left = self._ends - self._patience.clock()
        if left <= 0:
            raise self.late()
        return left

    def late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"{self._url}: not done within {self._call.deadline:g} s")

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The next try. Raises `DeadlineExceeded`."""
        left = self.left()
        self._tried += 1
        call, seconds = self._call, None
        if left is not None and call.searches:
            seconds = left - min(left / 10, WAY_BACK)
        if self._content is None and call.body is not None:
            self._content = json.dumps(within(call.body, seconds)).encode()
        request = http.build_request(
            call.method,
            call.path,
            params=call.query,
            content=self._content,
            headers=None if self._content is None else self._headers(seconds),
            timeout=httpx.Timeout(**self.timeouts()),
        )
        self._url = request.url
        return request

    def _headers(self, seconds: float | None) -> dict[str, str]:
        headers = {"content-type": "application/json", "idempotency-key": self._key}
        if seconds is not None:
            headers["x-ponder-seconds"] = f"{max(seconds, LEAST):.3f}"
        if self.resumes:
            headers["x-ponder-resume"] = "true"
        return headers

    def timeouts(self) -> Timeouts:
        """Of each phase of a request that begins now."""
        left = self._patience.timeout
        if self._ends is not None:
            left = max(self._ends - self._patience.clock(), LEAST)
        return {
            "connect": min(left, CONNECT),
            "pool": left,
            "write": left,
            "read": min(left, SILENCE) if self.streams else left,
        }

    def refused(self, reply: httpx.Response) -> float | None:
        """None if it is not, else the seconds until the next try. Raises what it means if there is
        none."""
        if reply.is_success:
            return None
        said: PonderError = errors.refused(reply)
        if self.resumes and reply.status_code == 409:
            said = StreamBroken(f"the stream broke, and cannot be taken up again: {said}")
        pause = self._next(self._after(reply), said)
        self._taken = self._taken or reply.status_code not in NOT_TAKEN
        if self._ends is not None and not self._taken:
            self._key, self._content = uuid4().hex, None
        return pause

    def failed(self, error: httpx.TransportError, kind: type[Unreachable] = Unreachable) -> float:
        """Seconds until the next try. Raises what it means, of its `kind`, if there is none."""
        self._taken = self._taken or not isinstance(error, NOT_SENT)
        waited = isinstance(error, WAITED) and not self.streams
        if self._ends is not None and self._patience.clock() >= self._ends:
            raise self.late() from error
        said = kind(f"{self._url}: {type(error).__name__}: {error}")
        return self._next(None if waited else self._patience.backoff(self._tried), said, error)

    def _next(
        self, pause: float | None, error: PonderError, cause: Exception | None = None
    ) -> float:
        if pause is None or not self._possible(pause):
            raise error from cause
        log.info("%s: %s; again in %.2f s", self._url, error, pause)
        return pause

    def _possible(self, pause: float) -> bool:
        if self._tried > self._patience.retries:
            return False
        return self._ends is None or self._patience.clock() + pause < self._ends

    def _after(self, reply: httpx.Response) -> float | None:
        """Seconds until a try that may do better; None if none can."""
        wanted = reply.headers.get("x-should-retry")
        if wanted == "false" or (reply.status_code not in BUSY and wanted != "true"):
            return None
        said = retry_after(reply.headers.get("retry-after"))
        if said is None:
            return self._patience.backoff(self._tried)
        return said if said <= self._patience.asked else None


def within(body: Mapping[str, Any], seconds: float | None) -> Mapping[str, Any]:
    """A request for a search that takes so long at most."""
    if seconds is None:
        return body
    budget = dict(body.get("budget", {}))
    budget["seconds"] = min(seconds, budget.get("seconds", seconds))
    return {**body, "budget": budget}


def retry_after(header: str | None) -> float | None:
    """Seconds, of a number or of a date."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
