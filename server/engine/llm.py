"""One vLLM engine in this process: its arguments, its start and end, its death and return.

What the policy (`vllm.py`) and an in-process PRM share. Environment variables are read by vLLM
and OpenMP in the engine's own process, which `Llm.start` spawns; `ENVIRONMENT` and, on CPU,
`CPU_ENVIRONMENT` are set before that, and only where the user has set nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from itertools import count
from pathlib import Path
from typing import Any

import zmq
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import PrometheusStatLogger

from server.config import VllmSettings
from server.errors import BadRequest, EngineDead, EngineError, PonderError, boundary
from server.types import Load

log = logging.getLogger(__name__)

ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",  # nothing is reported to anyone
}
CPU_ENVIRONMENT = {
    # Half the cores: a policy and a PRM run side by side. One thread beats two that share a core.
    "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 2)),
    # vLLM's own binding puts every engine of a machine on the same first cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # The worker lives in the engine's process: one process fewer to start and to talk to.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
CPU_ARGUMENTS: dict[str, Any] = {
    "enforce_eager": True,  # compiling takes longer to start than small models win back
    "block_size": 32,  # vLLM's 128 caches a prefix in steps of 128 tokens
    "kv_cache_memory_bytes": 1 << 29,  # vLLM's default is nearly all memory, for each engine
}
YIELDING = 10  # niceness: about a tenth of a core's time while others want it, all of it otherwise
BACKOFF = (1.0, 2.0, 5.0, 15.0, 60.0)  # seconds before each attempt to restart; the last repeats

GRACE = 2.0  # seconds that an engine's process has to end before it is killed: it keeps nothing


def arguments(settings: VllmSettings, defaults: Mapping[str, Any] | None = None) -> AsyncEngineArgs:
    """Engine arguments: ours, `defaults` over them, the user's `extra` over both.

    vLLM's own statistics are off: they cost time for each token, and are process-wide Prometheus
    collectors, which a second engine wipes. `Meter` takes what is needed.
    `BadRequest` on an argument that vLLM does not have.
    """
    known = {f.name for f in fields(AsyncEngineArgs)}
    if unknown := sorted(settings.extra.keys() - known):
        raise BadRequest(f"unknown AsyncEngineArgs: {', '.join(unknown)}", param="extra")
    values: dict[str, Any] = {
        "model": settings.model,
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    values |= CPU_ARGUMENTS if current_platform.is_cpu() else {}
    if settings.kv_cache_bytes is not None:
        values["kv_cache_memory_bytes"] = settings.kv_cache_bytes
    return AsyncEngineArgs(**(values | dict(defaults or {}) | settings.extra))


def prepare_environment() -> None:
    """Set what the user has not set. Logging in this process was configured by the import."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    if current_platform.is_cpu():
        for name, value in CPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)


@contextmanager
def llm_boundary(what: str) -> Iterator[None]:
    """vLLM's failures become ours: `EngineDead`, `BadRequest`, or else `EngineError`."""
    try:
        with boundary(EngineError, what):
            yield
    except EngineError as error:
        cause = error.__cause__
        if isinstance(cause, EngineDeadError):
            raise EngineDead(f"{what}: the engine died") from cause
        if isinstance(cause, VLLMValidationError):
            raise BadRequest(str(cause), param=cause.parameter) from cause
        raise


def terminate() -> None:
    """End this process the way a supervisor would, so that the server drains."""
    signal.raise_signal(signal.SIGTERM)


