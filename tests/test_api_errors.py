"""Failures behind the API: the right status, nothing leaked, counted."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pytest

from server.errors import EngineError
from server.types import Cut, Sampling
from tests.fakes import FakeEngine, FakeStream
from tests.serving import USER, World, client, connected, events, until, world

CHAT = {"model": "ponder-best-of-n", "messages": USER, "seed": 3}
SECRET = "10.0.0.7:8001 said: prompt"


@dataclass
class Failing(FakeEngine):
    """Fails when it is asked for the `last`-th stream or a later one."""

    error: Exception = EngineError(SECRET)  # noqa: RUF009  (raised, never changed)
    last: int = 1

    def stream(
        self,
        prompt_ids: object,
        *,
        max_tokens: int,
        seed: int | None,
        sampling: Sampling,
        cut: Cut,
        priority: int = 0,
        top_logprobs: int = 0,
    ) -> FakeStream:
        if self.requests + 1 >= self.last:
            raise self.error
        return super().stream(
            prompt_ids,  # type: ignore[arg-type]
            max_tokens=max_tokens,
            seed=seed,
            sampling=sampling,
            cut=cut,
            priority=priority,
        )


def count(parts: World, **labels: str) -> float | None:
    return parts.metrics.registry.get_sample_value("ponder_errors_total", labels)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/reason"])
async def test_a_failing_engine_is_a_502_that_hides_its_words(
    path: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Also for a stream: nothing was sent yet, so the SDK can raise the right class."""
    parts = world(engine=Failing())
    asked = CHAT if "chat" in path else {"question": "Why?"}
    async with client(parts) as http:
        reply = await http.post(path, json={**asked, "stream": stream})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (502, "engine_failed")
    assert SECRET not in reply.text
    assert reply.headers["x-should-retry"] == "false"
    assert SECRET in caplog.text
    assert count(parts, status="502", type="engine_error", code="engine_failed") == 1


async def test_our_own_mistake_is_a_500_that_says_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    parts = world(engine=Failing(error=KeyError(SECRET)))
    async with client(parts) as http:
        reply = await http.post("/v1/chat/completions", json=CHAT)
    assert reply.json()["error"]["code"] == "internal_error"
    assert reply.status_code == 500
    assert SECRET not in reply.text
    assert reply.headers["x-request-id"]
    assert reply.headers["x-should-retry"] == "false"
    assert SECRET in caplog.text


async def test_a_failure_half_way_is_a_frame(caplog: pytest.LogCaptureFixture) -> None:
    """Nested, as SDKs want it, and nothing after it: no [DONE], no finish_reason."""
    caplog.set_level(logging.CRITICAL)
    engine = Failing(pace=1e-4, p_end=0.02, last=20)
    beam = {"kind": "beam", "width": 2, "branch": 2}
    async with client(world(engine=engine)) as http:
        chat = {**CHAT, "model": "fake", "search": {"strategy": beam}, "stream": True}
        told = events((await http.post("/v1/chat/completions", json=chat)).text)
        engine.requests = 0
        asked = {"question": "Why?", "strategy": beam, "stream": True}
        steps = events((await http.post("/v1/reason", json=asked)).text)
    assert told[0][1]["choices"][0]["delta"]["role"] == "assistant"
    assert told[-1][1]["error"]["code"] == "engine_failed"
    assert steps[0][0] == "step"
    assert steps[-1][0] == "error"
    assert steps[-1][1]["error"]["code"] == "engine_failed"


async def test_a_full_queue_is_a_429_to_be_tried_again() -> None:
    engine = FakeEngine(pace=0.05, length=5, p_end=0.01)
    parts = world(engine=engine, limits={"searches": 1, "queue": 0})
    async with connected(parts) as http, connected(parts) as other:
        async with http.stream("POST", "/v1/reason", json={"question": "a", "stream": True}):
            await until(lambda: engine.open_streams > 0)
            for stream in (False, True):
                reply = await other.post("/v1/chat/completions", json={**CHAT, "stream": stream})
                assert reply.status_code == 429
                assert reply.json()["error"]["code"] == "overloaded"
                assert int(reply.headers["retry-after"]) >= 1
                assert "x-should-retry" not in reply.headers
        await until(lambda: engine.open_streams == 0)


async def test_a_budget_too_small_for_a_step_says_so() -> None:
    parts = world(engine=FakeEngine(pace=10.0))
    search = {"budget": {"seconds": 0.05}}
    async with client(parts) as http:
        reply = await http.post("/v1/chat/completions", json={**CHAT, "search": search})
    assert reply.status_code == 504
    assert reply.json()["error"]["code"] == "no_answer"
    assert reply.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/v1/models", 405),
        ("GET", "/docs/../app.py", 404),
        ("GET", "/docs/LICENSE", 404),
        ("POST", "/invocations", 404),
        ("POST", "/tokenize", 404),
    ],
)
async def test_unknown_routes_have_errors_of_ours(method: str, path: str, status: int) -> None:
    parts = world()
    async with client(parts) as http:
        reply = await http.request(method, path)
    assert reply.status_code == status
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert reply.headers["x-request-id"]
    assert reply.headers["x-should-retry"] == "false"
    if status == 405:
        assert reply.headers["allow"]


async def test_a_harmless_request_id_is_kept() -> None:
    async with client(world()) as http:
        kept = await http.get("/health", headers={"x-request-id": "job-7.1"})
        new = await http.get("/health", headers={"x-request-id": 'x" onload="'})
    assert kept.headers["x-request-id"] == "job-7.1"
    assert new.headers["x-request-id"].startswith("req_")
