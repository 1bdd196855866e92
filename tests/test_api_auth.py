"""API keys: which routes ask for one, and what a key may see."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from server.api.health import OPEN
from server.keys import hashed
from tests.serving import USER, client, world

CHAT = {"model": "fake", "messages": USER}
KEYS: Any = {"server": {"api_keys": ["first-key", "second-key"]}}
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
        for route in parts.app.routes:
            assert isinstance(route, APIRoute), f"{route} asks nobody for a key"
            path = route.path.replace("{", "").replace("}", "")
            for method in route.methods:
                for headers in ({}, bearer("wrong"), bearer(hashed("first-key"))):
                    reply = await http.request(method, path, headers=headers)
                    assert (reply.status_code == 401) == (path not in OPEN), (method, path)
            asked.add(path)
    assert asked > OPEN and {path for _, path in GUARDED if path in asked} != set()
    assert parts.idle


async def test_hashed_keys_and_plain_ones_open_the_same_doors() -> None:
    keys: Any = {
        "server": {
            "api_keys": [hashed("first-key"), {"key": "second-key", "name": "bob"}],
            "admin_keys": [{"key": hashed("admin-key"), "name": "root"}],
        }
    }
    async with client(world(**keys)) as http:
        for key in ("first-key", "second-key", "admin-key"):
            assert (await http.get("/v1/models", headers=bearer(key))).status_code == 200
        codes = [
            (await http.get("/v1/weights", headers=bearer(key))).status_code
            for key in ("first-key", "second-key", "admin-key")
        ]
    assert codes == [403, 403, 200]


async def test_keys_of_one_name_are_one_tenant() -> None:
    """So that a key can be replaced by another, and its traces stay."""
    both = [{"key": "old", "name": "bob"}, {"key": "new", "name": "bob"}]
    async with client(world(server={"api_keys": both})) as http:
        reply = await http.post("/v1/chat/completions", json=CHAT, headers=bearer("old"))
        trace = f"/v1/traces/{reply.json()['ponder']['trace_id']}"
        found = await http.get(trace, headers=bearer("new"))
    assert found.status_code == 200 and found.json()["tenant"] == "bob"


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
