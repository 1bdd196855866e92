"""Brings what lies on this replica's disk to the stream, in the order in which it was written.

Every trace goes by way of the disk, whether Redis answers or not. A segment is deleted once it is
closed and the stream has none of its traces any more, for then they are compacted; a Redis that
was started anew or emptied may have lost some, and is offered again what is still here. Adding a
trace twice changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from server.errors import PonderError, StateError, TraceError
from server.traces import compact
from server.traces.feedback import Feedback, written
from server.traces.feedback_log import PREFIX, SUFFIX, read_apart, write_apart
from server.traces.index import Index
from server.traces.spool import Segment, sync_folder
from server.traces.stream import TraceStream

log = logging.getLogger(__name__)
ROWS, BYTES = 64, 1 << 20  # of one command: traces or records, and bytes after which none follows
PAUSE = 0.1  # seconds before another try, at the end


@dataclass(frozen=True, slots=True)
class Part:
    """A segment as it was a moment ago."""

    segment: Segment
    rows: int
    closed: bool  # nobody writes to it any more


class Shipper:
    def __init__(self, index: Index, stream: TraceStream, every: float):
        """It looks every `every` seconds, and when it is woken."""
        self.unshipped = 0  # traces that the stream was not seen to have
        self.streamed = 0  # entries of the stream, everyone's
        self._index, self._stream, self._every = index, stream, every
        self._wake = asyncio.Event()
        self._busy = asyncio.Lock()
        self._run = ""  # the server, as it was when it was seen to have what follows
        self._sent: dict[Path, int] = {}  # rows of segments
        # To which server; whose turn it is to be asked for, the next one first.
        self._said: dict[Path, str] = {}
        self._records: dict[Path, tuple[str, bytes]] = {}  # files of feedback
        self._complaint = ""

    @property
    def unsaid(self) -> int:
        """Records that the stream was not seen to have."""
        return len(self._unsaid())

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        self._records |= await asyncio.to_thread(_records_in, self._index.folder)
        while True:
            if await self.tried():
                await self._woken()
            else:
                await asyncio.sleep(self._every)

    async def tried(self) -> bool:
        """A round; what goes wrong is logged, once."""
        try:
            await self.round()
            self._complaint = ""
            return True
        except (PonderError, OSError) as error:
            if isinstance(error, FileNotFoundError):  # someone deleted it: know of it no more
                await asyncio.to_thread(self._index.refresh)
            if self._complaint != str(error):
                self._complaint = str(error)
                log.warning("traces wait in %s: %s", self._index.folder, error)
            return False

    async def finish(self) -> None:
        """As many rounds as it takes to bring over all that is here."""
        while True:
            done = await self.tried()
            if not self.unshipped and not self.unsaid:
                return
            if not done:
                await asyncio.sleep(PAUSE)

    async def _woken(self) -> None:
        try:
            async with asyncio.timeout(self._every):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    async def round(self) -> None:
        """Bring over what is here. Raises `StateError` while Redis is away."""
        async with self._busy:
            parts = await asyncio.to_thread(self._parts)
            self.unshipped = sum(part.rows - self._sent.get(part.segment.path, 0) for part in parts)
            run, self.streamed = await self._stream.run()
            if run != self._run:
                self._run, self._sent = run, {}
            for part in parts:
                await self._ship(part)
            await self._say()
            await self._settle(parts)

    async def add_feedback(self, feedback: Feedback) -> None:
        """Durable here when it returns, and in the stream if Redis answers. Raises `OSError`."""
        path = await asyncio.to_thread(write_apart, self._index.folder, feedback)
        record = (feedback.trace_id, written(feedback))
        try:
            with suppress(StateError):  # then a later round does it
                self._said[path] = await self._stream.say([record])
        finally:  # before that a round would say it, too: again, if it was compacted meanwhile
            self._records[path] = record

    def _parts(self) -> list[Part]:
        """The segments that are this replica's: its own, and those that a dead one left."""
        if any(not segment.owned for segment, _ in self._index.segments()):
            self._index.refresh()
        closed = {s.path for s, _ in self._index.segments() if _is_closed(s.path)}
        found = self._index.segments()
        return [Part(s, n, s.path in closed) for s, n in found if s.owned or s.path in closed]

    async def _ship(self, part: Part) -> None:
        segment, path = part.segment, part.segment.path
        sent = self._sent.get(path, 0)
        while sent < part.rows:
            end = min(part.rows, sent + ROWS)
            lines = await asyncio.to_thread(segment.lines, sent, end, BYTES)
            end = sent + len(lines)
            rows = list(zip(segment.summaries[sent:end], lines, strict=True))
            self.streamed += await self._stream.add(rows)
            self._sent[path] = sent = end
            self.unshipped = max(0, self.unshipped - len(lines))

    def _unsaid(self) -> list[Path]:
        return [path for path in self._records if self._said.get(path) != self._run]

    async def _say(self) -> None:
        new = self._unsaid()[:ROWS]
        if new:
            run = await self._stream.say([self._records[path] for path in new])
            self._said |= dict.fromkeys(new, run)

    async def _settle(self, parts: list[Part]) -> None:
        """Delete what is compacted, the oldest first."""
        for part in parts:
            ids = [s.trace_id for s in part.segment.summaries[: part.rows]]
            if not part.closed or not await self._is_compacted(ids):
                break
            await asyncio.to_thread(self._discard, part.segment.path)
        said = list(islice((p for p, run in self._said.items() if run == self._run), ROWS))
        if said:
            await self._settle_records(said)

    async def _settle_records(self, said: list[Path]) -> None:
        """The same of feedback; what is left goes to the end, for it may never be compacted."""
        standing = await self._stream.says([self._records[path] for path in said])
        if standing.run != self._run:
            return
        gone = [p for p, there in zip(said, standing.present, strict=True) if not there]
        await asyncio.to_thread(_delete, gone)
        for path in said:
            del self._said[path]
        self._said |= dict.fromkeys((path for path in said if path not in gone), standing.run)
        for path in gone:
            del self._records[path]

    async def _is_compacted(self, ids: list[str]) -> bool:
        """They were in the stream of this server, and are not there any more."""
        if not ids:
            return True
        standing = await self._stream.has(ids)
        return standing.run == self._run and not any(standing.present)

    def _discard(self, path: Path) -> None:
        with compact.claim(path) as mine:
            if mine:
                _delete([path])
        self._sent.pop(path, None)
        self._index.refresh()


def _is_closed(path: Path) -> bool:
    with compact.claim(path) as mine:
        return mine


def _delete(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
    if paths:
        sync_folder(paths[0].parent)


def _records_in(folder: Path) -> dict[Path, tuple[str, bytes]]:
    """The files of feedback that an earlier process left; what cannot be read stays."""
    found: dict[Path, tuple[str, bytes]] = {}
    for path in sorted(folder.glob(f"{PREFIX}*{SUFFIX}")):
        try:
            record = read_apart(path)
        except (TraceError, OSError) as error:
            log.error("%s", error)
        else:
            found[path] = (record.trace_id, written(record))
    return found
