"""Reward models behind a remote vLLM, or several, asked by token ids at the /pooling route.

The servers run with `--runner pooling` and one of these, which `start` tells apart by a probe:

- `--pooler-config '{"task": "token_classify", "tok_pooling_type": "STEP", "step_tag_id": N}'`,
  N the id of the step token: small replies, nothing read from the prefix cache;
- the same with `"ALL"`: a row for each token;
- `--pooler-config '{"task": "classify"}'` for a classifier read at its last token: it does read
  the prefix cache, but one pass gives one verdict. The one for an outcome reward model.

None of them reports cached tokens by path, so all of a path counts as computed.
"""

from __future__ import annotations

import asyncio
import struct
from base64 import b64decode
from collections.abc import Sequence
from copy import copy
from enum import Enum
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Self

from server.config import HttpSettings
from server.engine.checkpoint import BadWeights, Checkpoint
from server.engine.tokenizer import HFTokenizer
from server.errors import BadRequest, EngineDead, PonderError, ScorerError, boundary
from server.reward.batching import Batcher
from server.reward.client import Memory, Rows
from server.routing.fleet import Fleet
from server.routing.replica import Admits, Replica, Standing
from server.routing.route import Route
from server.routing.versions import Versions
from server.upstream import context_of

ROUTE = "/pooling"
BATCH = 64  # paths in one HTTP request
IN_FLIGHT = 2  # one on its way while the server works on the other
EVERY = 5.0  # seconds between looks at a server's metrics

Paths = Batcher[Sequence[int], list[float]]  # of ids, to the verdict of each row


class Pooling(Enum):
    """For which tokens the server gives a row."""

    ALL = "all"
    STEP = "step"  # its step tokens
    LAST = "last"


