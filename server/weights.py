"""Which weights serve, and how others take their place while searches run.

A search is pinned to the policy and the PRM that it began with. New ones go over at once where
the new model stands beside the old one (an adapter, another engine), which is closed when its last
search has ended. Where weights are loaded into the engine that serves, no search may run
meanwhile: those in flight end, those that come wait.

Servers that follow announcements (`server.pod`) go over when every gateway has let them go. Each
such part is exchanged in a turn of its own: a gateway that waited with one part for another gateway
while that one waited for it with the other part would wait for ever.

What cannot be loaded is refused before anything is exchanged, and the server goes on as it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from server.admission import Admission
from server.engine.checkpoint import BadWeights, Checkpoint
from server.errors import BadRequest, PonderError
from server.exchangeable import Exchangeable, InPlace, Remote, WeightsObserver, follows
from server.published import Kind, promoted
from server.reward import Models

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Serving:
    """What a part of the server serves."""

    version: str
    folder: str | None  # None: the model does not tell
    since: datetime


@dataclass(eq=False, slots=True)
class Generation:
    """Models that searches began with."""

    models: Models
    searches: int = 0
    parts: Mapping[Kind, Any] = field(init=False)

    def __post_init__(self) -> None:
        models: dict[Kind, Any] = {"policy": self.models.policy, "prm": self.models.prm}
        self.parts = {part: model for part, model in models.items() if model is not None}


class Weights:
    """The models that serve. `models` are started; they and their successors are closed by
    `close`, unless they were before."""

    def __init__(
        self,
        models: Models,
        admission: Admission,
        *,
        folder: Path | None = None,
        observer: WeightsObserver | None = None,
    ):
        self._admission, self._folder, self._observer = admission, folder, observer
        self._now = Generation(models)
        self._old: list[Generation] = []  # with searches that have not ended
        self._folders: dict[tuple[Kind, str], Path] = {}  # by version: all that ever served
        self._since: dict[Kind, datetime] = {}
        # By part that is followed; "": all others.
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tasks: set[asyncio.Task[None]] = set()
        self._note(self._now.parts)

    @property
    def models(self) -> Models:
        return self._now.models

    @property
    def serving(self) -> dict[Kind, Serving]:
        return {
            part: Serving(model.version, getattr(model, "folder", None), self._since[part])
            for part, model in self._now.parts.items()
        }

    @contextmanager
    def pinned(self) -> Iterator[Models]:
        """The models for one search; they serve until it ends."""
        generation = self._now
        generation.searches += 1
        try:
            yield generation.models
        finally:
            generation.searches -= 1
            self._retire()

    async def load(self, wanted: Mapping[Kind, str]) -> None:
        """Serve what is named, a folder or a version, as the policy, the PRM, or both at once.

        Raises `BadRequest` that names the part, `EngineError` or `ScorerError`; then what served
        before serves on. Not to be cancelled half-way: it goes on by itself.
        """
        await asyncio.shield(self._background(self._load(wanted)))

    async def reread(self) -> None:
        """Ask the servers of remote models what they serve now."""
        async with self._turn(self._now.parts.keys() - self.followed):
            for part, model in self._now.parts.items():
                before = model.version
                if isinstance(model, Remote) and await model.reread() != before:
                    self._note({part: model})

    @property
    def followed(self) -> set[Kind]:
        """The parts whose servers follow what is announced by themselves."""
        return {part for part, model in self._now.parts.items() if follows(model)}

    async def coming(self, part: Kind) -> str:
        """The version that the servers of a part that is followed serve, or are to serve next.
        Raises `EngineError` or `ScorerError` if none of them answers."""
        found: Checkpoint = await self._now.parts[part].coming()
        return found.version

    async def close(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)
        for generation in (self._now, *self._old):
            for model in generation.parts.values():
                await model.close()

    def _background(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, even if who asked for it has left

    @asynccontextmanager
    async def _turn(self, parts: Iterable[Kind]) -> AsyncIterator[None]:
        followed = self.followed
        async with AsyncExitStack() as stack:
            for name in sorted({part if part in followed else "" for part in parts}):
                await stack.enter_async_context(self._turns[name])
            yield

    async def _load(self, wanted: Mapping[Kind, str]) -> None:
        async with self._turn(wanted):
            began = perf_counter()
            outcome = "failed"
            try:
                await self._exchange_all(await self._found(wanted))
                outcome = "loaded"
            except BadRequest:
                outcome = "refused"
                raise
            finally:
                if self._observer:
                    for part in wanted:
                        self._observer.exchanged(part, outcome, perf_counter() - began)

    async def _found(self, wanted: Mapping[Kind, str]) -> dict[Kind, Checkpoint]:
        """What is not served yet of what is wanted, looked over."""
        found: dict[Kind, Checkpoint] = {}
        for part, name in wanted.items():
            model = self._now.parts.get(part)
            try:
                if model is None:
                    raise BadWeights(f"this server has no {part}")
                if not isinstance(model, Exchangeable):
                    raise BadWeights(f"this server's {part} is served elsewhere: exchange it there")
                checkpoint = await self._looked_over(part, name, model)
            except BadRequest as error:
                error.param = part
                raise
            if checkpoint.version != model.version:
                found[part] = checkpoint
        return found

    async def _looked_over(self, part: Kind, name: str, model: Exchangeable) -> Checkpoint:
        if follows(model):
            return await self._followed(part, name, model)
        folder, version = await asyncio.to_thread(self._named, part, name)
        found = await model.look_over(folder)
        if version and found.version != name:
            raise BadWeights(f"{folder} held {name} and holds {found.version} now")
        return found

    async def _followed(self, part: Kind, name: str, model: Any) -> Checkpoint:
        found: Checkpoint = await model.coming()
        if found.version not in (name, Path(name).name):
            raise BadWeights(
                f"the servers of this {part} follow what is announced, which is {found.version}: "
                f"promote {name} there (`python -m trainer publish`, `rollback`)"
            )
        return found

    def _named(self, part: Kind, name: str) -> tuple[Path, bool]:
        """The folder of a version that served before or was promoted, and True; or a path."""
        if (part, name) in self._folders:
            return self._folders[part, name], True
        known = promoted(self._folder, part) if self._folder is not None else ()
        for version in known:
            if version.version == name:
                return version.folder, True
        if not Path(name).is_dir():
            raise BadWeights(f"{name!r} is neither a version that is known here nor a folder")
        return Path(name).resolve(), False

    async def _exchange_all(self, found: dict[Kind, Checkpoint]) -> None:
        """Servers that go over by themselves do not go back because another part failed."""
        alone = [{part: found.pop(part)} for part in self.followed & found.keys()]
        exchanges = map(self._exchange, [*alone, found])
        for result in await asyncio.gather(*exchanges, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def _exchange(self, found: Mapping[Kind, Checkpoint]) -> None:
        """All of it or nothing."""
        before = self._now.parts
        drained = [part for part, checkpoint in found.items() if before[part].drains(checkpoint)]
        made: dict[Kind, Any] = {}
        try:
            for part in found.keys() - drained:
                made[part] = await before[part].successor(found[part])
            if not drained:
                self._install(made)
                return
            async with self._admission.drained():
                await self._in_place({part: found[part] for part in drained}, made)
        except BaseException:
            for model in made.values():
                await model.close()
            raise

    async def _in_place(self, found: Mapping[Kind, Checkpoint], made: dict[Kind, Any]) -> None:
        """With no search running. A part that went over before another one failed goes back; those
        whose servers go over by themselves come alone."""
        before: Mapping[Kind, InPlace] = self._now.parts
        gone: list[Kind] = []
        try:
            for part, checkpoint in found.items():
                made[part] = await before[part].successor(checkpoint)
                gone.append(part)
        except BaseException:
            for part in gone:
                await before[part].restore()
            raise
        self._install(made)

    def _install(self, made: Mapping[Kind, Any]) -> None:
        if not made:
            return
        for part, model in made.items():
            was = self._now.parts[part].version
            log.info("the %s serves %s now, after %s", part, model.version, was)
        self._old.append(self._now)
        self._now = Generation(replace(self.models, **{str(p): m for p, m in made.items()}))
        self._note(made)
        self._retire()

    def _note(self, made: Mapping[Kind, Any]) -> None:
        for part, model in made.items():
            self._since[part] = datetime.now(UTC)
            if isinstance(model, Exchangeable):
                self._folders[part, model.version] = Path(model.folder)
            if self._observer:
                self._observer.serves(part, model.version)

    def _retire(self) -> None:
        """Close the models that no search has any more."""
        ended = [g for g in self._old if not g.searches]
        if not ended:
            return
        self._old = [g for g in self._old if g.searches]
        kept = {id(m) for g in (self._now, *self._old) for m in g.parts.values()}
        for model in {id(m): m for g in ended for m in g.parts.values()}.values():
            if id(model) not in kept:
                self._background(_closed(model))


async def _closed(model: Any) -> None:
    try:
        await model.close()
    except PonderError as error:
        log.error("closing %s: %s", model.version, error.message)
