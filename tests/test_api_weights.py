"""`/v1/weights`, for admins; and where the versions are seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.exchanging import FakePolicy
from tests.serving import USER, World, client, world

ADMIN = {"authorization": "Bearer admin-key"}
KEYS: Any = {"api_keys": ["user-key"], "admin_keys": ["admin-key"]}
CHAT = {"model": "ponder-vote", "messages": USER}


def parts(folder: Path, **server: Any) -> World:
    for name in ("v1", "v2", "bad"):
        (folder / name).mkdir(exist_ok=True)
    return world(engine=FakePolicy(pace=1e-4, home=folder / "v1"), server=server or KEYS)


async def test_only_admins_may_see_and_exchange_weights(tmp_path: Path) -> None:
    async with client(parts(tmp_path)) as http:
        for method in ("GET", "POST"):
            for headers, status in ({}, 401), ({"authorization": "Bearer user-key"}, 403):
                reply = await http.request(method, "/v1/weights", json={}, headers=headers)
                assert reply.status_code == status
        assert (await http.get("/v1/models", headers=ADMIN)).status_code == 200
        assert (await http.get("/v1/weights", headers=ADMIN)).status_code == 200


async def test_without_an_admin_nobody_may(tmp_path: Path) -> None:
    async with client(parts(tmp_path, api_keys=["user-key"])) as http:
        key = {"authorization": "Bearer user-key"}
        reply = await http.post("/v1/weights", json={"policy": "v2"}, headers=key)
        assert reply.status_code == 403
        assert "server.admin_keys" in reply.json()["error"]["message"]
    async with client(parts(tmp_path, docs=True)) as http:
        assert (await http.get("/v1/weights")).status_code == 403


async def test_an_open_server_may_have_an_admin(tmp_path: Path) -> None:
    async with client(parts(tmp_path, admin_keys=["admin-key"])) as http:
        assert (await http.get("/v1/models")).status_code == 200
        assert (await http.get("/v1/weights")).status_code == 401
        assert (await http.get("/v1/weights", headers=ADMIN)).status_code == 200


async def test_weights_are_exchanged_and_seen_everywhere(tmp_path: Path) -> None:
    it = parts(tmp_path)
    async with client(it, headers=ADMIN) as http:
        before = (await http.get("/v1/weights")).json()
        assert before["policy"]["version"] == "v1" and before["prm"] is None
        reply = await http.post("/v1/weights", json={"policy": str(tmp_path / "v2")})
        assert reply.status_code == 200
        after = reply.json()
        assert after["policy"]["folder"] == str((tmp_path / "v2").resolve())
        assert after["policy"]["since"] > before["policy"]["since"]
        assert (await http.get("/v1/weights")).json() == after
        models = (await http.get("/v1/models")).json()["data"]
        assert {(m["version"], m["prm_version"]) for m in models} == {("v2", None)}
        chat = (await http.post("/v1/chat/completions", json=CHAT)).json()["ponder"]
        assert chat["version"] == "v2"
        trace = (await http.get(f"/v1/traces/{chat['trace_id']}")).json()
        assert trace["versions"]["policy_version"] == "v2"
        text = (await http.get("/metrics")).text
        assert 'ponder_weights_info{part="policy",version="v2"} 1.0' in text
        assert 'version="v1"' not in text
        assert 'ponder_weight_exchanges_total{outcome="loaded",part="policy"} 1.0' in text
        assert 'ponder_weight_exchange_seconds_count{part="policy"} 1.0' in text
        back = await http.post("/v1/weights", json={"policy": "v1"})
        assert back.json()["policy"]["version"] == "v1"


@pytest.mark.parametrize(
    ("body", "param", "what"),
    [
        ({"policy": "bad"}, "policy", "bad is bad"),
        ({"policy": "none"}, "policy", "neither a version"),
        ({"prm": "v2"}, "prm", "has no prm"),
        ({"policy": 1}, "policy", "string"),
        ({"policy": ""}, "policy", "at least 1"),
        ({"orm": "v2"}, "orm", "Unknown parameter"),
    ],
)
async def test_what_cannot_be_served_is_refused(
    tmp_path: Path, body: dict[str, Any], param: str, what: str
) -> None:
    it = parts(tmp_path)
    if body == {"policy": "bad"}:
        body = {"policy": str(tmp_path / "bad")}
    async with client(it, headers=ADMIN) as http:
        reply = await http.post("/v1/weights", json=body)
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (400, param)
        assert what in error["message"]
        assert (await http.get("/v1/weights")).json()["policy"]["version"] == "v1"


async def test_an_engine_that_fails_to_load_serves_on(tmp_path: Path) -> None:
    it = parts(tmp_path)
    it.engine.device.fails = True  # type: ignore[attr-defined]
    async with client(it, headers=ADMIN) as http:
        reply = await http.post("/v1/weights", json={"policy": str(tmp_path / "v2")})
        assert reply.status_code == 502
        chat = await http.post("/v1/chat/completions", json=CHAT)
    assert chat.json()["ponder"]["version"] == "v1"


async def test_a_fixed_engine_says_so(tmp_path: Path) -> None:
    async with client(world(server=KEYS), headers=ADMIN) as http:
        reply = await http.post("/v1/weights", json={"policy": str(tmp_path)})
    assert reply.status_code == 400
    assert "served elsewhere" in reply.json()["error"]["message"]
