"""The endpoint plugin of vLLM's server by which it follows announced weights.

vLLM finds it by an entry point (`vllm.endpoint_plugins`) where `VLLM_PLUGINS` names it, which
`server.pod` sees to; its routes stand behind vLLM's own `--api-key`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from argparse import Namespace
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from server.engine.checkpoint import Checkpoint, look_over
from server.engine.reload import reload, reloads_right
from server.engine.tokenizer import HFTokenizer
from server.errors import EngineError
from server.pod.flags import NAME
from server.pod.gate import Gated
from server.pod.pod import Pod
from server.pod.routes import router
from server.pod.settings import PodSettings, pod_settings
from server.pod.version import promotions_of, version_of
from server.promotions import Promotions
from server.state.connection import Connection

log = logging.getLogger("ponder.pod")


class Plugin:
    """`vllm.plugins.endpoint_plugins.interface.EndpointPlugin`."""

    name = NAME
    required_tasks = None

    def attach_router(self, app: FastAPI) -> None:
        app.include_router(router)
        app.add_middleware(Gated)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        settings = pod_settings(os.environ)
        connection = Connection(settings.redis) if settings.redis else None
        promotions = promotions_of(settings, connection)
        state.pod = await asyncio.to_thread(_pod, settings, promotions, engine_client, args)
        state.following = asyncio.create_task(_follow(state.pod, connection))
        state.following.add_done_callback(_ended)


async def _follow(pod: Pod, connection: Connection | None) -> None:
    async with AsyncExitStack() as stack:
        if connection is not None:
            await stack.enter_async_context(connection.watched())
        await pod.run()


def _ended(following: asyncio.Task[None]) -> None:
    """A server that no longer follows must not be taken for one that does."""
    if not following.cancelled():
        log.error("it follows no more", exc_info=following.exception())
        _terminate()


def _pod(settings: PodSettings, promotions: Promotions, engine: Any, args: Namespace) -> Pod:
    tokenizer = HFTokenizer(args.model)
    made_over = args.convert == "classify" or "classifier_from_token" in (args.hf_overrides or {})

    def looked_over(folder: Path, serving: Path) -> Checkpoint:
        return look_over(folder, settings.part, str(serving), tokenizer)

    async def exchange(found: Checkpoint) -> None:
        if not reloads_right(found, converted=made_over):
            raise EngineError(f"{found.version} cannot be put into an engine that runs")
        await reload(engine, found)

    return Pod(
        settings.part,
        version_of(args.model),
        Path(args.model),
        promotions,
        look_over=looked_over,
        exchange=exchange,
        die=_terminate,
        seconds=settings.weights.seconds,
    )


def _terminate() -> None:
    signal.raise_signal(signal.SIGTERM)
