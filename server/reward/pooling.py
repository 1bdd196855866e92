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
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Self

from server.config import HttpSettings
from server.engine.checkpoint import BadWeights, Checkpoint
from server.engine.remote import RemoteModel
from server.engine.tokenizer import HFTokenizer
from server.errors import BadRequest, PonderError, ScorerError, boundary
from server.reward.batching import Batcher
from server.reward.client import Memory, Rows
from server.routing.replica import Replica

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


class HttpPooling(RemoteModel):
    """`server.reward.client.RewardModel`; its attributes are set by `start`."""

    tokenizer: HFTokenizer

    def __init__(self, settings: HttpSettings, *, activation: bool):
        if settings.dialect != "vllm":
            raise BadRequest(
                f"a remote reward model cannot speak the {settings.dialect} dialect; allowed: vllm",
                param="engine.dialect",
            )
        super().__init__(settings, error=ScorerError, every=EVERY)
        self.context = 0
        self.memory = Memory()
        self._activation = activation
        self._batchers: dict[Replica, Paths] = {}
        self._pooling = Pooling.LAST
        self._labels = 0

    async def start(self) -> None:
        """Ask the servers what they serve, and one of them for a verdict. Raises `EngineDead` if
        none can be reached, `ScorerError` if it is no reward model; it is closed then."""
        try:
            self.tokenizer, self.context = await self._find()
            await self._probe()
        except BaseException:
            await self.close()
            raise

    async def look_over(self, folder: Path) -> Checkpoint:
        """Nothing is exchanged from here. Raises `BadWeights`."""
        raise BadWeights(f"{self.name} is served elsewhere: exchange it there, and post {{}} here")

    async def successor(self, found: Checkpoint) -> Self:
        """The reward model with what its servers are to serve next. Each is to be closed."""
        await self._versions.go(found.version)
        return self._view(found.version)

    async def _end(self) -> None:
        for batcher in self._batchers.values():
            await batcher.close()

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
            "model": self._http.model,
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
