"""What operators and SDKs look up: models, health, metrics, traces, docs."""

from __future__ import annotations

import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.traces.schema import Trace
from tests.fakes import FakeEngine
from tests.serving import USER, client, world

CHAT = {"model": "ponder-beam", "messages": USER, "seed": 3}


async def test_models_are_listed_and_found_one_by_one() -> None:
    async with client(world(engine=FakeEngine(name="org/fake"))) as http:
        listed = (await http.get("/v1/models")).json()
        assert listed["object"] == "list"
        assert {"org/fake", "ponder-mcts", "ponder-vote"} <= {m["id"] for m in listed["data"]}
        for model in listed["data"]:
            assert (await http.get(f"/v1/models/{model['id']}")).json() == model
        missing = await http.get("/v1/models/gpt-4")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


async def test_ready_follows_the_engine_and_health_does_not() -> None:
    parts = world()
    async with client(parts) as http:
        assert (await http.get("/ready")).status_code == 200
        parts.engine.broken = True
        assert (await http.get("/ready")).status_code == 503
        assert (await http.get("/health")).status_code == 200


async def test_metrics_count_what_was_done() -> None:
    parts = world()
    async with client(parts) as http:
        reply = (await http.post("/v1/chat/completions", json=CHAT)).json()
        await http.post("/v1/chat/completions", json={**CHAT, "n": -1})
        text = (await http.get("/metrics")).text
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    beam = ("strategy", "beam")
    spent = reply["ponder"]["tokens"]
    for kind in ("policy", "discarded", "prompt"):
        assert samples["ponder_tokens_total", ("kind", kind)] == spent[kind]
    assert samples["ponder_nodes_total", beam] == reply["ponder"]["nodes"]
    assert samples["ponder_searches_total", ("outcome", "answered"), beam] == 1
    assert samples["ponder_first_event_seconds_count", beam] == 1
    assert samples["ponder_search_seconds_count", beam] == 1
    assert samples["ponder_searches_running",] == 0
    bad = (("code", "none"), ("status", "400"), ("type", "invalid_request_error"))
    assert samples["ponder_errors_total", *bad] == 1
    route = ("route", "/v1/chat/completions")
    for status in ("200", "400"):
        labels = (("method", "POST"), route, ("status", status))
        assert samples["ponder_http_requests_total", *labels] == 1


async def test_paths_of_clients_make_no_labels() -> None:
    parts = world()
    async with client(parts) as http:
        await http.get("/v1/models/gpt-4")
        await http.request("BREW", "/coffee")
        text = (await http.get("/metrics")).text
    assert "gpt-4" not in text
    assert "coffee" not in text
    assert "BREW" not in text
    assert 'route="/v1/models/{model:path}"' in text


async def test_a_trace_is_given_back_whole() -> None:
    async with client(world()) as http:
        trace_id = (await http.post("/v1/chat/completions", json=CHAT)).json()["ponder"]["trace_id"]
        trace = Trace.model_validate_json((await http.get(f"/v1/traces/{trace_id}")).content)
        missing = await http.get("/v1/traces/none")
    assert trace.trace_id == trace_id
    assert trace.prompt_messages == tuple(USER)
    assert missing.status_code == 404
    assert missing.json()["error"]["param"] == "trace_id"


async def test_docs_load_nothing_from_elsewhere() -> None:
    async with client(world()) as http:
        page = await http.get("/docs")
        loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(loaded) == 3
        for path in loaded:
            assert path.startswith("/docs/")
            assert (await http.get(path)).status_code == 200
    assert "://" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


async def test_docs_can_be_switched_off() -> None:
    async with client(world(server={"docs": False})) as http:
        for path in ("/docs", "/openapi.json"):
            assert (await http.get(path)).status_code == 404


async def test_openapi_describes_every_body_and_refers_to_nothing_missing() -> None:
    async with client(world()) as http:
        spec = (await http.get("/openapi.json")).json()
    schemas = spec["components"]["schemas"]
    assert refs(spec) <= {f"#/components/schemas/{name}" for name in schemas}
    assert "simulations" in schemas["MCTS"]["properties"]
    for path in ("/v1/chat/completions", "/v1/reason"):
        asked = spec["paths"][path]["post"]
        assert asked["requestBody"]["required"]
        headers = {p["name"]: p["schema"] for p in asked["parameters"] if p["in"] == "header"}
        assert headers.keys() == {"Idempotency-Key", "x-ponder-resume", "x-ponder-seconds"}
        assert re.fullmatch(headers["x-ponder-seconds"]["pattern"], "12.5")


def refs(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(refs, value.values()))
    return set().union(*map(refs, value)) if isinstance(value, list) else set()


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_probes_need_no_body(path: str) -> None:
    async with client(world()) as http:
        assert (await http.get(path)).headers["content-type"] == "application/json"
