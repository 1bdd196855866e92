"""The real service over the fake models, behind the real API, in process or on a port."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from ponder_client import AsyncPonder, Patience
from prometheus_client import CollectorRegistry

from server.api.app import create_app
from server.api.once import Once
from server.api.server import uvicorn_config
from server.config import Settings
from server.metrics import Metrics
from server.profiles import AnswerProfile, Profile
from server.reward import Models
from server.service import Service
from server.state.connection import Connection
from server.state.quotas import Quotas
from server.state.replies import RedisReplies
from server.traces import TraceStore
from server.traces.feedback import Feedback
from server.traces.schema import Trace
from server.traces.summary import ALL, Summary, Wanted
from tests.fakes import FakeEngine
from tests.valkey import Valkey

PROFILE = Profile(
    name="fake",
    delimiter="\n",
    max_step_tokens=48,
    max_tokens=400,
    answer=AnswerProfile(pattern=r"Answer: (\d+)"),
)
USER = [{"role": "user", "content": "Say something."}]


@dataclass
class Kept:
    """A trace store that only remembers; enough of one for the routes."""

    traces: dict[str, Trace] = field(default_factory=dict)

    def put(self, trace: Trace) -> None:
        self.traces[trace.trace_id] = trace

    async def get(self, trace_id: str) -> Trace | None:
        return self.traces.get(trace_id)

    async def list(self, wanted: Wanted = ALL, *, limit: int = 50) -> list[Summary]:
        found = [s for s in map(Summary.of, self.traces.values()) if s in wanted]
        return sorted(found, key=lambda s: s.place, reverse=True)[:limit]

    async def add_feedback(self, feedback: Feedback) -> None:
        trace, said = self.traces[feedback.trace_id], feedback.model_dump(exclude_none=True)
        changes: dict[str, Any] = {n: said[n] for n in ("outcome", "feedback") if n in said}
        self.traces[trace.trace_id] = trace.model_copy(update=changes)


@dataclass
class World:
    """One server's parts, for a test to look into."""

    engine: FakeEngine
    service: Service
    settings: Settings
    metrics: Metrics
    app: FastAPI
    once: Once
    redis: Connection | None = None

    @property
    def idle(self) -> bool:
        """The policy was asked nothing."""
        return self.engine.requests == 0


def world(
    *,
    engine: FakeEngine | None = None,
    profile: Profile = PROFILE,
    redis: Connection | None = None,
    store: TraceStore | None = None,
    **settings: Any,
) -> World:
    """A server over fakes that write a token each 0.1 ms. With `redis` one of several replicas."""
    engine = engine or FakeEngine(pace=1e-4)
    configured = Settings.model_validate(
        {"policy": {"kind": "vllm", "model": "fake", "profile": "default"}, **settings}
    )
    metrics, traces = Metrics(CollectorRegistry()), store or Kept()
    models = Models(engine, profile)
    quotas = Quotas(configured.quotas, configured.server.keys, redis, metrics)
    service = Service(configured, models, traces=traces, observer=metrics, quotas=quotas)
    repeats = configured.idempotency
    shared = RedisReplies(redis, repeats.lease_seconds) if redis else None
    once = Once(repeats, metrics, shared)
    app = create_app(service, configured, traces, metrics, once)  # type: ignore[arg-type]
    return World(engine, service, configured, metrics, app, once, redis)


@asynccontextmanager
async def replica(valkey: Valkey, **options: Any) -> AsyncIterator[World]:
    """One of several servers that share what is in `valkey`."""
    redis = Connection(valkey.settings())
    async with redis.watched():
        parts = world(redis=redis, **options)
        try:
            yield parts
        finally:
            await parts.once.close()
            await parts.service.quotas.close()


@asynccontextmanager
async def client(parts: World, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application itself, without a network."""
    transport = httpx.ASGITransport(parts.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://ponder", timeout=30, **options
    ) as http:
        yield http


def asking(parts: World, key: str | None = None) -> AsyncPonder:
    """The same as ponder-client has it; it tries nothing again."""
    transport = httpx.ASGITransport(parts.app, raise_app_exceptions=False)
    return AsyncPonder("http://ponder", key, patience=Patience(retries=0), transport=transport)


@asynccontextmanager
async def serving(parts: World) -> AsyncIterator[tuple[str, int]]:
    """The application behind real uvicorn, on a free port: its host and port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn_config(parts.app, parts.settings))
        # The socket listens already: whoever connects before uvicorn is up just waits.
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            await task


@asynccontextmanager
async def connected(parts: World, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application over a real connection."""
    async with serving(parts) as (host, port):
        url = f"http://{host}:{port}"
        async with httpx.AsyncClient(base_url=url, timeout=30, **options) as http:
            yield http


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Return once the condition holds; `TimeoutError` if it does not in time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  (what is watched has no event)
            await asyncio.sleep(0.002)


def events(text: str) -> list[tuple[str | None, Any]]:
    """The frames of an event stream as (event, data); comments are left out."""
    found = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if line[0] != ":")
        if lines:
            data = lines["data"]
            found.append((lines.get("event"), data if data == "[DONE]" else json.loads(data)))
    return found
