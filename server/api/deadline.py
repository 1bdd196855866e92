"""`x-ponder-seconds`: how long a client still waits, whatever the body of its request says.

A body that is sent again under its `Idempotency-Key` must be the same, while time goes on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from server.ask import Ask
from server.errors import BadRequest

SECONDS = "x-ponder-seconds"
NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,20})?")


def within(ask: Ask, headers: Mapping[str, str]) -> Ask:
    """`ask`, with no more seconds than its client has left. Raises `BadRequest`."""
    given = headers.get(SECONDS)
    if given is None:
        return ask
    if not NUMBER.fullmatch(given) or float(given) == 0:
        raise BadRequest(
            f"the header '{SECONDS}' must be a positive number of seconds, such as 12.5",
            param=SECONDS,
        )
    assert ask.budget.seconds is not None
    seconds = min(ask.budget.seconds, float(given))
    return replace(ask, budget=replace(ask.budget, seconds=seconds))
