"""What a gateway says of its servers: readiness, models, metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.config import Settings
from server.launch import built
from tests.routed import Servers, name_of, three
from tests.scripted import DONE, delta, events, refusal

CHAT = {"model": "remote", "messages": [{"role": "user", "content": "Say something."}]}
OK = events(delta("yes", "stop"), DONE)


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    async with three() as servers:
        yield servers


@pytest.fixture
async def http(servers: Servers) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway to three servers, of which the last does not serve."""
    servers.last.pages["/v1/models"] = refusal(503, "loading")
    policy = {"kind": "http", "model": "remote", "dialect": "chat", "retries": 0, **servers.urls}
    routing = {"probe_seconds": 60}
    settings = Settings.model_validate(
        {"policy": policy | {"routing": routing}, "traces": {"enabled": False}}
    )
    async with AsyncExitStack() as stack:
        _, app = await built(settings, stack)
        transport = httpx.ASGITransport(app)
        yield await stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://ponder")
        )


async def test_it_is_ready_while_one_serves(servers: Servers, http: httpx.AsyncClient) -> None:
    reply = await http.get("/ready")
    assert reply.json()["replicas"] == {"policy": {"known": 3, "up": 2}}
    servers.own.pages["/v1/models"] = refusal(503, "no")
    assert (await http.get("/ready")).status_code == 200
    servers.next.pages["/v1/models"] = refusal(503, "no")
    assert (await http.get("/ready")).status_code == 503


async def test_models_tell_how_many_serve_them(http: httpx.AsyncClient) -> None:
    listed = (await http.get("/v1/models")).json()["data"]
    assert all(m["replicas"] == {"policy": {"known": 3, "up": 2}} for m in listed)


async def test_metrics_tell_of_each_server(servers: Servers, http: httpx.AsyncClient) -> None:
    for server in (servers.own, servers.next):
        server.will(refusal(500, "lost a GPU"), OK)
    replies = [await http.post("/v1/chat/completions", json=CHAT) for _ in range(2)]
    assert [r.status_code for r in replies] == [502, 200]
    text = (await http.get("/metrics")).text
    samples = {
        (sample.name.removeprefix("ponder_replica_"), sample.labels["replica"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("ponder_replica_") and sample.labels["part"] == "policy"
    }
    names = {name_of(server): len(server.requests) for server in servers.all}
    assert {n for _, n in samples} == names.keys()
    assert {n: samples["requests_total", n] for n in names} == names
    assert samples["up", name_of(servers.last)] == 0
    assert sum(samples["moved_total", n] for n in names) == 1
    assert sum(samples["failures_total", n] for n in names) == 2
