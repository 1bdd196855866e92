"""The kinds of reward models behind a remote vLLM: process and outcome.

A PRM whose verdicts are labels may also be an ordinary server of its causal LM, without a
/pooling route: each verdict is one token asked of /v1/completions, which reads the prefix cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.config import HttpSettings, OrmSettings
from server.engine.http_vllm import neutral
from server.errors import ScorerError, boundary
from server.profiles import PrmProfile
from server.reward.layout import Layout
from server.reward.path import logistic
from server.reward.pooling import ROUTE, HttpPooling, Pooling
from server.routing.replica import Replica

COMPLETIONS = "/v1/completions"


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
            await self._submit((0, 0))
            return
        step_id = self.layout.step_id
        last = 0 if step_id is None else step_id
        await self._shape((self.tokenizer.ids_of(" ") if last == 0 else 0, last))
        if self._pooling is Pooling.STEP and step_id is None:
            raise ScorerError(f"{self.name} gives rows for a step token, which this style lacks")

    async def _has_pooling(self) -> bool:
        described = await self._fleet.up[0].upstream.get("/openapi.json")
        return ROUTE in (described or {}).get("paths", {})

    async def _ask(self, replica: Replica, batch: list[Sequence[int]]) -> list[list[float]]:
        if not self._completes:
            return await super()._ask(replica, batch)
        with boundary(ScorerError, self.name):
            return await self._completed(replica, batch)

    async def _completed(self, replica: Replica, batch: list[Sequence[int]]) -> list[list[float]]:
        """The good label's share of both labels, as what follows each of the prompts."""
        assert self.layout.labels is not None
        body = {
            "model": self._http.model,
            "prompt": [list(ids) for ids in batch],
            "max_tokens": 1,
            "logprobs": 0,
            "logprob_token_ids": list(self.layout.labels),
            "return_tokens_as_token_ids": True,
            **neutral(),
            "temperature": 0.0,
        }
        answer = await self._posted(replica, COMPLETIONS, body)
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
