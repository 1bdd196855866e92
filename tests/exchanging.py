"""A policy and a PRM without a model that go over to other weights, behind the real protocols.

A folder's name is the version of the weights in it; one that begins with `bad` is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from server.engine.checkpoint import BadWeights, Checkpoint
from server.errors import EngineError
from server.reward.client import Rows
from tests.fakes import FakeEngine, FakeStream
from tests.rewarding import FakePrm


@dataclass
class Device:
    """What is loaded, by all that was ever started."""

    loaded: str
    open: int = 1  # models that are not closed
    fails: bool = False  # the next exchange
    exchanges: int = 0


@dataclass
class Exchange:
    """`server.weights.Exchangeable`."""

    device: Device = field(default_factory=lambda: Device("v1"))
    home: Path = Path("v1")
    in_place: bool = True
    closed: bool = False
    load_seconds: float = 0.02
    version: str = "v1"

    @property
    def folder(self) -> str:
        return str(self.home)

    @property
    def busy(self) -> int:
        raise NotImplementedError

    def rest(self) -> None:
        """What runs on the one it was copied from does not run on this one."""
        raise NotImplementedError

    async def look_over(self, folder: Path) -> Checkpoint:
        if folder.name.startswith("bad"):
            raise BadWeights(f"{folder.name} is bad")
        return Checkpoint(folder, folder.name, "fake", {})

    def drains(self, found: Checkpoint) -> bool:
        return self.in_place

    async def successor(self, found: Checkpoint) -> Self:
        assert not (self.in_place and self.busy), "loaded under a running search"
        await asyncio.sleep(self.load_seconds)
        assert not (self.in_place and self.busy), "a search began meanwhile"
        if self.device.fails:
            self.device.fails = False
            raise EngineError("the fake engine did not load them")
        self.device.exchanges += 1
        self.device.open += 1
        other = copy(self)
        other.version, other.home, other.closed = found.version, found.folder, False
        other.rest()
        if self.in_place:
            self.device.loaded = found.version
        return other

    async def restore(self) -> None:
        assert not self.busy, "restored under a running search"
        self.device.loaded = self.version

    def check_use(self) -> None:
        assert not self.closed, f"{self.version} is used and was closed"
        if self.in_place:
            assert self.device.loaded == self.version, "used with other weights than its own"

    async def close(self) -> None:
        if not self.closed:
            assert not self.busy, "closed under a running search"
            self.closed = True
            self.device.open -= 1


@dataclass
class FakePolicy(Exchange, FakeEngine):
    @property
    def busy(self) -> int:
        return self.open_streams

    def rest(self) -> None:
        self.open_streams = 0

    def stream(self, prompt_ids: Sequence[int], **options: Any) -> FakeStream:
        self.check_use()
        return super().stream(prompt_ids, **options)


@dataclass
class FakeJudge(Exchange, FakePrm):
    @property
    def busy(self) -> int:
        return self.running

    def rest(self) -> None:
        self.running = 0

    async def rows(self, ids: Sequence[int], marks: Sequence[int], *, reuse: bool = True) -> Rows:
        self.check_use()
        return await super().rows(ids, marks, reuse=reuse)
