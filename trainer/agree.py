"""What one process does for all: its error is everyone's, and nobody waits for a dead one."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from trainer.errors import TrainerError

T = TypeVar("T")


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def asked_for() -> int:
    """How many processes the launcher says there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first(work: Callable[[], T]) -> T:
    """What `work` returns in the first process, in every process; or its `TrainerError`."""
    found: list[object] = [None, None]
    if is_first():
        try:
            found[0] = work()
        except TrainerError as error:
            found[1] = error
    if dist.is_initialized():
        dist.broadcast_object_list(found)
    if isinstance(found[1], TrainerError):
        raise found[1]
    return found[0]  # type: ignore[return-value]


def together() -> None:
    if dist.is_initialized():
        dist.barrier()
