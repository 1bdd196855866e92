"""Some processes side by side: this one, which is rank 0, and others like it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch import multiprocessing as processes
from torch.multiprocessing.spawn import ProcessContext

TIMEOUT = timedelta(minutes=20)  # of a wait for the other ranks
Report = Callable[[int, int, str], None]  # what is done, of how much, and a note


@dataclass(frozen=True, slots=True)
class Ranks:
    rank: int = 0
    count: int = 1

    def sum(self, value: torch.Tensor) -> None:
        """Over all ranks, in place."""
        if self.count > 1:
            distributed.all_reduce(value)


Work = Callable[..., None]  # of (ranks, report, *arguments)


def silent(done: int, total: int, note: str) -> None:
    """What the other ranks report to."""


def run(work: Work, count: int, threads: int, report: Report, *arguments: Any) -> None:
    """`work` on `count` ranks, until all have finished. Errors of any are raised here."""
    if count == 1:
        torch.set_num_threads(threads)
        work(Ranks(), report, *arguments)
        return
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        meeting = str(Path(folder) / "meeting")
        others = processes.start_processes(
            _other, (work, count, threads, meeting, arguments), count - 1, join=False
        )
        assert isinstance(others, ProcessContext)
        try:
            _rank(work, Ranks(0, count), threads, meeting, report, arguments)
            while not others.join():
                pass
        finally:
            for process in others.processes:
                process.terminate()
                process.join()


def _other(
    index: int, work: Work, count: int, threads: int, meeting: str, arguments: tuple[Any, ...]
) -> None:
    _rank(work, Ranks(index + 1, count), threads, meeting, silent, arguments)


def _rank(
    work: Work,
    ranks: Ranks,
    threads: int,
    meeting: str,
    report: Report,
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(threads)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=ranks.rank,
        world_size=ranks.count,
        timeout=TIMEOUT,
    )
    try:
        work(ranks, report, *arguments)
    finally:
        distributed.destroy_process_group()
