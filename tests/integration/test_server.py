"""The whole server on the reference pair in a real vLLM, driven by real clients."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client import CollectorRegistry

from server.api.app import create_app
from server.api.once import Once
from server.config import HttpSettings, Limits, Settings, TraceSettings, VllmSettings
from server.engine.http import HttpEngine
from server.engine.vllm import VllmEngine
from server.launch import watch
from server.metrics import Metrics
from server.profiles import shipped
from server.reward import Models
from server.reward.prm import VllmPrm
from server.service import Service
from server.traces.shared import make_store
from server.types import Engine
from tests.integration.conftest import settings as vllm_settings
from tests.integration.servers import POLICY, metric, vllm_server
from tests.serving import World, serving, until
from tests.test_api_sdk_node import run as run_node

PUZZLES = ["4 9 10 13", "1 1 4 6", "2 3 5 12", "3 3 7 7", "5 6 8 13", "1 7 7 11", "4 4 4 5"]
QUESTIONS = [f"Use {p} to make 24." for p in PUZZLES]


@asynccontextmanager
async def world(
    engine: Engine, prm: VllmPrm | None, folder: Path, **limits: Any
) -> AsyncIterator[World]:
    """The real parts as `server.launch` puts them together, on engines that run already."""
    configured = Settings(
        policy=VllmSettings(model="models/policy", name="reference"),
        limits=Limits(**limits),
        traces=TraceSettings(folder=folder, fsync="never"),
    )
    metrics, traces = Metrics(CollectorRegistry()), make_store(configured.traces)
    await traces.start()
    models = Models(engine, shipped()["reference"], prm)
    service = Service(configured, models, traces=traces, observer=metrics)
    watch(metrics, service, traces)
    once = Once(configured.idempotency, metrics)
    app = create_app(service, configured, traces, metrics, once)
    try:
        yield World(engine, service, configured, metrics, app, once)  # type: ignore[arg-type]
    finally:
        await traces.close()


@pytest.fixture
async def parts(policy_engine: VllmEngine, prm: VllmPrm, tmp_path: Path) -> AsyncIterator[World]:
    async with world(policy_engine, prm, tmp_path, searches=128) as parts:
        yield parts


@asynccontextmanager
async def connected(parts: World) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(parts) as (host, port):
        limits = httpx.Limits(max_connections=None)
        url = f"http://{host}:{port}"
        async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
            yield http


@asynccontextmanager
async def sdk(parts: World) -> AsyncIterator[openai.AsyncOpenAI]:
    async with serving(parts) as (host, port):
        url = f"http://{host}:{port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            yield client


def asked(question: str) -> list[Any]:
    return [{"role": "user", "content": question}]


async def test_openai_python(parts: World) -> None:
    async with sdk(parts) as client:
        reply = await client.chat.completions.create(
            model="ponder-mcts", messages=asked(QUESTIONS[0]), seed=1, reasoning_effort="high"
        )
        message = reply.choices[0].message
        assert message.content is not None and message.content.startswith("Answer: ")
        reasoning = message.model_extra["reasoning_content"]  # type: ignore[index]
        assert "(left:" in reasoning
        usage = reply.usage
        assert usage is not None and usage.completion_tokens_details is not None
        reasoning_tokens = usage.completion_tokens_details.reasoning_tokens
        assert reasoning_tokens is not None and 0 < reasoning_tokens < usage.completion_tokens

        stream = await client.chat.completions.create(
            model="ponder-best-of-n", messages=asked(QUESTIONS[1]), stream=True
        )
        text, reasons = "", []
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            reasons.append(chunk.choices[0].finish_reason)
        assert text.startswith("Answer: ")
        assert [r for r in reasons if r] == ["stop"]

        names = [model.id async for model in client.models.list()]
        policy = parts.service.models.policy.name
        assert policy in names and "ponder-mcts" in names
        assert (await client.models.retrieve(policy)).id == policy
        plain = await client.chat.completions.create(
            model=policy, messages=asked(QUESTIONS[0]), temperature=0, n=1
        )
        again = await client.chat.completions.create(
            model=policy, messages=asked(QUESTIONS[0]), temperature=0, n=1
        )
        assert plain.choices[0].message == again.choices[0].message


async def test_openai_node(parts: World) -> None:
    policy = parts.service.models.policy.name
    told = await run_node("openai.mjs", parts, policy, QUESTIONS[0])
    assert told["whole"]["choices"][0]["message"]["content"].startswith("Answer: ")
    assert told["chunks"][-1]["usage"]["completion_tokens"] > 0
    assert told["bad"]["name"] == "BadRequestError"


async def chat(http: httpx.AsyncClient, i: int) -> None:
    """One chat whose trace holds this question and this answer, and nobody else's."""
    model = ("ponder-mcts", "ponder-beam", "ponder-best-of-n", "ponder-vote")[i % 4]
    body = {
        "model": model,
        "messages": asked(QUESTIONS[i % len(QUESTIONS)]),
        "reasoning_effort": "minimal",
    }
    reply = (await http.post("/v1/chat/completions", json=body)).json()
    trace = (await http.get(f"/v1/traces/{reply['ponder']['trace_id']}")).json()
    assert trace["prompt_messages"][0]["content"] == body["messages"][0]["content"]
    content = reply["choices"][0]["message"]["content"]
    assert trace["nodes"][trace["selected"]]["text"] in content


