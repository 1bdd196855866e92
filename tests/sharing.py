"""Replicas that share their traces by a real Valkey, and compactors, with what they wrote."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from server.config import TraceSettings
from server.state.connection import Connection
from server.traces.archive import Archive
from server.traces.compact import read
from server.traces.compactor import Compactor, Done
from server.traces.feedback import Feedback
from server.traces.group import Consumer
from server.traces.shared import LAST_ROUND, SharedStore
from tests.serving import until as soon
from tests.traces import make_trace
from tests.valkey import Valkey


async def until(condition: Callable[[], bool]) -> None:
    await soon(condition, 120)


@asynccontextmanager
async def connected(valkey: Valkey) -> AsyncIterator[Connection]:
    connection = Connection(valkey.settings(seconds=5))
    async with connection.watched():
        yield connection


@asynccontextmanager
async def replica(
    valkey: Valkey, folder: Path, *, last_round: float = LAST_ROUND, **settings: Any
) -> AsyncIterator[SharedStore]:
    """It waits `last_round` seconds at the end for a Redis that is away."""
    async with connected(valkey) as connection:
        configured = TraceSettings(folder=folder, fsync="never", **settings)
        store = SharedStore(configured, connection, last_round)
        await store.start()
        try:
            yield store
        finally:
            await store.close()


def compactor(connection: Connection, url: str | Path, **settings: Any) -> Compactor:
    archive = Archive(str(url))
    archive.prepare()
    return Compactor(connection, archive, TraceSettings.model_validate(settings))


async def compacted(valkey: Valkey, url: str | Path, **settings: Any) -> None:
    """Everything that is in the stream now."""
    async with connected(valkey) as connection:
        await compactor(connection, url, **settings).drain()


async def finished(valkey: Valkey, url: str | Path, *stores: SharedStore, **how: Any) -> None:
    """Compact until all that these replicas were given is in the archive."""
    async with asyncio.timeout(120):
        while not all(shipped(store, 0)() for store in stores):
            await compacted(valkey, url, **how)
            await asyncio.sleep(0.02)


async def turn(valkey: Valkey, url: str | Path, **settings: Any) -> Done | None:
    """One batch by a compactor for which every other one is dead, if there is anything."""
    async with connected(valkey) as connection:
        settings = {"claim_seconds": 1e-6, **settings}
        return await compactor(connection, url, **settings).turn(at_once=True)


async def consumer(connection: Connection, name: str = "one") -> Consumer:
    found = Consumer(connection, name)
    await found.join()
    return found


def put(store: SharedStore, *numbers: int) -> None:
    for number in numbers:
        store.put(make_trace(f"t{number:04d}"))


def names(count: int, first: int = 0) -> list[str]:
    return [f"t{number:04d}" for number in range(first, first + count)]


def ids(folder: Path) -> list[str]:
    """Every row of a folder, in the order of its files."""
    return [trace.trace_id for trace in read(folder)]


def files(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(folder.glob(pattern))


def spooled(folder: Path) -> list[Path]:
    return files(folder, "*.jsonl")


def said(number: int, **what: Any) -> Feedback:
    trace = make_trace(f"t{number:04d}")
    return Feedback(trace_id=trace.trace_id, created_at=trace.created_at, **what)


def shipped(store: SharedStore, entries: int) -> Callable[[], bool]:
    """The stream has all that this replica has, and so many entries in all."""

    def condition() -> bool:
        stats = store.stats()
        return (stats.pending, stats.unshipped, stats.streamed) == (0, 0, entries)

    return condition
