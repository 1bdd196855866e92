"""API keys: which routes ask for one, and what a key may see."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.serving import USER, client, world

CHAT = {"model": "fake", "messages": USER}
KEYS: Any = {"server": {"api_keys": ["first-key", "second-key"]}}
OPEN = {"/health", "/ready"}
GUARDED = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/reason"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/fake"),
    ("GET", "/v1/traces/x"),
    ("POST", "/v1/feedback"),
    ("GET", "/v1/weights"),
    ("POST", "/v1/weights"),
    ("GET", "/metrics"),
    ("GET", "/docs"),
    ("GET", "/docs/swagger-ui.css"),
    ("GET", "/openapi.json"),
]
WRONG: list[Any] = [
    {},
    {"authorization": "Bearer"},
    {"authorization": "Bearer "},
    {"authorization": "Bearer first"},
    {"authorization": "Bearer first-key2"},
    {"authorization": "Basic first-key"},
    {"authorization": "first-key"},
    {"authorization": b"Bearer \xff\xfe"},
    {"x-api-key": "first-key"},
]


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_guarded_routes_ask_for_a_key(method: str, path: str) -> None:
    parts = world(**KEYS)
    async with client(parts) as http:
        for headers in WRONG:
            reply = await http.request(method, path, headers=headers, json=CHAT)
            assert reply.status_code == 401
            assert reply.json()["error"]["code"] == "invalid_api_key"
            assert reply.headers["www-authenticate"] == "Bearer"
            assert reply.headers["x-should-retry"] == "false"
            assert "first-key" not in reply.text
        assert parts.idle
        for key in ("first-key", "second-key"):
            reply = await http.request(method, path, headers=bearer(key), json=CHAT)
            assert reply.status_code != 401


async def test_every_route_but_the_probes_is_guarded() -> None:
    """By asking each route that the application has, so that a new one cannot be forgotten."""
    parts = world(**KEYS)
    asked = set()
    async with client(parts) as http:
        for path, methods in routes(parts.app.openapi()["paths"]):
            for method in methods:
                reply = await http.request(method, path)
                assert (reply.status_code == 401) == (path not in OPEN), path
                asked.add(path)
    assert asked > OPEN


def routes(paths: dict[str, dict[str, object]]) -> list[tuple[str, list[str]]]:
    return [(path.replace("{", "").replace("}", ""), list(found)) for path, found in paths.items()]


@pytest.mark.parametrize(
    "target",
    [
        "/v1/../v1/models",
        "//v1/models",
        "/v1/models/",
        "/health/../v1/models",
        "/v1/models?x=/health",
    ],
)
async def test_odd_paths_are_no_way_round(target: str) -> None:
    parts = world(**KEYS)
    async with client(parts) as http:
        url = httpx.URL("http://ponder").copy_with(raw_path=target.encode())
        reply = await http.get(url)
    assert reply.status_code in (401, 404)


async def test_a_body_is_not_read_without_a_key() -> None:
    async with client(world(**KEYS)) as http:
        reply = await http.post("/v1/chat/completions", content=b"{")
    assert reply.status_code == 401


async def test_without_keys_everyone_may_enter() -> None:
    async with client(world()) as http:
        assert (await http.get("/v1/models")).status_code == 200


async def test_a_key_sees_its_own_traces_only() -> None:
    async with client(world(**KEYS)) as http:
        path = "/v1/chat/completions"
        reply = await http.post(path, json=CHAT, headers=bearer("first-key"))
        trace = f"/v1/traces/{reply.json()['ponder']['trace_id']}"
        assert (await http.get(trace, headers=bearer("first-key"))).status_code == 200
        other = await http.get(trace, headers=bearer("second-key"))
    assert other.status_code == 404
    assert "first-key" not in other.text
