"""Searches that go on without their first client: found by others, ended, stored."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from server.api.recording import Make, Recording
from server.errors import StateError
from server.state.replies import Found, MemoryReplies, Replies, State
from server.state.settings import IdempotencySettings

TOO_LARGE = b"\n"  # in place of a reply that is not kept


@dataclass(frozen=True, slots=True)
class Sent:
    """What makes two requests the same."""

    key: str
    request: str  # of its path and its body
    by_key: bool  # else it was recognized as an SDK's
    retry: bool
    resumes: bool = False  # takes up what was begun, and begins nothing


@dataclass(eq=False, slots=True)
class Run:
    """A reply that is made here."""

    sent: Sent
    owner: str
    recording: Recording
    store: Replies | None = None  # where others find it
    timer: asyncio.TimerHandle | None = None  # until which it goes on without a client

    def stay(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Runs:
    """All that run here, and the stores in which others are found."""

    def __init__(self, settings: IdempotencySettings, shared: Replies | None):
        self._settings = settings
        self.local = MemoryReplies(settings.lease_seconds, settings.memory_bytes)
        self.shared = shared
        self._found: dict[str, Run] = {}  # by key
        self._runs: set[Run] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    def get(self, key: str) -> Run | None:
        """One that runs, or whose reply is being stored; not one that failed."""
        run = self._found.get(key)
        if run is not None and run.recording.task.done() and run.recording.kept() is None:
            return None
        return run

    async def ask(self, sent: Sent, owner: str) -> tuple[Replies, Found]:
        """Begin it or, where it only joins what was begun, look for that.

        While Redis is away a key holds within this process. Raises `StateError` for one that
        resumes, whose search may be there.
        """
        if self.shared is not None:
            kept = await self.local.look(sent.key, sent.request)
            if kept.state is not State.NONE:  # from when it was away
                return self.local, kept
        if sent.resumes and self.shared is not None:
            return self.shared, await self.shared.look(sent.key, sent.request)
        if sent.by_key and not sent.resumes:
            return await self._begin(sent, owner)
        if self.shared is not None:
            with suppress(StateError):
                return self.shared, await self.shared.look(sent.key, sent.request)
        return self.local, await self.local.look(sent.key, sent.request)

    def start(
        self, sent: Sent, owner: str, make: Make, scope: Scope, store: Replies | None
    ) -> Recording:
        """Make a reply; others find it if it was begun in a `store`."""
        recording = Recording(make, scope)
        run = Run(sent, owner, recording, store)
        recording.left = lambda: self._left(run)
        self._runs.add(run)
        recording.task.add_done_callback(lambda _: self._runs.discard(run))
        if store is not None:
            self._publish(run, store)
        return recording

    def drop(self, sent: Sent, owner: str) -> None:
        """Its client left while it was being begun."""
        self._soon(self._drop(sent.key, owner))

    async def _drop(self, key: str, owner: str) -> None:
        await self.local.forget(key, owner)
        if self.shared is not None:
            with suppress(StateError):
                await self.shared.forget(key, owner)

    def _publish(self, run: Run, store: Replies) -> None:
        run.store = store
        self._found[run.sent.key] = run
        self._soon(self._attend(run, store))

    def _left(self, run: Run) -> None:
        """Its last client has gone before its end."""
        settings, by_key = self._settings, run.sent.by_key
        seconds = settings.linger_seconds if by_key else settings.sdk_linger_seconds
        # An SDK sends a request again only if no reply had begun.
        if not seconds or (run.recording.begun and not by_key):
            run.recording.task.cancel()
            return
        loop = asyncio.get_running_loop()
        run.timer = loop.call_later(seconds, lambda: self._soon(self._expire(run)))
        if run.store is None:
            self._soon(self._offer(run))

    async def _offer(self, run: Run) -> None:
        """Let its client find it again; not if there is such a one already."""
        store, found = await self._begin(run.sent, run.owner)
        if found.state is not State.BEGUN or run.sent.key in self._found:
            run.recording.task.cancel()
        else:
            self._publish(run, store)

    async def _begin(self, sent: Sent, owner: str) -> tuple[Replies, Found]:
        if self.shared is not None:
            with suppress(StateError):
                return self.shared, await self.shared.begin(sent.key, sent.request, owner)
        return self.local, await self.local.begin(sent.key, sent.request, owner)

    async def _expire(self, run: Run) -> None:
        """End it, unless somebody joined it meanwhile, or waits for it on another replica."""
        timer, wanted = run.timer, False
        with suppress(StateError):
            wanted = run.store is not None and await run.store.renew(run.sent.key, run.owner)
        # Who joined has stopped the timer, and reads in a moment.
        if timer is None or run.timer is not timer or run.recording.task.done():
            return
        if wanted:
            self._left(run)
        else:
            run.recording.task.cancel()

    async def _attend(self, run: Run, store: Replies) -> None:
        """Hold its lease until its end, and store its reply."""
        key, owner, task = run.sent.key, run.owner, run.recording.task
        while not (await asyncio.wait({task}, timeout=self._settings.lease_seconds / 3))[0]:
            with suppress(StateError):
                await store.begin(key, run.sent.request, owner)  # a Redis may have forgotten it
                await store.renew(key, owner)
        run.stay()
        reply = run.recording.kept()
        try:
            if reply is None:
                await self._drop(key, owner)
            else:
                await self._store(run, store, reply)
        finally:
            if self._found.get(key) is run:
                del self._found[key]

    async def _store(self, run: Run, store: Replies, reply: bytes) -> None:
        settings, sent = self._settings, run.sent
        if len(reply) > settings.reply_bytes:
            reply = TOO_LARGE
        seconds = settings.seconds if sent.by_key else settings.sdk_seconds
        try:
            await store.begin(sent.key, sent.request, run.owner)  # if it was forgotten
            await store.end(sent.key, run.owner, reply, seconds)
        except StateError:
            await self.local.begin(sent.key, sent.request, run.owner)
            await self.local.end(sent.key, run.owner, reply, seconds)

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop what runs, and store what has ended."""
        for run in tuple(self._runs):
            run.stay()
            run.recording.task.cancel()
        ended = (run.recording.task for run in tuple(self._runs))
        await asyncio.gather(*ended, return_exceptions=True)
        while self._tasks:
            await asyncio.gather(*self._tasks)
