"""Servers that follow announced weights, with no vLLM behind them: all else is real.

A folder's name is the version of the weights in it; one that begins with `bad` is refused.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from server.engine.checkpoint import BadWeights, Checkpoint
from server.pod.gate import Gated
from server.pod.pod import Pod
from server.pod.routes import router
from server.promotions import Promotions
from server.published import Kind
from tests.scripted import serving

MODEL = "model"


@dataclass
class FakeVllm:
    """An engine that says which weights it computes with."""

    loaded: str = "v0"
    busy: int = 0
    seconds: float = 0.005  # of a request
    load_seconds: float = 0.02
    fails: bool = False  # the next exchange
    exchanges: int = 0
    refuses: set[str] = field(default_factory=set)
    may_look: threading.Event = field(default_factory=threading.Event)
    compared: list[tuple[str, str]] = field(default_factory=list)  # new weights, and those served
    dead: asyncio.Event = field(default_factory=asyncio.Event)

    async def generate(self) -> dict[str, str]:
        self.busy += 1
        began = self.loaded
        await asyncio.sleep(self.seconds)
        assert self.loaded == began, "its weights changed under a request"
        self.busy -= 1
        return {"version": began}

    async def exchange(self, found: Checkpoint) -> None:
        assert not self.busy, "loaded under a request"
        await asyncio.sleep(self.load_seconds)
        assert not self.busy, "a request came in meanwhile"
        if self.fails:
            raise RuntimeError("the fake engine did not load them")
        self.loaded = found.version
        self.exchanges += 1

    def __post_init__(self) -> None:
        self.may_look.set()

    def look_over(self, folder: Path, serving: Path) -> Checkpoint:
        assert self.may_look.wait(20)
        self.compared.append((folder.name, serving.name))
        if folder.name.startswith("bad") or folder.name in self.refuses:
            raise BadWeights(f"{folder.name} is bad")
        return Checkpoint(folder, folder.name, "fake", {})

    def die(self) -> None:
        self.dead.set()


def pod_of(
    vllm: FakeVllm, promotions: Promotions, part: Kind = "policy", seconds: float = 0.01
) -> Pod:
    return Pod(
        part,
        vllm.loaded,
        Path(vllm.loaded),
        promotions,
        look_over=vllm.look_over,
        exchange=vllm.exchange,
        die=vllm.die,
        seconds=seconds,
    )


def app_of(pod: Pod, vllm: FakeVllm) -> FastAPI:
    """What vLLM's server is with the plugin."""
    app = FastAPI()
    app.state.pod = pod
    app.include_router(router)
    app.add_middleware(Gated)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": MODEL, "root": MODEL, "max_model_len": 512}]}

    @app.get("/health")
    async def health() -> None:
        return None

    @app.post("/v1/completions")
    async def completions() -> dict[str, str]:
        return await vllm.generate()

    return app


@dataclass
class Running:
    url: str
    pod: Pod
    vllm: FakeVllm


@asynccontextmanager
async def running(promotions: Promotions, vllm: FakeVllm | None = None) -> AsyncIterator[Running]:
    """A server on a port that follows."""
    vllm = vllm or FakeVllm()
    pod = pod_of(vllm, promotions)
    async with serving(app_of(pod, vllm)) as url:
        following = asyncio.create_task(pod.run())
        try:
            yield Running(url, pod, vllm)
        finally:
            following.cancel()
            await asyncio.wait([following])
