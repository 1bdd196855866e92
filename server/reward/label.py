"""The label reward: how probable a good label is as the next token, against a bad one.

As in Math-Shepherd (arXiv 2312.08935), but asked of the policy itself, whose engine has the
path in its cache already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Literal

from server.errors import BadRequest, ScorerError, boundary, unwrap
from server.profiles import Aggregate, LabelProfile
from server.reward.models import Config, Models, check_logprobs
from server.reward.path import aggregate, logistic, unscored
from server.types import Engine, Node, Prompt, Score, Scorer, Stop, Tokenizer


class Label(Config):
    """Two tokens of the policy as a verdict on each step."""

    kind: Literal["label"] = "label"
    good: str | None = None  # None: the profile's
    bad: str | None = None
    aggregate: Aggregate | None = None

    def context(self, models: Models) -> int:
        return models.policy.context - 1  # the label comes after the last token

    def scorer(self, models: Models) -> Scorer:
        check_logprobs(models.policy, 0, "reward")
        profile, tokenizer = models.profile, models.policy.tokenizer
        taught = profile.label or LabelProfile()
        good = _token(tokenizer, self.good or taught.good, "reward.good")
        bad = _token(tokenizer, self.bad or taught.bad, "reward.bad")
        if good == bad:
            raise BadRequest("the good and the bad label are the same token", param="reward.bad")
        rule = self.aggregate or profile.prm.aggregate
        policy = models.policy
        return LabelScorer(policy, good, bad, rule, f"label:{policy.name}", policy.version)


def taught(models: Models) -> bool:
    """Whether the policy's profile has labels, and this policy has them as tokens."""
    labels, encode = models.profile.label, models.policy.tokenizer.encode
    return labels is not None and all(len(encode(x)) == 1 for x in (labels.good, labels.bad))


def _token(tokenizer: Tokenizer, label: str, param: str) -> int:
    ids = tokenizer.encode(label)
    if len(ids) != 1:
        message = f"{label!r} is {len(ids)} tokens of this policy; a label must be one"
        raise BadRequest(message, param=param)
    return ids[0]


@dataclass(slots=True)
class LabelScorer:
    policy: Engine
    good: int
    bad: int
    rule: Aggregate
    name: str
    version: str

    async def score(self, prompt: Prompt, path: Sequence[Node]) -> Score:
        """One short request for each step that has no verdict yet, all at once."""
        contexts = self._contexts(prompt, path)[len(path) - unscored(path) :]
        try:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(self._ask(ids)) for ids in contexts]
        except ExceptionGroup as error:
            raise unwrap(error) from None
        verdicts = tuple(task.result()[0] for task in asked)
        cached = sum(task.result()[1] for task in asked)
        computed = sum(map(len, contexts)) - cached
        return Score(aggregate(self.rule, path, verdicts), verdicts, computed, cached)

    async def _ask(self, ids: Sequence[int]) -> tuple[float, int]:
        with boundary(ScorerError, self.name):
            (good, bad), cached = await self.policy.label_logprobs(ids, (self.good, self.bad))
        if isnan(good - bad):
            raise ScorerError(f"{self.name}: both labels have log-probability {good}")
        return logistic(good - bad), cached

    def _contexts(self, prompt: Prompt, path: Sequence[Node]) -> list[tuple[int, ...]]:
        """The ids that the policy had seen and said after each step, its end token not among
        them: the label stands where the answer would go on."""
        contexts, ids = [], prompt.ids
        for node in path:
            assert node.step is not None
            ids = (node.prompt.ids if node.prompt else ids) + node.step.token_ids
            contexts.append(self._open(ids) if node.step.stop is Stop.END else ids)
        return contexts

    def _open(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        return ids if self.policy.tokenizer.decode(ids[-1:]) else ids[:-1]