class Meter(PrometheusStatLogger):
    """What the engine's scheduler says of its KV cache, with each of its steps.

    A subclass without its parent's collectors, which vLLM would otherwise make, too.
    """

    def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None):
        self.preempted = 0
        self._used: dict[int, float] = {}  # share in use, by data-parallel rank

    @property
    def used(self) -> float:
        return sum(self._used.values()) / len(self._used) if self._used else 0.0

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        if scheduler_stats is not None:
            self._used[engine_idx] = scheduler_stats.kv_cache_usage
            # Counted when they resume.
            self.preempted += scheduler_stats.prefix_cache_stats.preempted_requests

    def log_engine_initialized(self) -> None:
        """Nothing to say."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """Not kept."""

    def record_admission_rejection(self, reason: str) -> None:
        """Not kept."""


class Llm:
    """An `AsyncLLM` that comes back. `on_exit` is called at its death if settings say "exit".

    From its death until it serves again, `engine` raises `EngineDead` at once. On a CPU one that
    is `yielding` leaves the cores to the others while they want them.
    """

    def __init__(
        self,
        settings: VllmSettings,
        *,
        defaults: Mapping[str, Any] | None = None,
        on_exit: Callable[[], None] = terminate,
        yielding: bool = False,
    ):
        self.name = settings.name or Path(settings.model).name
        self.capacity = settings.max_num_seqs
        self.restarts = 0
        self._settings = settings
        self._defaults = defaults
        self._on_exit = on_exit
        self._yielding = yielding and current_platform.is_cpu()
        self._engine: AsyncLLM | None = None
        self._meter: Meter
        self._kv_tokens = 0  # that the KV cache holds
        self._revival: asyncio.Task[None] | None = None
        self._closing = False
        self._ids = count()

    async def start(self) -> None:
        """Load the model; seconds to minutes, off the event loop. Raises `EngineError`."""
        prepare_environment()
        engine_arguments = arguments(self._settings, self._defaults)
        with llm_boundary(f"starting {self.name}"):
            engine = await asyncio.to_thread(
                AsyncLLM.from_engine_args, engine_arguments, stat_loggers=[Meter]
            )
            engine.log_stats = False  # on this side of the wire: they are made for each token
            engine._run_output_handler()
            # It ends when the engine's process does, after telling every open request.
            engine.output_handler.add_done_callback(lambda _: self._died(engine))
        if self._yielding:
            _yield_cores(engine)
        assert engine.logger_manager is not None
        loggers = engine.logger_manager.stat_loggers
        self._meter = next(m for m in loggers if isinstance(m, Meter))
        cache = engine.vllm_config.cache_config
        self._kv_tokens = (cache.num_gpu_blocks or 0) * cache.block_size
        self._engine = engine

    async def close(self) -> None:
        self._closing = True
        if self._revival is not None:
            self._revival.cancel()
            await asyncio.gather(self._revival, return_exceptions=True)
        engine, self._engine = self._engine, None
        if engine is not None:
            await _shut_down(engine)

    @property
    def engine(self) -> AsyncLLM:
        """The engine, alive as far as is known. Raises `EngineDead`."""
        if self._engine is None or self._engine.errored:
            raise EngineDead(f"{self.name} is not running")
        return self._engine

    @property
    def dead(self) -> bool:
        return self._engine is None or bool(self._engine.errored)

    @property
    def context(self) -> int:
        """The longest prompt plus answer, in tokens."""
        return int(self.engine.model_config.max_model_len)

    @property
    def load(self) -> Load:
        """Requests by this process's own books, submitted and not finished; the KV cache by the
        engine's."""
        engine, capacity = self._engine, self.capacity
        if engine is None:
            return Load(0, 0, capacity)
        open_ = engine.output_processor.get_num_unfinished_requests()
        running = min(open_, capacity)
        kv = self._meter.used if open_ else 0.0  # its last word was before the last request ended
        return Load(running, open_ - running, capacity, kv, self._kv_tokens, self._meter.preempted)

    def request_id(self) -> str:
        return f"{self.name}-{next(self._ids)}"

    async def revived(self) -> None:
        """Wait until a restart that is under way has ended."""
        if self._revival is not None:
            await asyncio.shield(self._revival)

    def _died(self, engine: AsyncLLM) -> None:
        if self._closing or self._engine is not engine:
            return
        self._engine = None
        log.error("engine %s died", self.name)
        if self._settings.on_death == "exit":
            self._on_exit()
        else:
            self._revival = asyncio.create_task(self._revive(engine))

    async def _revive(self, engine: AsyncLLM) -> None:
        await _shut_down(engine)
        for attempt in count():
            await asyncio.sleep(BACKOFF[min(attempt, len(BACKOFF) - 1)])
            try:
                await self.start()
            except PonderError as error:
                log.error("engine %s did not restart: %s", self.name, error.message)
            else:
                self.restarts += 1
                log.warning("engine %s restarted", self.name)
                return


def _yield_cores(engine: AsyncLLM) -> None:
    """Linux keeps niceness by the thread; a new one has that of the one that begins it."""
    manager = engine.engine_core.resources.engine_manager
    if sys.platform != "linux" or manager is None:
        return
    for process in manager.processes:
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            with suppress(ProcessLookupError):  # it has ended
                now = os.getpriority(os.PRIO_PROCESS, int(thread.name))
                os.setpriority(os.PRIO_PROCESS, int(thread.name), now + YIELDING)


async def _shut_down(engine: AsyncLLM) -> None:
    """End the engine's process, if it still runs, and free what vLLM leaves to the collector."""
    client = engine.engine_core
    if engine.output_handler is not None:
        engine.output_handler.cancel()  # or it reports the end that we ask for as a death
    await asyncio.to_thread(engine.shutdown, GRACE)
    # After a death vLLM's own thread may be at this still; a context with an open socket in it
    # would wait for that, and stop the event loop.
    for socket in vars(client.resources).values():
        if isinstance(socket, zmq.Socket):
            socket.close(linger=0)
    await asyncio.to_thread(client.ctx._shadow_obj.term)
