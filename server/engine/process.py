"""The process of an engine, seen from ours: how nice it is, and how it ends."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path

import zmq
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

YIELDING = 10  # niceness: about a tenth of a core's time while others want it, all of it otherwise
GRACE = 2.0  # seconds that an engine's process has to end before it is killed: it keeps nothing


def yield_cores(engine: AsyncLLM) -> None:
    """Linux keeps niceness by the thread; a new one has that of the one that begins it."""
    manager = engine.engine_core.resources.engine_manager
    if sys.platform != "linux" or manager is None:
        return
    for process in manager.processes:
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            with suppress(ProcessLookupError):  # it has ended
                now = os.getpriority(os.PRIO_PROCESS, int(thread.name))
                os.setpriority(os.PRIO_PROCESS, int(thread.name), now + YIELDING)


async def shut_down(engine: AsyncLLM) -> None:
    """End the engine's process, if it still runs, and free what vLLM leaves to the collector."""
    client = engine.engine_core
    if engine.output_handler is not None:
        engine.output_handler.cancel()  # or it reports the end that we ask for as a death
    engine.output_processor.propagate_error(EngineDeadError())  # whoever waits for it still
    await asyncio.to_thread(engine.shutdown, GRACE)
    # After a death vLLM's own thread may be at this still; a context with an open socket in it
    # would wait for that, and stop the event loop.
    for socket in vars(client.resources).values():
        if isinstance(socket, zmq.Socket):
            socket.close(linger=0)
    await asyncio.to_thread(client.ctx._shadow_obj.term)
