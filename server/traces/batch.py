"""A batch of the stream's entries on its way into files of the archive."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from server.errors import TraceError
from server.traces import feedback
from server.traces.archive import Archive, batch_name
from server.traces.codec import check, decode
from server.traces.feedback_log import PREFIX
from server.traces.feedback_log import SUFFIX as LINES
from server.traces.group import Entry
from server.traces.schema import Trace
from server.traces.stream import FEEDBACK, TRACE
from server.traces.table import SUFFIX, TableWriter

log = logging.getLogger(__name__)
REFUSED = "refused-"


class Batch:
    """Fills a temporary `folder`, page by page, and publishes what is in it. Its methods block;
    as a context manager it closes what is open. `held` are its entries where they were given out
    before: then its own file may be there."""

    def __init__(self, folder: Path, archive: Archive, held: Sequence[str] = ()):
        self.entries: list[str] = []
        self.traces: list[tuple[str, str]] = []  # ids, each with its entry
        self.records: list[tuple[str, bytes]] = []  # lines of feedback, each after its trace's id
        self.refused: list[bytes] = []  # lines on entries that cannot be read
        self.again = 0
        self._folder, self._archive = folder, archive
        self._own = f"{batch_name(held[0], held[-1])}{SUFFIX}" if held else None
        self._out: TableWriter | None = None
        self._ids: set[str] = set()  # of what was written

    @property
    def written(self) -> int:
        return len(self._ids)

    @cached_property
    def _others(self) -> Sequence[str]:
        """Files of other batches. Listed once: there may be very many, and pages are small."""
        return [name for name in self._archive.newest_first() if name != self._own]

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._out is not None:
            self._out.abandon()

    def add(self, page: Sequence[Entry]) -> None:
        """The next entries. Raises `TraceError` if the archive cannot be read."""
        self.entries += [entry.id for entry in page]
        traces = [trace for entry in page if (trace := self._read(entry)) is not None]
        for trace in self._new(traces):
            if self._out is None:
                self._out = TableWriter(self._folder / "traces")
            self._out.add(trace)
            self._ids.add(trace.trace_id)

    def _read(self, entry: Entry) -> Trace | None:
        """Its trace; feedback and what is neither is noted."""
        where = f"entry {entry.id}"
        if not entry.fields:
            log.error("%s was deleted before it was compacted", where)
            return None
        try:
            if FEEDBACK in entry.fields:
                line = entry.fields[FEEDBACK]
                self.records.append((feedback.parsed(line, where).trace_id, line))
                return None
            if TRACE not in entry.fields:
                raise TraceError(f"{where}: neither a trace nor feedback")
            trace = decode(entry.fields[TRACE], where)
            check(trace)
            self.traces.append((trace.trace_id, entry.id))
            return trace
        except TraceError as error:
            log.error("%s", error)
            self.refused.append(_refusal(entry, error))
            if trace_id := _id(entry.fields.get(TRACE, b"")):
                self.traces.append((trace_id, entry.id))
            return None

    def _new(self, traces: Sequence[Trace]) -> list[Trace]:
        """Those that are in no other batch's file, each once. A batch that begins with the same
        entry may be another one: in a Redis that has come back as it was before that one."""
        if not traces:
            return []
        since = min(trace.created_at for trace in traces)
        ids = [trace.trace_id for trace in traces]
        known = self._ids | self._archive.holding(ids, since, self._others)
        new = {t.trace_id: t for t in traces if t.trace_id not in known}
        self.again += len(traces) - len(new)
        return list(new.values())

    def publish(self) -> None:
        """Make everything durable. Raises `TraceError`."""
        name = batch_name(self.entries[0], self.entries[-1])
        there = self._archive.names()
        lines = {f"{PREFIX}{name}{LINES}": [line for _, line in self.records]}
        lines[f"{REFUSED}{name}{LINES}"] = self.refused
        for file, content in lines.items():
            if content and file not in there:
                path = self._folder / "lines"
                path.write_bytes(b"".join(content))
                self._archive.publish(path, file)
        self._publish_traces(f"{name}{SUFFIX}", there)

    def _publish_traces(self, file: str, there: Sequence[str]) -> None:
        if self._out is None:
            return
        self._out.close()
        path, self._out = self._folder / "traces", None
        if file not in there:
            self._archive.publish(path, file)
        elif not self._ids <= self._archive.ids(file):
            # Two streams with one archive could do that: nothing may be acknowledged.
            raise TraceError(f"{file} is in {self._archive.url} already, with other traces")


def _refusal(entry: Entry, error: TraceError) -> bytes:
    fields = {_text(name): _text(value) for name, value in entry.fields.items()}
    line = {"entry": entry.id, "error": error.message, "fields": fields}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _text(value: bytes) -> str:
    return value.decode(errors="replace")


def _id(line: bytes) -> str | None:
    """Of a trace that cannot be read: of a newer version, say."""
    try:
        return str(json.loads(line)["trace_id"])
    except (ValueError, TypeError, KeyError):
        return None
