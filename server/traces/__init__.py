"""Where traces are kept. A store takes records off the request's path and gives them back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from server.traces.feedback import Feedback
from server.traces.schema import Trace
from server.traces.summary import ALL, Summary, Wanted


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts since the store started. put calls = written + dropped + rejected + pending."""

    written: int = 0  # traces in the spool
    dropped: int = 0  # lost: the queue was full, the store closed, or the disk failed to the end
    rejected: int = 0  # not a record that can be read back (a NaN, say): logged by id and field
    pending: int = 0  # waiting to be written
    unsynced: int = 0  # written since the last fsync
    bytes: int = 0  # written to the spool
    torn: int = 0  # bytes of unfinished last lines that crashes left behind
    unreadable: int = 0  # files that are corrupt or of an unknown version
    # With several replicas:
    unshipped: int = 0  # traces on this disk that the stream was not seen to have
    streamed: int = 0  # entries of the stream, which wait for the compactor


class TraceStore(Protocol):
    """Keeps traces. A trace can be read from the moment `put` returns."""

    async def start(self) -> None:
        """Recover what a crash left, and begin to write. Raises `TraceError`."""
        ...

    def put(self, trace: Trace) -> None:
        """Queue a trace. Never blocks and never raises: the answer is worth more than its
        trace. A trace that cannot be kept is counted in `stats()` and logged."""
        ...

    async def get(self, trace_id: str) -> Trace | None:
        """The trace, written or not, with the feedback on it. Raises `TraceError` if its record
        cannot be read."""
        ...

    async def add_feedback(self, feedback: Feedback) -> None:
        """Keep what was said of a trace; durable when it returns. Raises `TraceError`."""
        ...

    async def list(self, wanted: Wanted = ALL, *, limit: int = 50) -> Sequence[Summary]:
        """The newest first; of the same moment, the greater id."""
        ...

    async def flush(self) -> None:
        """Return when all that was put is on the disk, fsynced, whatever the policy."""
        ...

    async def close(self) -> None:
        """Write what is queued, fsync, and stop."""
        ...

    def stats(self) -> Stats: ...


class NoTraces:
    """A store that keeps nothing, for `traces.enabled: false`."""

    async def start(self) -> None:
        return

    def put(self, trace: Trace) -> None:
        return

    async def get(self, trace_id: str) -> Trace | None:
        return None

    async def add_feedback(self, feedback: Feedback) -> None:
        return

    async def list(self, wanted: Wanted = ALL, *, limit: int = 50) -> Sequence[Summary]:
        return ()

    async def flush(self) -> None:
        return

    async def close(self) -> None:
        return

    def stats(self) -> Stats:
        return Stats()
