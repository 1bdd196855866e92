"""The outcome reward: a reward model's score of a finished answer, such as a Bradley-Terry one.

The model is a sequence classifier that reads the chat with the answer in its own template, and
whose last token has the score. Scores have no bounds and are logged as they are; a path's value
is 1 / (1 + exp(-(score - center) / scale)), which at scale 1 is the Bradley-Terry probability
that the answer is preferred to one of score `center` (Stiennon et al., arXiv 2009.01325). It stays
below 1, which stands for certainty and ends a search (`stop_at`). From 37 scales above the center
on, floating point tells values apart no more, which the log says: such models need another `scale`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import isfinite, nextafter
from typing import Literal

from pydantic import Field

from server.errors import BadRequest, ScorerError
from server.reward.cache import first_key, next_key
from server.reward.client import OrmClient, Rows, guarded
from server.reward.models import Config, Models
from server.reward.path import logistic, unscored
from server.types import Message, Node, Prompt, Score, Scorer

log = logging.getLogger(__name__)

MOST = nextafter(1.0, 0.0)


class Orm(Config):
    """The outcome reward model that the server is configured with."""

    kind: Literal["orm"] = "orm"
    # The value of an answer that is not finished, or longer than the model can read.
    unknown: float = Field(0.5, ge=0, le=1, allow_inf_nan=False)

    @property
    def partial(self) -> bool:
        return False

    def context(self, models: Models) -> int:
        policy = models.policy.context
        return policy if models.orm is None else min(policy, models.orm.context)

    def scorer(self, models: Models) -> Scorer:
        if models.orm is None:
            raise BadRequest("this server has no outcome reward model", param="reward")
        return OrmScorer(models.orm, self.unknown)


class OrmScorer:
    def __init__(self, orm: OrmClient, unknown: float):
        self.name = orm.name
        self.version = orm.version
        self._orm = orm
        self._unknown = unknown
        self._told = False  # once in a search is enough

    async def score(self, prompt: Prompt, path: Sequence[Node]) -> Score:
        """One pass of the model over a finished answer, none over any other."""
        earlier = (None,) * max(0, unscored(path) - 1)
        ids = self._read(prompt, path) if path[-1].finished else ()
        if not 0 < len(ids) <= self._orm.context:
            return Score(self._unknown, (*earlier, None))
        raw, computed = await guarded(self.name, self._raw(ids))
        return Score(self._value(raw), (*earlier, raw), computed, len(ids) - computed)

    def _value(self, raw: float) -> float:
        settings = self._orm.settings
        value = logistic((raw - settings.center) / settings.scale)
        if value >= MOST and not self._told:
            self._told = True
            log.warning("%s: a score of %.1f is beyond what orm.scale tells apart", self.name, raw)
        return min(MOST, value)

    def _read(self, prompt: Prompt, path: Sequence[Node]) -> tuple[int, ...]:
        system = self._orm.settings.system
        chat = (*prompt.messages, Message("assistant", path[-1].text()))
        if system is not None and all(m.role != "system" for m in chat):
            chat = (Message("system", system), *chat)
        return self._orm.tokenizer.chat(chat)

    async def _raw(self, ids: tuple[int, ...]) -> tuple[float, int]:
        """The score of a chat, and how many of its tokens were computed for this call."""
        memory, at = self._orm.memory, len(ids) - 1
        key = next_key(first_key(self.version), ids)
        known = memory.verdicts.get(key)
        if known is not None:
            return known, 0

        async def work() -> Rows:
            rows = await self._orm.rows(ids, (at,))
            if not isfinite(rows.scores[at]):
                raise ScorerError(f"{self.name}: a score of {rows.scores[at]}")
            memory.verdicts.put(key, rows.scores[at])
            return rows

        rows, ours = await memory.flights.run(key, work)
        return rows.scores[at], rows.computed if ours else 0
