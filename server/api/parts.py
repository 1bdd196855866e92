"""What every route is given, and the one way in which they run a search."""

from __future__ import annotations

from dataclasses import dataclass

from server.config import Settings
from server.metrics import Metrics
from server.search.events import Listener
from server.service import Ask, Outcome, Service
from server.traces import TraceStore


@dataclass(frozen=True, slots=True)
class Parts:
    service: Service
    settings: Settings
    traces: TraceStore | None
    metrics: Metrics
    created: int  # Unix seconds; the models' creation date

    async def search(self, ask: Ask, listener: Listener | None = None) -> Outcome:
        """Run one search, timing its first event. Raises what `Service.reason` does."""
        return await self.service.reason(ask, self.metrics.timed(ask.strategy.kind, listener))
