"""A vLLM that follows announced weights: what it serves, what is coming, and going over to it.

It goes over when nobody holds what it serves (`holds.py`). What cannot be served is refused, and
it goes on as it was. Weights that vLLM does not put right into an engine that runs end the process
instead, when nobody holds what it serves: whatever supervises it starts it anew, with them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from pathlib import Path
from typing import Any

from server.engine.checkpoint import BadWeights, Checkpoint
from server.errors import BadRequest, EngineError, boundary
from server.handover.word import Hold, Word
from server.pod.gate import Gate, StillBusy
from server.pod.holds import Holds
from server.promotions import Promotions
from server.published import Kind, Promoted

WORD = 1.0  # seconds that an answer waits for a look
log = logging.getLogger("ponder.pod")
# A folder, as what takes the place of what is in another one. Raises `BadWeights`.
LookOver = Callable[[Path, Path], Checkpoint]
Exchange = Callable[[Checkpoint], Awaitable[None]]  # if it fails, the engine is not used any more


class Pod:
    """`version` is what it serves. `die` ends the process, in the way that a supervisor would."""

    def __init__(
        self,
        part: Kind,
        version: str,
        folder: Path,
        promotions: Promotions,
        *,
        look_over: LookOver,
        exchange: Exchange,
        die: Callable[[], None],
        seconds: float,
    ):
        """`promotions` are looked at every so many seconds."""
        self.part, self.version, self.folder = part, version, folder
        self.at: datetime | None = None  # when it was promoted
        self.gate = Gate()
        self._holds = Holds()
        self._promotions, self._seconds = promotions, seconds
        self._look_over, self._exchange, self._die = look_over, exchange, die
        self._coming: Promoted | None = None
        self._found: Checkpoint | None = None  # of what is coming
        self._refused: dict[str, str] = {}
        self._passed_over: Promoted | None = None  # the last that was refused
        self._looking = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Follow, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._go_over())

    async def word(self) -> Word:
        """What it says now, having looked; but checking large weights takes longer than that."""
        looking = self._background(self.look())
        await asyncio.wait([looking], timeout=WORD)
        return self._word()

    def hold(self, asked: Hold) -> Word:
        """A gateway holds what is served, or lets it go. Not while it goes over."""
        held = asked.version == self.version and not self.gate.is_shut
        if held:
            self._holds.hold(asked.holder, asked.seconds)
        return self._word().model_copy(update={"held": held and asked.seconds > 0})

    async def look(self) -> None:
        """See what is announced, and whether it can be served; never raises for what cannot."""
        async with self._looking:
            newest = (await self._promotions.newest()).get(self.part)
            if newest is None or newest.version == self.version or newest == self._passed_over:
                if newest is not None and newest.version == self.version:
                    self.at = newest.at
                self._coming = self._found = None
            elif newest != self._coming:
                self._found = await self._checked(newest)
                self._coming = newest if self._found else None
                self._changed.set()

    def _background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _checked(self, newest: Promoted) -> Checkpoint | None:
        try:
            with boundary(EngineError, f"reading {newest.folder}"):
                found = await asyncio.to_thread(self._look_over, newest.folder, self.folder)
            if found.rank is not None:
                raise BadWeights(f"{newest.folder} is an adapter: publish the merged weights")
            if found.version != newest.version:
                raise BadWeights(f"{newest.folder} holds {found.version}")
        except BadRequest as error:
            self._refused[newest.version], self._passed_over = error.message, newest
            log.error("announced, but not served: %s: %s", newest.version, error.message)
            return None
        except EngineError as error:  # it may be readable at the next look
            log.error("announced, but not read: %s: %s", newest.version, error.message)
            return None
        self._refused.pop(newest.version, None)
        log.info("%s is coming, after %s", newest.version, self.version)
        return found

    def _word(self) -> Word:
        coming = self._coming
        return Word(
            part=self.part,
            version=self.version,
            folder=str((coming or self).folder),
            coming=coming.version if coming else None,
            at=(coming or self).at,
            refused=self._refused,
            holders=len(self._holds),
        )

    async def _watch(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(self._seconds)

    async def _go_over(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._holds.none()
            # Nothing is awaited between here and the shut gate, which no new hold passes.
            if self._coming is not None and self._found is not None:
                await self._become(self._coming, self._found)

    async def _become(self, coming: Promoted, found: Checkpoint) -> None:
        was = self.version
        try:
            async with self.gate.shut():
                with boundary(EngineError, f"loading {found.folder}"):
                    await self._exchange(found)
                self.version, self.folder, self.at = coming.version, coming.folder, coming.at
                self._coming = self._found = None
        except StillBusy:
            log.warning("requests that nobody holds it for keep it from %s", found.version)
            await asyncio.sleep(self.gate.patience)  # those that waited are served in between
            self._changed.set()
            return
        except EngineError as error:
            log.error("this process ends, to be started anew: %s", error.message)
            self._die()
            await asyncio.Event().wait()  # until it has
        log.info("%s is served now, after %s", self.version, was)
