"""One vLLM engine in this process: its start and end, its death and return, and other weights.

What the policy (`vllm.py`) and an in-process PRM share. `arguments.py` has how it is started.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from server.config import VllmSettings
from server.engine.arguments import arguments, prepare_environment
from server.engine.checkpoint import Checkpoint
from server.engine.meter import Meter
from server.engine.process import shut_down, yield_cores
from server.engine.reload import reload, reloads_right
from server.engine.together import send_together
from server.errors import BadRequest, EngineDead, EngineError, PonderError, boundary
from server.types import Load

log = logging.getLogger(__name__)

BACKOFF = (1.0, 2.0, 5.0, 15.0, 60.0)  # seconds before each attempt to restart; the last repeats


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


class Llm:
    """An `AsyncLLM` that comes back. `on_exit` is called at its death if settings say "exit".

    From its death until it serves again, `engine` raises `EngineDead` at once. On a CPU one that
    is `yielding` leaves the cores to the others while they want them.

    Several views may have it in use (`share`); with the last of them to `close` it ends.
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
        self.version = ""  # of the weights that `model` names; whoever starts it says so
        self._settings = settings
        self._defaults = defaults if defaults is not None else {}
        self._on_exit = on_exit
        self._yielding = yielding and current_platform.is_cpu()
        self._engine: AsyncLLM | None = None
        self._meter: Meter
        self._kv_tokens = 0  # that the KV cache holds
        self._revival: asyncio.Task[None] | None = None
        self._closing = False
        self._ids = count()
        self._adapters = count(1)
        self._views = 1

    async def start(self) -> None:
        """Load the model; seconds to minutes, off the event loop. Raises `EngineError`."""
        prepare_environment()
        engine_arguments = arguments(self._settings, self._defaults)
        with llm_boundary(f"starting {self.name}"):
            engine = await asyncio.to_thread(
                AsyncLLM.from_engine_args, engine_arguments, stat_loggers=[Meter]
            )
            if self._settings.draft_tokens:  # `verify.py` takes parameters that vLLM's own refuses
                engine.input_processor.speculative_config = None
            engine.log_stats = False  # on this side of the wire: they are made for each token
            engine._run_output_handler()
            if getattr(engine.vllm_config.scheduler_config.scheduler_cls, "unpacks", False):
                send_together(engine.engine_core)
            # It ends when the engine's process does, after telling every open request.
            engine.output_handler.add_done_callback(lambda _: self._died(engine))
        if self._yielding:
            yield_cores(engine)
        assert engine.logger_manager is not None
        loggers = engine.logger_manager.stat_loggers
        self._meter = next(m for m in loggers if isinstance(m, Meter))
        cache = engine.vllm_config.cache_config
        self._kv_tokens = (cache.num_gpu_blocks or 0) * cache.block_size
        self._engine = engine

    def share(self) -> None:
        """One more has it in use, and will `close` it."""
        self._views += 1

    async def close(self) -> None:
        self._views -= 1
        if self._views > 0:
            return
        self._closing = True
        if self._revival is not None:
            self._revival.cancel()
            await asyncio.gather(self._revival, return_exceptions=True)
        engine, self._engine = self._engine, None
        if engine is not None:
            await shut_down(engine)

    @property
    def model(self) -> str:
        """A folder or a hub name: where its weights come from, at a restart too."""
        return self._settings.model

    @property
    def weights(self) -> Checkpoint:
        """What it serves, for `restore`."""
        return Checkpoint(Path(self.model), self.version, "unknown", {})

    def reloads(self, found: Checkpoint) -> bool:
        """Whether it takes these weights as it runs; else another engine is started beside it."""
        if self._settings.swap != "auto":
            return self._settings.swap == "in_place"
        return reloads_right(found, converted="convert" in self._defaults)

    async def loaded(self, found: Checkpoint) -> Llm:
        """The engine that serves these weights, `share`d or new: this one, if it has them or
        `reloads` them, when it must have no request; else another one, started beside it.

        Raises `EngineError`, with this one as it was.
        """
        if found.version == self.version or self.reloads(found):
            if found.version != self.version:
                await self._reload(found)
            self.share()
            return self
        other = Llm(
            self._moved(found),
            defaults=self._defaults,
            on_exit=self._on_exit,
            yielding=self._yielding,
        )
        other.version = found.version
        await other.start()
        return other

    async def restore(self, weights: Checkpoint) -> None:
        """Serve these again, which it served before others were `loaded` into it, with no request.
        Where they cannot be loaded as it runs, it starts anew with them. Raises `EngineDead` if it
        does not come back."""
        if weights.version == self.version:
            return
        self._settings, self.version = self._moved(weights), weights.version
        await self.revived()  # with the others, perhaps
        await self._put(weights)

    def _moved(self, found: Checkpoint) -> VllmSettings:
        return self._settings.model_copy(update={"model": str(found.folder), "name": self.name})

    async def _reload(self, found: Checkpoint) -> None:
        if problem := await self._put(found):
            raise problem
        self._settings, self.version = self._moved(found), found.version

    async def _put(self, found: Checkpoint) -> EngineError | None:
        """Into the engine that runs; where that fails, which is returned, it starts anew."""
        engine = self.engine
        try:
            with llm_boundary(f"loading {found.folder} into {self.name}"):
                await reload(engine, found)
        except EngineError as error:
            log.error("%s; it starts anew with %s", error.message, self.model)
            await self._again(engine)
            return error
        return None

    async def _again(self, engine: AsyncLLM) -> None:
        """Start it anew with the weights of its settings: vLLM may have replaced some of them."""
        if self._engine is engine:
            self._engine = None
            self._revival = asyncio.create_task(self._revive(engine))
        await self.revived()

    async def adapt(self, found: Checkpoint) -> LoRARequest:
        """Load an adapter, under a name that none had: vLLM's prefix cache goes by the name."""
        number = next(self._adapters)
        request = LoRARequest(f"{found.version}-{number}", number, str(found.folder))
        with llm_boundary(f"loading the adapter {found.folder} into {self.name}"):
            if not await self.engine.add_lora(request):
                raise EngineError(f"{self.name} did not load the adapter {found.folder}")
        return request

    async def unadapt(self, adapter: LoRARequest) -> None:
        if not self.dead:
            with llm_boundary(f"removing an adapter from {self.name}"):
                await self.engine.remove_lora(adapter.lora_int_id)

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
        meter, waiting = self._meter, open_ - running
        told = (meter.preempted, meter.drafted, meter.accepted)
        return Load(running, waiting, capacity, kv, self._kv_tokens, *told)

    def request_id(self) -> str:
        return f"{self.name}-{next(self._ids)}"

    @property
    def tells_last(self) -> bool:
        """Whether its scheduler delivers what an aborted request had made (`LeanScheduler`)."""
        scheduler = self.engine.vllm_config.scheduler_config.scheduler_cls
        return getattr(scheduler, "tells_last", False)

    async def abort(self, request: str) -> None:
        """In the engine alone, if it `tells_last`: the front end waits for its word. Nothing if
        the request has ended."""
        ids = self.engine.output_processor.external_req_ids.get(request, ())
        await self.engine.engine_core.abort_requests_async(list(ids))

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
        await shut_down(engine)
        for attempt in count():
            await asyncio.sleep(BACKOFF[min(attempt, len(BACKOFF) - 1)])
            try:
                await self.start()
            except PonderError as error:
                log.error("engine %s did not restart: %s", self.name, error.message)
            else:
                log.warning("engine %s restarted", self.name)
                return
