"""Traces on their way to the disk: a bounded queue that can be asked for its members."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from threading import Condition

from server.errors import TraceError
from server.traces.schema import Trace


class Pending:
    """First in, first out, between the event loop and one writer thread.

    No method but `take` and `flush` waits; the lock is held for microseconds.
    """

    def __init__(self, bound: int):
        self._bound = bound
        self._traces: dict[str, Trace] = {}
        self._changed = Condition()
        self._added = 0  # traces let in
        self._synced = 0  # of those, durable (or given up)
        self._settled = 0  # of those, taken off the queue
        self.closed = True
        self.hurry = False  # someone waits in `flush`
        self._ended = False  # nobody takes any more

    def __len__(self) -> int:
        return len(self._traces)

    def open(self) -> None:
        self.closed = False

    def add(self, trace: Trace) -> str | None:
        """None, or why it was not let in."""
        with self._changed:
            if self.closed:
                return "the store is closed"
            if trace.trace_id in self._traces:
                return "its id is in the queue already"
            if len(self._traces) >= self._bound:
                return f"the queue of {self._bound} is full"
            self._traces[trace.trace_id] = trace
            self._added += 1
            self._changed.notify_all()
            return None

    def get(self, trace_id: str) -> Trace | None:
        return self._traces.get(trace_id)

    def all(self) -> tuple[Trace, ...]:
        with self._changed:
            return tuple(self._traces.values())

    def take(self, most: int, timeout: float | None) -> Sequence[Trace]:
        """Wait at most `timeout` seconds for the oldest `most`; they stay until settled."""
        with self._changed:
            self._changed.wait_for(lambda: self._traces or self.closed or self.hurry, timeout)
            return tuple(islice(self._traces.values(), most))

    def pause(self, seconds: float) -> None:
        """Wait before trying again; closing ends it."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed, seconds)

    def settle(self, trace: Trace) -> None:
        with self._changed:
            del self._traces[trace.trace_id]
            self._settled += 1

    def synced(self) -> None:
        """All that is settled is durable."""
        with self._changed:
            self._synced = self._settled
            self.hurry = False
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def end(self) -> Sequence[Trace]:
        """The writer is gone: let nothing in, wake who waits, and give what was left."""
        with self._changed:
            self.closed = self._ended = True
            left = tuple(self._traces.values())
            self._traces.clear()
            self._changed.notify_all()
            return left

    def flush(self) -> None:
        """Wait until all that was added is durable. Raises `TraceError` if it never will be."""
        with self._changed:
            goal = self._added
            while self._synced < goal:
                if self._ended:
                    raise TraceError("the trace store ended before all was written")
                self.hurry = True
                self._changed.notify_all()
                self._changed.wait()
