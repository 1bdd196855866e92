"""A process reward model behind a remote vLLM, asked by token ids at its /pooling route.

The server runs with `--runner pooling` and one of these, which `start` tells apart by a probe:

- `--pooler-config '{"task": "token_classify", "tok_pooling_type": "STEP", "step_tag_id": N}'`,
  N the id of the step token: small replies, nothing read from the prefix cache;
- the same with `"ALL"`: a row for each token;
- `--pooler-config '{"task": "classify"}'` for a classifier read at its last token: it does read
  the prefix cache, but one pass gives one verdict.

None of them reports cached tokens, so all of a path counts as computed.
"""

from __future__ import annotations

import asyncio
import struct
from base64 import b64decode
from collections.abc import Sequence
from enum import Enum
from pathlib import PurePosixPath
from typing import Any

from server.config import HttpSettings
from server.engine.tokenizer import HFTokenizer
from server.errors import BadRequest, EngineDead, ScorerError, boundary
from server.reward.batching import Batcher
from server.reward.client import Memory, Rows
from server.upstream import Upstream, context_of, weights_of

ROUTE = "/pooling"
BATCH = 64  # paths in one HTTP request
IN_FLIGHT = 2  # one on its way while the server works on the other


class Pooling(Enum):
    """For which tokens the server gives a row."""

    ALL = "all"
    STEP = "step"  # its step tokens
    LAST = "last"


class HttpPrm:
    """`server.reward.client.PrmClient`; its attributes are set by `start`."""

    tokenizer: HFTokenizer

    def __init__(self, settings: HttpSettings, step_token: str):
        if settings.dialect != "vllm":
            raise BadRequest(
                f"a remote PRM cannot speak the {settings.dialect} dialect; allowed: vllm",
                param="prm.engine.dialect",
            )
        self.name = settings.name or PurePosixPath(settings.model).name
        self.version = "unknown"
        self.context = 0
        self.step_id = -1
        self.memory = Memory()
        self._settings = settings
        self._step_token = step_token
        self._upstream = Upstream(settings, error=ScorerError, dead=EngineDead)
        self._pooling = Pooling.ALL
        self._labels = 0
        self._batcher: Batcher[Sequence[int], list[float]] = Batcher(
            self._ask, size=BATCH, in_flight=IN_FLIGHT
        )

    async def start(self) -> None:
        """Ask the server what it serves, and for one verdict. Raises `EngineDead` if it cannot be
        reached, `ScorerError` if it is no PRM; it is closed then."""
        try:
            card = await self._upstream.card(self._settings.model)
            self.version = weights_of(card)
            self.context = context_of(card, self._settings.context, ScorerError)
            path = self._settings.tokenizer or self._settings.model
            with boundary(ScorerError, f"reading the tokenizer {path}"):
                self.tokenizer = await asyncio.to_thread(HFTokenizer, path)
            self.step_id = self.tokenizer.ids_of(self._step_token)
            await self._probe()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        await self._batcher.close()
        await self._upstream.close()

    async def check(self) -> None:
        """One try, at most `connect_timeout` seconds."""
        await self._upstream.get("/health", within=self._settings.connect_timeout)

    async def rows(self, ids: Sequence[int], *, reuse: bool = True) -> Rows:
        marks = [at for at, i in enumerate(ids) if i == self.step_id]
        if self._pooling is Pooling.LAST:
            marks = marks[-1:] if reuse else marks
            parts = [self._batcher.submit(ids[: at + 1]) for at in marks]
            verdicts = [row for rows in await asyncio.gather(*parts) for row in rows]
        else:
            rows = await self._batcher.submit(ids)
            whole = self._pooling is Pooling.ALL
            self._expect(len(rows), len(ids) if whole else len(marks))
            verdicts = [rows[at] for at in marks] if whole else rows
        return Rows(dict(zip(marks, verdicts, strict=True)), computed=len(ids), cached=0)

    async def _ask(self, batch: list[Sequence[int]]) -> list[list[float]]:
        """The verdict of each row of each path."""
        with boundary(ScorerError, self.name):
            answer = await self._post(batch, encoding_format="base64", endianness="little")
            return [self._decode(b64decode(data)) for data in answer]

    def _decode(self, data: bytes) -> list[float]:
        """float32 [rows, labels]; the last label is the verdict."""
        numbers = struct.unpack(f"<{len(data) // 4}f", data)
        self._expect(len(numbers) % self._labels, 0)
        return list(numbers[self._labels - 1 :: self._labels])

    async def _probe(self) -> None:
        """Ask about an ordinary token and a step token, in a reply that shows its shape."""
        other = self.tokenizer.ids_of(" ") if self.step_id == 0 else 0
        with boundary(ScorerError, self.name):
            (data,) = await self._post([(other, self.step_id)], encoding_format="float")
        match data:
            case [[*labels], [*_]]:
                self._pooling = Pooling.ALL
            case [[*labels]]:
                self._pooling = Pooling.STEP
            case [] | [[], *_]:
                raise ScorerError(
                    f"{self.name} gives nothing at the step token: is its step_tag_id "
                    f"{self.step_id}?"
                )
            case [*labels]:
                self._pooling = Pooling.LAST
        self._labels = len(labels)
        if self._labels not in (1, 2):
            raise ScorerError(
                f"{self.name} gives {self._labels} labels a token; a process reward model gives "
                "one or two"
            )

    async def _post(self, batch: Sequence[Sequence[int]], **encoding: str) -> list[Any]:
        body = {"model": self._settings.model, "input": [list(ids) for ids in batch]}
        answer = await self._upstream.post(ROUTE, body | encoding)
        items = sorted(answer["data"], key=lambda item: item["index"])
        self._expect(len(items), len(batch))
        return [item["data"] for item in items]

    def _expect(self, got: int, wanted: int) -> None:
        if got != wanted:
            raise ScorerError(f"{self.name} gave {got} rows where {wanted} were due")