class HttpPooling:
    """`server.reward.client.RewardModel`; its attributes are set by `start`."""

    tokenizer: HFTokenizer

    def __init__(self, settings: HttpSettings, *, activation: bool):
        if settings.dialect != "vllm":
            raise BadRequest(
                f"a remote reward model cannot speak the {settings.dialect} dialect; allowed: vllm",
                param="engine.dialect",
            )
        self.name = settings.name or PurePosixPath(settings.model).name
        self.version = "unknown"
        self.context = 0
        self.memory = Memory()
        self._engine = settings
        self._activation = activation
        self._fleet = Fleet(settings, error=ScorerError, dead=EngineDead, every=EVERY)
        self._versions = Versions(self._fleet)
        self._route = Route(self._fleet)
        self._views = [self]  # that share the connections; the last one to close ends them
        self._batchers: dict[Replica, Paths] = {}
        self._pooling = Pooling.LAST
        self._labels = 0

    async def start(self) -> None:
        """Ask the servers what they serve, and one of them for a verdict. Raises `EngineDead` if
        none can be reached, `ScorerError` if it is no reward model; it is closed then."""
        try:
            await self._fleet.start()
            self.version = await self._versions.start()
            self._route = self._versions.route(self.version)
            cards = [replica.card for replica in self._fleet.up]
            self.context = min(context_of(c, self._engine.context, ScorerError) for c in cards)
            path = self._engine.tokenizer or self._engine.model
            with boundary(ScorerError, f"reading the tokenizer {path}"):
                self.tokenizer = await asyncio.to_thread(HFTokenizer, path)
            await self._probe()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Of several that share servers, the last one ends the connections to them."""
        if self not in self._views:
            return
        self._views.remove(self)
        try:
            await self._versions.left(self.version)
        finally:
            if not self._views:
                await self._versions.close()
                for batcher in self._batchers.values():
                    await batcher.close()
                await self._fleet.close()

    @property
    def folder(self) -> str:
        """Where its server says that the weights come from is the server's own affair."""
        return self._engine.model

    async def reread(self) -> str:
        """Ask the servers again what they serve; verdicts are of that version from now on. Not
        those that follow announcements, of which each search has a version of its own."""
        if not self.follows:
            await self._fleet.look()
            self.version = self._fleet.version
        return self.version

    @property
    def follows(self) -> bool:
        return self._versions.follows

    async def coming(self) -> Checkpoint:
        """Of servers that follow announcements: what they serve, or are to serve next."""
        return Checkpoint(Path(self.folder), await self._versions.coming(), "unknown", {})

    async def look_over(self, folder: Path) -> Checkpoint:
        """Nothing is exchanged from here. Raises `BadWeights`."""
        raise BadWeights(f"{self.name} is served elsewhere: exchange it there, and post {{}} here")

    def drains(self, found: Checkpoint) -> bool:
        return self._versions.drains(found.version)

    async def successor(self, found: Checkpoint) -> Self:
        """The reward model with what its servers are to serve next. Each is to be closed."""
        await self._versions.go(found.version)
        other = copy(self)
        other.version, other._route = found.version, self._versions.route(found.version)
        self._views.append(other)
        return other

    async def check(self) -> None:
        """One try at each server until one can serve, at most `connect_timeout` seconds each."""
        await self._fleet.check()

    def routed(self, key: bytes, admits: Admits | None = None) -> Self:
        other = copy(self)
        other._route = self._route.keyed(key, admits)
        return other

    def replicas(self) -> list[Standing]:
        return [replica.standing for replica in self._fleet.replicas]

    async def rows(self, ids: Sequence[int], marks: Sequence[int], *, reuse: bool = True) -> Rows:
        if self._pooling is Pooling.LAST:
            parts = [self._submit(ids[: at + 1]) for at in marks]
            verdicts = [row for rows in await asyncio.gather(*parts) for row in rows]
        else:
            rows = await self._submit(ids)
            given = self._given(ids)
            self._expect(len(rows), len(given))
            by_place = dict(zip(given, rows, strict=True))
            verdicts = [by_place[at] for at in marks]
        return Rows(dict(zip(marks, verdicts, strict=True)), computed=len(ids), cached=0)

    def _given(self, ids: Sequence[int]) -> Sequence[int]:
        """The positions that the server gives rows of."""
        return range(len(ids))

    async def _submit(self, ids: Sequence[int]) -> list[float]:
        """The verdicts on one path, by the first server that gives them."""
        errand = self._route.errand()
        while True:
            try:
                with errand.begun() as replica:
                    return await self._batcher(replica).submit(ids)
            except PonderError as error:
                if not errand.goes_on(error):
                    raise

    def _batcher(self, replica: Replica) -> Paths:
        """What goes to a server at once, of all searches together."""
        if replica not in self._batchers:
            for gone in [r for r in self._batchers if r not in self._fleet.replicas]:
                if not gone.in_flight:
                    del self._batchers[gone]
            ask = partial(self._ask, replica)
            self._batchers[replica] = Batcher(ask, size=BATCH, in_flight=IN_FLIGHT)
        return self._batchers[replica]

    async def _ask(self, replica: Replica, batch: list[Sequence[int]]) -> list[list[float]]:
        """The verdict of each row of each path."""
        with boundary(ScorerError, self.name):
            answer = await self._pooled(
                replica, batch, encoding_format="base64", endianness="little"
            )
            return [self._decode(b64decode(data)) for data in answer]

    def _decode(self, data: bytes) -> list[float]:
        """float32 [rows, labels]"""
        numbers = struct.unpack(f"<{len(data) // 4}f", data)
        self._expect(len(numbers) % self._labels, 0)
        rows = range(0, len(numbers), self._labels)
        return [self._verdict(numbers[at : at + self._labels]) for at in rows]

    def _verdict(self, labels: Sequence[float]) -> float:
        return labels[-1]

    async def _probe(self) -> None:
        """Ask about two ordinary tokens, in a reply that shows its shape."""
        await self._shape((0, 0))

    async def _shape(self, ids: Sequence[int]) -> None:
        with boundary(ScorerError, self.name), self._route.errand().begun() as replica:
            (data,) = await self._pooled(replica, [ids], encoding_format="float")
        match data:
            case [[*labels], [*_]]:
                self._pooling = Pooling.ALL
            case [[*labels]]:
                self._pooling = Pooling.STEP
            case [] | [[], *_]:
                raise ScorerError(
                    f"{self.name} gives nothing at the token {ids[-1]}: is that its step_tag_id?"
                )
            case [*labels]:
                self._pooling = Pooling.LAST
        self._labels = len(labels)
        if self._labels not in (1, 2):
            raise ScorerError(
                f"{self.name} gives {self._labels} labels a token; a reward model gives one or two"
            )

    async def _pooled(
        self, replica: Replica, batch: Sequence[Sequence[int]], **encoding: str
    ) -> list[Any]:
        body = {
            "model": self._engine.model,
            "input": [list(ids) for ids in batch],
            "use_activation": self._activation,
        }
        answer = await self._posted(replica, ROUTE, body | encoding)
        items = sorted(answer["data"], key=lambda item: item["index"])
        self._expect(len(items), len(batch))
        return [item["data"] for item in items]

    async def _posted(self, replica: Replica, path: str, body: dict[str, Any]) -> Any:
        # Where another server works, each path is sent there rather than waits for this one.
        others = any(r is not replica for r in self._fleet.up)
        return await replica.post(path, body, 0 if others else None)

    def _expect(self, got: int, wanted: int) -> None:
        if got != wanted:
            raise ScorerError(f"{self.name} gave {got} rows where {wanted} were due")
