"""The inside of a process of the pool: frames in, frames out.

A frame is 4 bytes of length and that much JSON. The first one out says `ready`, or the `error`
that keeps it from working; then every frame in is a job and gets one frame, `result` or `error`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from server.errors import ScorerError, boundary
from server.sandbox.lockdown import Limits, NoLockdown, limit, lock

MAX_FRAME = 64 << 20  # bytes
ALONE = 5.0  # seconds after its deadline at which a process ends itself: the server is gone
Work = Callable[[dict[str, Any]], Any]


Serve = Callable[[int, int, Limits], None]  # source, sink, limits


def main(kind: str, limits: str) -> None:
    """Serve jobs of a kind from standard input until it ends."""
    source, sink = _take_pipes()
    try:
        with boundary(ScorerError, f"the {kind} process"):
            serve: Serve = import_module(f"server.sandbox.{kind}").serve
            given = Limits(**json.loads(limits))
    except ScorerError as error:
        write_frame(sink, {"error": error.message})
        return
    _die_first()
    serve(source, sink, given)


def serve_jobs(work: Work, source: int, sink: int, limits: Limits) -> None:
    """Do one job after another in this process, which may read files and nothing else."""
    limit(limits, cpu_seconds=None)  # it lives long; the pool's deadline bounds each job
    with suppress(NoLockdown):  # it runs no one's code: the filter is a second wall
        lock(files=True)
    write_frame(sink, {"ready": True})
    while (job := read_frame(source)) is not None:
        signal.setitimer(signal.ITIMER_REAL, limits.seconds + ALONE)
        try:
            with boundary(ScorerError, "the job"):
                reply = {"result": work(job)}
        except ScorerError as error:
            reply = {"error": error.message[:1000]}
        signal.setitimer(signal.ITIMER_REAL, 0)
        write_frame(sink, reply)


def read_frame(source: int) -> dict[str, Any] | None:
    """The next frame; None at the end."""
    head = read_exactly(source, 4)
    if head is None:
        return None
    body = read_exactly(source, int.from_bytes(head, "big"))
    if body is None:
        return None
    frame: dict[str, Any] = json.loads(body)
    return frame


def write_frame(sink: int, frame: dict[str, Any]) -> None:
    body = json.dumps(frame).encode()
    write_all(sink, len(body).to_bytes(4, "big") + body)


def read_exactly(source: int, size: int) -> bytes | None:
    """So many bytes; None if it ends before."""
    if size > MAX_FRAME:
        return None
    data = bytearray()
    while len(data) < size:
        chunk = os.read(source, min(size - len(data), 1 << 20))
        if not chunk:
            return None
        data += chunk
    return bytes(data)


def write_all(sink: int, data: bytes) -> None:
    while data:
        data = data[os.write(sink, data) :]


def _take_pipes() -> tuple[int, int]:
    """The two pipes to the server; what prints or reads afterwards prints and reads nothing."""
    source, sink = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.close(nothing)
    return source, sink


def _die_first() -> None:
    """When memory runs out, the kernel shall end this process and not the server."""
    score = Path("/proc/self/oom_score_adj")
    if sys.platform == "linux" and os.access(score, os.W_OK):
        score.write_text("1000")
