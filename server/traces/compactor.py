"""`ponder compact`: the stream's traces and feedback into files of the archive, batch by batch.

A batch is all that is pending of this consumer. Its files are named by its first and last entry,
so that whoever has to do it again writes the same files; only then is it acknowledged and deleted
from the stream. Traces that another batch's file has already are left out: a Redis that forgot
was offered them again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any
from uuid import uuid4

from server.config import Settings, TraceSettings
from server.errors import PonderError, StateError, TraceError, boundary
from server.state.connection import Connection
from server.traces.archive import Archive
from server.traces.batch import Batch
from server.traces.group import Consumer

log = logging.getLogger(__name__)
PAGE = 16  # entries at once: traces can have megabytes
SECONDS = 30.0  # for one command: nobody waits for it, and pages are large
PAUSE = 1.0  # seconds between two looks, and after what went wrong


def run(settings: Settings, *, once: bool) -> None:
    """What `ponder compact` does; `redis` and `traces.store` are set. Raises `PonderError`."""
    asyncio.run(_run(settings, once=once))


async def _run(settings: Settings, *, once: bool) -> None:
    redis, store = settings.redis, settings.traces.store
    assert redis is not None and store is not None
    archive = Archive(store)
    await asyncio.to_thread(archive.prepare)
    patient = redis.model_copy(update={"seconds": max(SECONDS, redis.seconds)})
    with boundary(StateError, "redis"):
        connection = Connection(patient)
    async with connection.watched():
        compactor = Compactor(connection, archive, settings.traces)
        if once:
            try:
                await compactor.drain()
            except OSError as error:  # of this machine's own disk
                raise TraceError(str(error)) from error
            return
        stopping = asyncio.Event()
        for signum in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(signum, stopping.set)
        await compactor.run(stopping)


@dataclass(frozen=True, slots=True)
class Done:
    """One batch. With no entries it was lost to another consumer."""

    entries: int = 0
    traces: int = 0  # written
    feedback: int = 0
    again: int = 0  # traces that were in the archive already
    refused: int = 0  # entries that cannot be read, kept in a file of their own


class Compactor:
    """One consumer of the group. Any number of them may be at work."""

    def __init__(self, connection: Connection, archive: Archive, settings: TraceSettings):
        name = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        self._consumer = Consumer(connection, name)
        self._archive, self._settings = archive, settings

    async def run(self, stopping: asyncio.Event) -> None:
        """Until `stopping`; a batch that was begun is ended."""
        while not stopping.is_set():
            try:
                busy = await self.turn() is not None
            except (PonderError, OSError) as error:  # the latter of this machine's own disk
                log.error("%s; trying again", error)
                busy = False
            if not busy:
                with suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), PAUSE)
        with suppress(StateError):
            await self._consumer.leave()

    async def drain(self) -> None:
        """All that is in the stream now, but for what others are at work on."""
        await self._consumer.join()
        left = await self._consumer.waiting()
        while left > 0 and (done := await self.turn(at_once=True)):
            left -= done.entries
        await self._consumer.leave()

    async def turn(self, *, at_once: bool = False) -> Done | None:
        """One batch, if one is due. Raises `StateError`, `TraceError` and `OSError`; the batch
        stays pending then."""
        await self._consumer.join()
        held = await self._consumer.pending()
        if not held and await self._consumer.take_over(self._settings.claim_seconds):
            held = await self._consumer.pending()
        if not held and not await self._is_due(at_once):
            return None
        began = perf_counter()
        with TemporaryDirectory(prefix="ponder-compact-") as folder:
            done = await self._batch(Batch(Path(folder), self._archive, held), held=bool(held))
        if done.entries:
            log.info("%s in %.1f s", done, perf_counter() - began)
        return done

    async def _is_due(self, at_once: bool) -> bool:
        """Not before there is enough for a file, or the oldest has waited long enough."""
        backlog, settings = await self._consumer.backlog(), self._settings
        enough = 1 if at_once else settings.compact_rows
        late = backlog.entries > 0 and backlog.seconds >= settings.compact_seconds
        return late or backlog.entries >= enough

    async def _batch(self, batch: Batch, *, held: bool) -> Done:
        with batch:
            await self._fill(batch, held=held)
            if not batch.entries or await self._consumer.pending() != batch.entries:
                log.info("another consumer took over what %s had", self._consumer.name)
                return Done()
            await self._alive(asyncio.to_thread(batch.publish))
        await self._consumer.commit(batch.entries, batch.traces, batch.records)
        return Done(
            *(len(batch.entries), batch.written, len(batch.records)),
            *(batch.again, len(batch.refused)),
        )

    async def _fill(self, batch: Batch, *, held: bool) -> None:
        after, most = "0-0", self._settings.compact_rows
        while True:
            if held:
                page = await self._consumer.held(after, PAGE)
            else:
                page = await self._consumer.fresh(min(PAGE, most - len(batch.entries)))
            if not page:
                return
            after = page[-1].id
            await self._alive(asyncio.to_thread(batch.add, page))
            if not held and len(batch.entries) >= most:
                return

    async def _alive(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it, and be heard of meanwhile."""
        task = asyncio.create_task(work)
        while not (await asyncio.wait({task}, timeout=self._settings.claim_seconds / 3))[0]:
            with suppress(StateError):
                await self._consumer.live()
        task.result()
