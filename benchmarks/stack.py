"""The shipped pair behind a `Service`, as `ponder serve` builds it, for benchmarks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

from server.launch import built
from server.reward.client import Memory
from server.service import Service
from server.settings import load_settings

CONFIG = Path(__file__).parent.parent / "configs" / "reference.yaml"


@asynccontextmanager
async def reference(**changes: Any) -> AsyncIterator[Service]:
    """Both engines in this process, no traces on disk; `changes` are settings by their key."""
    settings = load_settings(CONFIG, {}, {"traces.enabled": False, **changes})
    async with AsyncExitStack() as stack:
        service, _ = await built(settings, stack)
        yield service


def forget(service: Service) -> None:
    """Throw away what the PRM remembers of what it read."""
    cast(Any, service.models.prm).memory = Memory()
