"""Traces in a local folder: a spool of JSONL segments, compacted to Parquet.

A crash of the process loses what was still queued, which is milliseconds' worth. A crash of the
machine can lose besides what was written since the last fsync: at most a batch of 64 traces
under `always`, `fsync_seconds` under `interval`, what the kernel held under `never`. A full disk
loses nothing until the queue is full, for the writer tries again. Compaction runs in a process
of its own, at low priority, since it would hold the interpreter's lock for seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Sequence
from pathlib import Path

import server
from server.config import TraceSettings
from server.errors import TraceError, boundary
from server.traces import Stats
from server.traces.feedback import Feedback
from server.traces.index import Index
from server.traces.pending import Pending
from server.traces.schema import Trace
from server.traces.spooler import RETRY_SECONDS, Spooler
from server.traces.summary import ALL, Summary, Wanted

log = logging.getLogger(__name__)
NICE = "10"


class LocalStore:
    """See `TraceStore`."""

    def __init__(self, settings: TraceSettings):
        self._folder = settings.folder
        self._index = Index(settings.folder)
        self._pending = Pending(settings.queue)
        self._due = asyncio.Event()  # a segment waits to be compacted
        callbacks = (self._rotated, self._wrote)
        self._spooler = Spooler(settings, self._pending, self._index, *callbacks)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tending: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        with boundary(TraceError, f"trace folder {self._folder}"):
            await asyncio.to_thread(self._recover)
        if self._index.spooled:
            self._due.set()
        self._pending.open()
        self._spooler.start()
        self._tending = asyncio.create_task(self._tend())

    def _recover(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self._folder, os.W_OK):
            raise TraceError(f"trace folder {self._folder} is not writable")
        self._index.refresh()
        if self._index.torn:
            log.warning("%s: %d bytes of unfinished lines", self._folder, self._index.torn)

    def put(self, trace: Trace) -> None:
        """Takes microseconds. Under the queue's bound memory is bounded by traces, not bytes."""
        refusal = self._pending.add(trace)
        if refusal is not None:
            self._spooler.drop(trace, refusal)

    async def get(self, trace_id: str) -> Trace | None:
        with boundary(TraceError, f"trace {trace_id!r}"):
            queued = self._pending.get(trace_id)
            if queued is not None:
                return await asyncio.to_thread(self._index.feedback.joined, queued)
            return await asyncio.to_thread(self._index.get, trace_id)

    async def add_feedback(self, feedback: Feedback) -> None:
        with boundary(TraceError, f"feedback on trace {feedback.trace_id!r}"):
            await asyncio.to_thread(self._index.feedback.add, feedback)

    async def list(self, wanted: Wanted = ALL, *, limit: int = 50) -> Sequence[Summary]:
        with boundary(TraceError, "listing traces"):
            return await asyncio.to_thread(self._list, wanted, limit)

    def _list(self, wanted: Wanted, limit: int) -> tuple[Summary, ...]:
        queued = tuple(map(Summary.of, self._pending.all()))
        return self._index.list(wanted, limit=limit, also=queued)

    async def flush(self) -> None:
        await asyncio.to_thread(self._pending.flush)

    async def close(self) -> None:
        self._pending.close()
        if self._spooler.ident is not None:
            await asyncio.to_thread(self._spooler.join)
        if self._tending is not None:
            self._tending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._tending

    def stats(self) -> Stats:
        return Stats(
            written=self._spooler.written,
            dropped=self._spooler.dropped,
            rejected=self._spooler.rejected,
            pending=len(self._pending),
            unsynced=self._spooler.written - self._spooler.durable,
            bytes=self._spooler.bytes,
            torn=self._index.torn,
            unreadable=len(self._index.broken),
        )

    def _rotated(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._due.set)

    def _wrote(self) -> None:
        return

    async def _tend(self) -> None:
        """See to what was written."""
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                await compact_apart(self._folder)
                await asyncio.to_thread(self._index.refresh)
            except OSError as error:  # no process to be had, say: later there may be
                log.error("compacting %s: %s; trying again", self._folder, error)
                self._due.set()
                await asyncio.sleep(RETRY_SECONDS)


async def compact_apart(folder: Path) -> None:
    """Compact a folder in a process of its own; cancelling kills it, which loses nothing.

    Raises `OSError` if there can be no such process.
    """
    command = ["-m", "server.traces.cli", "compact", "--folder", str(folder), "--nice", NICE]
    root = str(Path(server.__file__).parents[1])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command),
        env=os.environ | {"PYTHONPATH": paths},
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
    )
    try:
        _, complaint = await process.communicate()
        if complaint or process.returncode:
            level = logging.ERROR if process.returncode else logging.WARNING
            log.log(level, "compacting %s: %s", folder, complaint.decode(errors="replace").strip())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
