"""A bounded number of processes of one kind, which the server can kill.

Each is a Python of its own, in a session of its own (a terminal's Ctrl-C does not reach it, and
what it starts is killed with it), without an environment. It is started when a job needs it and
kept for the next one. A job that is late costs its process; the next job has another.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from subprocess import DEVNULL, Popen
from tempfile import gettempdir
from typing import Any, Literal

from server.errors import ScorerError
from server.sandbox.child import MAX_FRAME
from server.sandbox.lockdown import Limits

Kind = Literal["math", "text", "code"]
ROOT = str(Path(__file__).parents[2])
BOOT = """
import sys
sys.path.insert(0, sys.argv[1])
from server.sandbox.child import main
main(*sys.argv[2:])
"""
START = 60.0  # seconds that a process may take to be ready; a loaded machine is slow
SPARE = 5.0  # seconds: a code process ends its jobs by itself and is killed if it does not


class Late(Exception):
    """The job was not done in its time. Its process has been killed."""


class Ended(Exception):
    """The process ended in the middle of a job."""


def spawn(kind: Kind, limits: Limits, channel: socket.socket) -> Popen[bytes]:
    """A process that serves jobs of a kind on `channel`. Blocks while it is being made."""
    options = ["-I", "-B", "-X", "utf8", *(["-S"] if kind == "code" else [])]
    with channel:
        return Popen(
            [sys.executable, *options, "-c", BOOT, ROOT, kind, json.dumps(asdict(limits))],
            stdin=channel.fileno(),
            stdout=channel.fileno(),
            stderr=DEVNULL,
            env={},
            cwd=gettempdir(),
            start_new_session=True,
        )


class Worker:
    """One process, and the one job it is at."""

    def __init__(self, kind: Kind, limits: Limits) -> None:
        """Begin to make it, in a thread: that takes long on a busy machine."""
        self.kind = kind
        self._channel, theirs = socket.socketpair()
        making = asyncio.to_thread(spawn, kind, limits, theirs)
        self._process = asyncio.create_task(making)
        self._out: asyncio.StreamReader
        self._in: asyncio.StreamWriter | None = None

    async def start(self) -> None:
        """Return when it is ready. Raises `ScorerError` if it cannot be had; `end` it then."""
        self._out, self._in = await asyncio.open_connection(sock=self._channel)
        try:
            async with asyncio.timeout(START):
                await asyncio.shield(self._process)
                hello = await self._receive()
        except (Ended, OSError) as error:  # TimeoutError is an OSError
            reason = f": {error}" if str(error) else ""
            raise ScorerError(f"the {self.kind} process does not start{reason}") from None
        if "error" in hello:
            raise ScorerError(hello["error"])

    async def ask(self, job: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Raises `Late`, `Ended`. Whatever it raises, the process is of no more use."""
        body = json.dumps(job).encode()
        assert self._in is not None
        try:
            async with asyncio.timeout(seconds):
                self._in.write(len(body).to_bytes(4, "big") + body)
                await self._in.drain()
                return await self._receive()
        except TimeoutError:
            raise Late from None
        except ConnectionError:
            raise Ended from None

    async def _receive(self) -> dict[str, Any]:
        try:
            size = int.from_bytes(await self._out.readexactly(4), "big")
            if size > MAX_FRAME:
                raise Ended
            frame: dict[str, Any] = json.loads(await self._out.readexactly(size))
        except (asyncio.IncompleteReadError, ValueError):
            raise Ended from None
        return frame

    async def end(self) -> None:
        """Kill it, with all that it has started, and wait until it is gone."""
        with suppress(OSError):  # it never came to be
            process = await self._process
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.to_thread(process.wait)
        if self._in is None:
            self._channel.close()
        else:
            self._in.close()
            with suppress(ConnectionError):
                await self._in.wait_closed()


class Pool:
    """At most `size` processes of a kind at work; other jobs wait in turn."""

    def __init__(self, kind: Kind, size: int, limits: Limits):
        self.kind, self.limits = kind, limits
        self._slots = asyncio.Semaphore(size)
        self._workers: set[Worker] = set()
        self._idle: list[Worker] = []
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    async def run(self, job: dict[str, Any]) -> Any:
        """The result of a job. Raises `Late` if it took more than its seconds, `ScorerError` if
        it cannot be done: no process, one that ended twice, or one that says so."""
        async with self._slots:
            for _ in range(2):
                worker = await self._take()
                try:
                    reply = await worker.ask(job, self.limits.seconds + self._spare)
                except Ended:
                    self._end(worker)
                    continue
                except BaseException:
                    self._end(worker)
                    raise
                self._idle.append(worker)
                if "error" in reply:
                    raise ScorerError(reply["error"])
                return reply["result"]
        raise ScorerError(f"the {self.kind} process ended twice at one job")

    @property
    def _spare(self) -> float:
        return SPARE if self.kind == "code" else 0.0

    async def close(self) -> None:
        """Kill all of them; jobs that run fail. Nothing is left when it returns."""
        self._closed = True
        for worker in list(self._workers):
            self._end(worker)
        await asyncio.gather(*self._ending)

    async def _take(self) -> Worker:
        if self._closed:
            raise ScorerError("the server is closing")
        if self._idle:
            return self._idle.pop()
        worker = Worker(self.kind, self.limits)
        self._workers.add(worker)
        try:
            await worker.start()
        except BaseException:
            self._end(worker)
            raise
        return worker

    def _end(self, worker: Worker) -> None:
        if worker in self._workers:
            self._workers.remove(worker)
            task = asyncio.create_task(worker.end())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
