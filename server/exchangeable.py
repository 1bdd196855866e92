"""What a model is to the exchange of weights: one that goes over to others, or whose servers do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

from server.engine.checkpoint import Checkpoint


@runtime_checkable
class Exchangeable(Protocol):
    """A policy or PRM that can go over to other weights."""

    @property
    def version(self) -> str: ...

    @property
    def folder(self) -> str:
        """Where its weights come from, or a hub name."""
        ...

    async def look_over(self, folder: Path) -> Checkpoint:
        """The weights in `folder`, if it can go over to them. Raises `BadWeights`."""
        ...

    def drains(self, found: Checkpoint) -> bool:
        """Whether it must have no request while it goes over to these."""
        ...

    async def successor(self, found: Checkpoint) -> Self:
        """One that serves these, to be closed like this one. Unless it `drains`, this one goes on.
        Raises `EngineError` or `ScorerError`, with this one as it was."""
        ...

    async def close(self) -> None: ...


class InPlace(Exchangeable, Protocol):
    """One whose successor may take its place in the engine that they then share."""

    async def restore(self) -> None:
        """Have the engine with its own weights again; with no request."""
        ...


@runtime_checkable
class Remote(Protocol):
    """A model whose server may exchange its weights without us."""

    @property
    def follows(self) -> bool:
        """Whether its servers follow what is announced by themselves (`server.pod`)."""
        ...

    async def reread(self) -> str:
        """Ask what it serves now; the version."""
        ...

    async def coming(self) -> Checkpoint:
        """Of servers that follow: what they serve, or are to serve next."""
        ...


class WeightsObserver(Protocol):
    """Told of every exchange; observes, never decides. Must not block."""

    def serves(self, part: str, version: str) -> None: ...

    def exchanged(self, part: str, outcome: str, seconds: float) -> None: ...


def follows(model: Any) -> bool:
    """Whether its servers follow what is announced by themselves."""
    return isinstance(model, Remote) and model.follows
