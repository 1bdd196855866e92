"""How long a client still waits, said beside its request."""

from __future__ import annotations

from typing import Any

import pytest

from tests.serving import USER, client, connected, world

CHAT = ("/v1/chat/completions", {"model": "ponder-best-of-n", "messages": USER}, "search")
REASON = ("/v1/reason", {"question": "Why?"}, None)
ROUTES = [CHAT, REASON, (CHAT[0], {**CHAT[1], "stream": True}, CHAT[2])]
SECONDS = "x-ponder-seconds"


@pytest.mark.parametrize(("path", "body", "place"), ROUTES)
@pytest.mark.parametrize(
    ("told", "asked", "found"),
    [("7.5", None, 7.5), ("7.5", 9, 7.5), ("9.25", 7, 7), ("123456789", None, None)],
)
async def test_the_smaller_holds(
    path: str, body: dict[str, Any], place: str | None, told: str, asked: Any, found: Any
) -> None:
    """Than the body's, and than the server's own."""
    parts = world()
    if asked is not None:
        budget = {"budget": {"seconds": asked}}
        body = {**body, **({place: budget} if place else budget)}
    async with client(parts) as http:
        reply = await http.post(path, json=body, headers={SECONDS: told})
        (summary,) = (await http.get("/v1/traces")).json()["data"]
        trace = (await http.get(f"/v1/traces/{summary['trace_id']}")).json()
    assert reply.status_code == 200
    assert trace["budget"]["seconds"] == (found or parts.settings.limits.seconds)


async def test_it_does_not_make_another_request() -> None:
    """Under one key: of a try that the server has taken up there is less time left."""
    parts, key = world(), {"idempotency-key": "k"}
    async with connected(parts) as http:
        replies = [
            await http.post("/v1/reason", json={"question": "Why?"}, headers=key | {SECONDS: left})
            for left in ("9", "5.25")
        ]
    assert replies[0].content == replies[1].content
    assert replies[1].headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize("told", ["0", "0.0", "-1", "nan", "inf", "1e3", "1_0", " ", "soon", "9,5"])
@pytest.mark.parametrize(("path", "body", "place"), ROUTES)
async def test_what_is_no_time_is_refused(path: str, body: Any, place: Any, told: str) -> None:
    parts = world()
    async with client(parts) as http:
        reply = await http.post(path, json=body, headers={SECONDS: told})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, SECONDS)
    assert f"header '{SECONDS}' must be a positive number" in error["message"]
    assert parts.idle
