"""Runs a server: the port, uvicorn, the signals, the drain."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeVar

import uvicorn

from server.api.health import check
from server.api.server import uvicorn_config
from server.config import ServerSettings, Settings
from server.launch import built, local_engines
from server.service import Service
from server.sources import SettingsError

log = logging.getLogger(__name__)
T = TypeVar("T")


class Http(uvicorn.Server):
    """uvicorn, but the signals are ours, since the engines must end after it does."""

    def __init__(self, config: uvicorn.Config):
        super().__init__(config)
        self.ready = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    def stop(self) -> None:
        """Drain; at once if asked a second time."""
        self.force_exit = self.should_exit
        self.should_exit = True


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers at `url`."""

    url: str
    service: Service
    http: Http
    ended: asyncio.Task[None]


def run(main: Callable[[Stopper], Coroutine[Any, Any, T]]) -> T:
    """Run `main` on a loop of its own; SIGINT and SIGTERM go to the stopper that it is given.

    Raises `asyncio.CancelledError` if a signal came before anything was served.
    """

    async def guarded() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        # An engine's process inherits the mask of the thread that starts it. Ctrl-C reaches all
        # processes of a terminal at once; with the signal blocked, an engine outlives the drain.
        loop.set_default_executor(ThreadPoolExecutor(initializer=_block_sigint))
        stopper = Stopper(task)
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, stopper.stop)
        return await main(stopper)

    return asyncio.run(guarded())


def _block_sigint() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


@dataclass(slots=True)
class Stopper:
    """Where a signal goes: to the running server, or to whatever starts it."""

    task: asyncio.Task[Any]
    running: Running | None = None

    def stop(self) -> None:
        if self.running is None:
            self.task.cancel()
        else:
            self.running.http.stop()


async def serve(settings: Settings, stopper: Stopper) -> None:
    """Serve until a signal; running searches have `server.drain_seconds` to end.

    Raises `EngineDead` if it ended because an engine died.
    """
    async with serving(settings) as running:
        stopper.running = running
        await running.ended
        if "exit" in {e.on_death for e in local_engines(settings).values()}:
            await check(running.service)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Running]:
    """A server that answers; it drains and closes on the way out."""
    began = perf_counter()
    with bound(settings.server) as listener:
        async with AsyncExitStack() as stack:
            service, app = await built(settings, stack)
            http = Http(uvicorn_config(app, settings))
            ended = asyncio.create_task(http.serve(sockets=[listener]))
            try:
                await _first(http.ready.wait(), ended)
                url = _url(listener)
                log.info("serving at %s after %.1f s", url, perf_counter() - began)
                yield Running(url, service, http, ended)
            finally:
                http.should_exit = True
                await ended
            log.info("drained")


async def _first(ready: Coroutine[Any, Any, object], ended: asyncio.Task[None]) -> None:
    """Wait for `ready`, or raise what ended the server before."""
    waiting = asyncio.create_task(ready)
    await asyncio.wait({waiting, ended}, return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        waiting.cancel()
        ended.result()


@contextmanager
def bound(server: ServerSettings) -> Iterator[socket.socket]:
    """A socket on the server's address, taken before minutes go into loading models."""
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((server.host, server.port))
        except OSError as error:
            place = f"server.host {server.host}, server.port {server.port}"
            raise SettingsError([f"{place}: cannot be bound: {error.strerror}"]) from error
        yield listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
