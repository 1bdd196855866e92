"""Reward models behind a remote vLLM, asked by token ids.

At the /pooling route of a server that runs with `--runner pooling` and one of these, which
`start` tells apart by a probe:

- `--pooler-config '{"task": "token_classify", "tok_pooling_type": "STEP", "step_tag_id": N}'`,
  N the id of the step token: small replies, nothing read from the prefix cache;
- the same with `"ALL"`: a row for each token;
- `--pooler-config '{"task": "classify"}'` for a classifier read at its last token: it does read
  the prefix cache, but one pass gives one verdict. The one for an outcome reward model.

A PRM whose verdicts are labels may also be an ordinary server of its causal LM, without a
/pooling route: each verdict is one token asked of /v1/completions, which reads the prefix cache.

None of them reports cached tokens by path, so all of a path counts as computed.
"""

from __future__ import annotations

import asyncio
import struct
from base64 import b64decode
from collections.abc import Sequence
from enum import Enum
from pathlib import PurePosixPath
from typing import Any

from server.config import HttpSettings, OrmSettings
from server.engine.http_vllm import neutral
from server.engine.tokenizer import HFTokenizer
from server.errors import BadRequest, EngineDead, ScorerError, boundary
from server.profiles import PrmProfile
from server.reward.batching import Batcher
from server.reward.client import Memory, Rows
from server.reward.layout import Layout
from server.reward.path import logistic
from server.upstream import Upstream, context_of, weights_of

ROUTE = "/pooling"
COMPLETIONS = "/v1/completions"
BATCH = 64  # paths in one HTTP request
IN_FLIGHT = 2  # one on its way while the server works on the other


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
        self._upstream = Upstream(settings, error=ScorerError, dead=EngineDead)
        self._pooling = Pooling.LAST
        self._labels = 0
        self._batcher: Batcher[Sequence[int], list[float]] = Batcher(
            self._ask, size=BATCH, in_flight=IN_FLIGHT
        )

    async def start(self) -> None:
        """Ask the server what it serves, and for one verdict. Raises `EngineDead` if it cannot be
        reached, `ScorerError` if it is no reward model; it is closed then."""
        try:
            card = await self._upstream.card(self._engine.model)
            self.version = weights_of(card)
            self.context = context_of(card, self._engine.context, ScorerError)
            path = self._engine.tokenizer or self._engine.model
            with boundary(ScorerError, f"reading the tokenizer {path}"):
                self.tokenizer = await asyncio.to_thread(HFTokenizer, path)
            await self._probe()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        await self._batcher.close()
        await self._upstream.close()

    async def reread(self) -> str:
        """Ask the server again what it serves; verdicts are of that version from now on."""
        self.version = weights_of(await self._upstream.card(self._engine.model))
        return self.version

    async def check(self) -> None:
        """One try, at most `connect_timeout` seconds."""
        await self._upstream.get("/health", within=self._engine.connect_timeout)

    async def rows(self, ids: Sequence[int], marks: Sequence[int], *, reuse: bool = True) -> Rows:
        if self._pooling is Pooling.LAST:
            parts = [self._batcher.submit(ids[: at + 1]) for at in marks]
            verdicts = [row for rows in await asyncio.gather(*parts) for row in rows]
        else:
            rows = await self._batcher.submit(ids)
            given = self._given(ids)
            self._expect(len(rows), len(given))
            by_place = dict(zip(given, rows, strict=True))
            verdicts = [by_place[at] for at in marks]
        return Rows(dict(zip(marks, verdicts, strict=True)), computed=len(ids), cached=0)

    def _given(self, ids: Sequence[int]) -> Sequence[int]:
        """The positions that the server gives rows of."""
        return range(len(ids))

    async def _ask(self, batch: list[Sequence[int]]) -> list[list[float]]:
        """The verdict of each row of each path."""
        with boundary(ScorerError, self.name):
            answer = await self._post(batch, encoding_format="base64", endianness="little")
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
        with boundary(ScorerError, self.name):
            (data,) = await self._post([ids], encoding_format="float")
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

    async def _post(self, batch: Sequence[Sequence[int]], **encoding: str) -> list[Any]:
        body = {
            "model": self._engine.model,
            "input": [list(ids) for ids in batch],
            "use_activation": self._activation,
        }
        answer = await self._upstream.post(ROUTE, body | encoding)
        items = sorted(answer["data"], key=lambda item: item["index"])
        self._expect(len(items), len(batch))
        return [item["data"] for item in items]

    def _expect(self, got: int, wanted: int) -> None:
        if got != wanted:
            raise ScorerError(f"{self.name} gave {got} rows where {wanted} were due")


class HttpPrm(HttpPooling):
    """`server.reward.client.PrmClient`."""

    layout: Layout

    def __init__(self, settings: HttpSettings, profile: PrmProfile):
        super().__init__(settings, activation=True)
        self._profile = profile
        self._completes = False  # labels are asked of /v1/completions

    def _given(self, ids: Sequence[int]) -> Sequence[int]:
        if self._pooling is Pooling.STEP:
            return [at for at, i in enumerate(ids) if i == self.layout.step_id]
        return super()._given(ids)

    async def _probe(self) -> None:
        self.layout = Layout(self.tokenizer, self._profile)
        if self.layout.labels and not await self._has_pooling():
            self._completes = True
            self.context -= 1  # the label comes after the last token
            await self._ask([(0, 0)])
            return
        step_id = self.layout.step_id
        last = 0 if step_id is None else step_id
        await self._shape((self.tokenizer.ids_of(" ") if last == 0 else 0, last))
        if self._pooling is Pooling.STEP and step_id is None:
            raise ScorerError(f"{self.name} gives rows for a step token, which this style lacks")

    async def _has_pooling(self) -> bool:
        described = await self._upstream.get("/openapi.json")
        return ROUTE in (described or {}).get("paths", {})

    async def _ask(self, batch: list[Sequence[int]]) -> list[list[float]]:
        if not self._completes:
            return await super()._ask(batch)
        with boundary(ScorerError, self.name):
            return await self._completed(batch)

    async def _completed(self, batch: list[Sequence[int]]) -> list[list[float]]:
        """The good label's share of both labels, as what follows each of the prompts."""
        assert self.layout.labels is not None
        body = {
            "model": self._engine.model,
            "prompt": [list(ids) for ids in batch],
            "max_tokens": 1,
            "logprobs": 0,
            "logprob_token_ids": list(self.layout.labels),
            "return_tokens_as_token_ids": True,
            **neutral(),
            "temperature": 0.0,
        }
        answer = await self._upstream.post(COMPLETIONS, body)
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        self._expect(len(choices), len(batch))
        tops = [choice["logprobs"]["top_logprobs"][0] for choice in choices]
        bad, good = (f"token_id:{i}" for i in self.layout.labels)
        return [[logistic(float(top[good]) - float(top[bad]))] for top in tops]


class HttpOrm(HttpPooling):
    """`server.reward.client.OrmClient`."""

    def __init__(self, settings: HttpSettings, orm: OrmSettings):
        super().__init__(settings, activation=False)
        self.settings = orm

    def _verdict(self, labels: Sequence[float]) -> float:
        return labels[-1] - labels[0] if len(labels) == 2 else labels[-1]
