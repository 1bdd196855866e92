"""Ways of choosing a server for a request, each as a policy."""

from __future__ import annotations

from collections.abc import Callable
from secrets import token_bytes
from typing import Any

from server.engine.http import HttpEngine
from server.routing.replica import Standing
from server.types import Engine

BY_SEARCH = "by search, spilling over"
PINNED = "by search, never spilling over"
LEAST = "least busy"
RANDOM = "random"
NEVER = 1e9  # times the mean


class PerRequest:
    """A policy whose servers are chosen anew for each request, whatever the search."""

    def __init__(self, engine: HttpEngine, choose: Callable[[HttpEngine], Engine]):
        self._engine, self._choose = engine, choose

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def routed(self, key: bytes) -> PerRequest:
        return self

    def replicas(self) -> list[Standing]:
        return self._engine.replicas()

    def stream(self, *arguments: Any, **how: Any) -> Any:
        return self._choose(self._engine).stream(*arguments, **how)


WAYS: dict[str, Callable[[HttpEngine], Any]] = {
    RANDOM: lambda engine: PerRequest(engine, lambda e: e.routed(token_bytes(16))),
    LEAST: lambda engine: PerRequest(engine, lambda e: e),
    PINNED: lambda engine: engine,
    BY_SEARCH: lambda engine: engine,
}