async def streamed(http: httpx.AsyncClient, i: int) -> None:
    question = QUESTIONS[i % len(QUESTIONS)]
    body = {"question": question, "strategy": {"kind": "best_of_n", "n": 4}, "stream": True}
    reply = await http.post("/v1/reason", json=body)
    frames = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
    kinds = [json.loads(frame)["type"] for frame in frames]
    assert kinds[-1] == "done" and kinds.count("answer") == 1
    assert kinds.count("score") == 4


async def refused(http: httpx.AsyncClient, i: int) -> None:
    body = {"model": "ponder-mcts", "messages": asked("Use 1 2 3 4 to make 24."), "n": 1000 + i}
    reply = await http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "n"


async def test_a_hundred_mixed_requests_at_once(parts: World) -> None:
    kinds = (chat, chat, streamed, streamed, refused)
    async with connected(parts) as http:
        await asyncio.gather(*(kinds[i % 5](http, i) for i in range(100)))
    load = parts.engine.load()
    assert (load.running, load.waiting) == (0, 0)


async def gauge(http: httpx.AsyncClient, name: str) -> float:
    lines = (await http.get("/metrics")).text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


async def test_a_dropped_stream_leaves_nothing_running_in_this_process(parts: World) -> None:
    body = {"question": QUESTIONS[0], "strategy": {"kind": "best_of_n", "n": 128}, "stream": True}
    async with connected(parts) as http:
        async with http.stream("POST", "/v1/reason", json=body) as reply:
            assert reply.status_code == 200
            await anext(reply.aiter_lines())
            await until(lambda: parts.engine.load().running > 0, seconds=30)
            assert await gauge(http, "ponder_engine_requests_running") > 0
        await until(lambda: parts.engine.load().running == 0, seconds=2)
        for name in ("engine_requests_running", "engine_requests_waiting", "traces_dropped"):
            assert await gauge(http, f"ponder_{name}") == 0


async def test_a_dropped_stream_leaves_nothing_running_in_a_remote_vllm(tmp_path: Path) -> None:
    """By vLLM's own metrics."""
    model = vllm_settings("policy").model
    async with vllm_server(model, *POLICY) as url:
        engine = HttpEngine(HttpSettings(url=url, model=model))
        await engine.start()
        async with world(engine, None, tmp_path) as parts, connected(parts) as http:
            strategy = {"kind": "best_of_n", "n": 128}
            body = {"question": QUESTIONS[0], "strategy": strategy, "stream": True}
            async with http.stream("POST", "/v1/reason", json=body) as reply:
                assert reply.status_code == 200
                await anext(reply.aiter_lines())
                async with asyncio.timeout(30):
                    while not await metric(url, "vllm:num_requests_running"):  # noqa: ASYNC110  (a metric has no event)
                        await asyncio.sleep(0.05)
            async with asyncio.timeout(2):
                for name in ("vllm:num_requests_running", "vllm:num_requests_waiting"):
                    while await metric(url, name):  # noqa: ASYNC110  (a metric has no event)
                        await asyncio.sleep(0.05)
        await engine.close()


def engines() -> set[int]:
    """The processes of the engines that this one has started."""
    children = Path("/proc/self/task").glob("*/children")
    pids = {int(pid) for found in children for pid in found.read_text().split()}
    return {p for p in pids if b"EngineCore" in Path(f"/proc/{p}/cmdline").read_bytes()}


async def test_killing_the_engine_gives_every_client_a_typed_error(tmp_path: Path) -> None:
    before = engines()
    engine = VllmEngine(vllm_settings("policy"))
    await engine.start()
    (core,) = engines() - before
    strategy = {"kind": "best_of_n", "n": 64}
    async with world(engine, None, tmp_path) as parts, connected(parts) as http:
        assert (await http.get("/ready")).status_code == 200

        async def ask(i: int) -> httpx.Response:
            if i % 2:
                body = {"question": QUESTIONS[0], "strategy": strategy, "stream": i % 4 == 1}
                return await http.post("/v1/reason", json=body)
            search = {"strategy": strategy}
            chat = {"model": "ponder-best-of-n", "messages": asked(QUESTIONS[0]), "search": search}
            return await http.post("/v1/chat/completions", json=chat)

        tasks = [asyncio.create_task(ask(i)) for i in range(16)]
        await until(lambda: engine.load().running >= 32, seconds=30)
        os.kill(core, signal.SIGKILL)
        async with asyncio.timeout(10):
            replies = await asyncio.gather(*tasks)
        for reply in replies:
            if reply.status_code == 200:  # the stream had begun
                last = [x for x in reply.text.splitlines() if x.startswith("data: ")][-1]
                error = json.loads(last.removeprefix("data: "))["error"]
            else:
                assert reply.status_code in (502, 503)
                error = reply.json()["error"]
            assert error["type"] == "engine_error"
            assert error["code"] in ("engine_dead", "engine_failed")
        assert (await http.get("/ready")).status_code == 503
        async with asyncio.timeout(90):
            while (await http.get("/ready")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        assert (await ask(0)).status_code == 200
    await engine.close()
