"""A request, checked and bounded before any token is spent on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError

from server.config import Limits
from server.errors import BadRequest
from server.profiles import Profile
from server.reward import Models, Reward, default_reward
from server.reward.models import check_logprobs
from server.reward.verifiers import AnyVerifier, VerifierJudge
from server.search import BestOfN, Strategy
from server.search.strategy import BaseStrategy
from server.types import Engine, Message, Prompt, Sampling, Scorer

WHOLE = frozenset({"depth", "behaviours"})  # of a search, never of the stages it is made of
# Thresholds of scores, and the rewards whose scores a profile's own are of.
THRESHOLDS = frozenset({"stop_at", "futile"})
OF_STEPS = ("prm", "value", "label")
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class BudgetSpec:
    """The caller's limits. None: the server's own."""

    tokens: int | None = None  # policy tokens
    seconds: float | None = None
    calls: int | None = None  # scorer calls
    concurrency: int | None = None  # engine requests at once


@dataclass(frozen=True, slots=True)
class Ask:
    """A request as the search layer sees it: checked, rendered, bounded."""

    prompt: Prompt
    strategy: Strategy
    reward: Reward
    scorer: Scorer
    sampling: Sampling
    budget: BudgetSpec  # every field set
    max_tokens: int  # of one answer
    most: int  # policy tokens that it can be expected to take, at most: what a quota holds
    verify: AnyVerifier | None = None  # gates the final choice
    judge: VerifierJudge | None = None  # its verdicts
    seed: int | None = None
    n: int = 1  # best candidates wanted
    tenant: str | None = None
    remarks: tuple[dict[str, Any], ...] = ()  # what is put on record before it runs


class Preparer:
    """Makes an `Ask` of what a caller sent, within a server's limits and its models' means."""

    def __init__(self, limits: Limits, models: Models):
        self.limits, self.models, self.profile = limits, models, models.profile
        self._defaults = strategies(models.profile)

    def prepare(
        self,
        *,
        messages: Sequence[Message],
        strategy: Strategy | None = None,
        reward: Reward | None = None,
        verify: AnyVerifier | None = None,
        budget: BudgetSpec | None = None,
        sampling: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        n: int = 1,
        tenant: str | None = None,
    ) -> Ask:
        """Check, render and bound a request. Raises `BadRequest` naming the parameter.

        `sampling` holds the fields the caller set; the profile has the others.
        """
        limits, given = self.limits, reward is not None
        prompt = self._render(messages)
        reward = reward or default_reward(self.models)
        reward.check(prompt)
        scorer = reward.scorer(self.models)
        max_tokens = self._max_tokens(prompt, reward.context(self.models), max_tokens)
        other = frozenset() if reward.kind in OF_STEPS else THRESHOLDS
        strategy = self._fitted(strategy or BestOfN(), other)
        check_bounds(strategy, limits)
        check_stop(strategy, self.models.policy)
        if given:
            check_steps(strategy, reward)
        check_n(n, strategy, limits)
        worst = worst_case(strategy, self.profile, limits, max_tokens)
        bounded = self._budget(budget or BudgetSpec(), strategy, worst)
        assert bounded.tokens is not None
        return Ask(
            prompt=prompt,
            strategy=strategy,
            reward=reward,
            scorer=scorer,
            sampling=self._sampling(sampling or {}),
            budget=bounded,
            max_tokens=max_tokens,
            # When it finds no answer, one more is finished.
            most=min(bounded.tokens, strategy.most(worst, max_tokens) + max_tokens),
            verify=verify,
            judge=self._judge(verify, prompt),
            seed=seed,
            n=n,
            tenant=tenant,
            remarks=remarks(strategy, reward, given=given),
        )

    def _judge(self, verify: AnyVerifier | None, prompt: Prompt) -> VerifierJudge | None:
        if verify is None:
            return None
        try:
            verify.check(prompt)
            return verify.judge(self.models)
        except BadRequest as error:
            error.param = "verify" + (error.param or "").removeprefix("reward")
            raise

    def _render(self, messages: Sequence[Message]) -> Prompt:
        if not messages:
            raise BadRequest("messages must hold at least one message", param="messages")
        for i, message in enumerate(messages):
            if message.role not in ROLES:
                raise BadRequest(
                    f"role must be one of {', '.join(ROLES)}", param=f"messages.{i}.role"
                )
        if not any(m.role == "user" and m.content.strip() for m in messages):
            raise BadRequest("no message of the user's has any text", param="messages")
        return Prompt(tuple(messages), self.models.policy.tokenizer.render(messages))

    def _fitted(self, strategy: Strategy, but: frozenset[str]) -> Strategy:
        """The strategy with what the caller left open, `but` for some, taken from the profile."""
        if (default := self._defaults.get(strategy.kind)) is not None:
            own = {name: value for name, value in set_in(default).items() if name not in but}
            try:
                strategy = type(strategy).model_validate(own | set_in(strategy))
            except ValidationError as error:
                message = error.errors()[0]["msg"].removeprefix("Value error, ")
                has = ", ".join(f"{k}: {v}" for k, v in own.items() if k != "kind")
                raise BadRequest(
                    f"{strategy.kind} does not fit this server's profile, which has {has}: "
                    f"{message}",
                    param="strategy",
                ) from None
        return strategy.fitted(partial(self._fitted, but=but | WHOLE))

    def _max_tokens(self, prompt: Prompt, context: int, asked: int | None) -> int:
        """Tokens of one answer: the caller's, or the profile's as far as the context allows."""
        limit = self.limits.max_tokens
        room = context - len(prompt.ids)
        if room < 1:
            raise BadRequest(
                f"the prompt has {len(prompt.ids)} tokens; the context holds {context}",
                param="messages",
                code="context_length_exceeded",
            )
        if asked is None:
            return min(self.profile.max_tokens, room, limit)
        if not 1 <= asked <= limit:
            raise BadRequest(f"max_tokens must be between 1 and {limit}", param="max_tokens")
        if asked > room:
            raise BadRequest(
                f"the prompt has {len(prompt.ids)} tokens and the context holds {context}: "
                f"max_tokens must be at most {room}",
                param="max_tokens",
                code="context_length_exceeded",
            )
        return asked

    def _sampling(self, given: Mapping[str, Any]) -> Sampling:
        try:
            return Sampling.model_validate({**self.profile.sampling.model_dump(), **given})
        except ValidationError as error:
            first = error.errors()[0]
            raise BadRequest(first["msg"], param=".".join(map(str, first["loc"]))) from None

    def _budget(self, asked: BudgetSpec, strategy: Strategy, worst: int) -> BudgetSpec:
        limits = self.limits
        for name in ("tokens", "seconds", "calls", "concurrency"):
            value, limit = getattr(asked, name), getattr(limits, name)
            if value is not None and not (math.isfinite(value) and 0 < value <= limit):
                raise BadRequest(
                    f"budget.{name} must be above 0 and at most {limit}", param=f"budget.{name}"
                )
        if asked.tokens is None and worst > limits.tokens:
            raise BadRequest(
                f"{strategy.kind} with these parameters may take {worst} tokens; at most "
                f"{limits.tokens} are allowed: lower max_tokens or the strategy's parameters "
                "(depth among them), or set budget.tokens",
                param="strategy",
            )
        return BudgetSpec(
            tokens=asked.tokens or limits.tokens,
            seconds=asked.seconds or limits.seconds,
            calls=asked.calls or limits.calls,
            concurrency=asked.concurrency or limits.concurrency,
        )


def worst_case(strategy: Strategy, profile: Profile, limits: Limits, max_tokens: int) -> int:
    """Policy tokens that a search may take, with answers of at most so many. Not among them are
    those of one answer that is finished when the search has found none (`Budget.reserve`)."""
    path, step = max_tokens, profile.max_step_tokens
    operators = profile.operators
    if any(name in operators and operators[name].fresh for name in strategy.behaviours):
        # Each step may begin anew. One more completes an answer after a last aside.
        path = (1 + (strategy.depth or limits.depth)) * min(step, max_tokens)
    return strategy.worst_case(max_tokens, path, step)


def set_in(strategy: Strategy) -> dict[str, Any]:
    """The fields that were given, not left open."""
    return {name: getattr(strategy, name) for name in strategy.model_fields_set}


def strategies(profile: Profile) -> dict[str, Strategy]:
    """A profile's own defaults, as strategies by kind. `ValidationError` if they are none."""
    adapter: TypeAdapter[Strategy] = TypeAdapter(Strategy)
    return {
        kind: adapter.validate_python({"kind": kind, **fields})
        for kind, fields in profile.search.items()
    }


def check_bounds(strategy: BaseStrategy, limits: Limits, place: str = "strategy") -> None:
    """Refuse parameters beyond the server's limits, by name."""
    for at, part in strategy.parts.items():
        check_bounds(part, limits, f"{place}.{at}")
    for name, bound in {**strategy.bounds, "depth": "depth"}.items():
        most, asked = getattr(limits, bound), getattr(strategy, name)
        if asked is not None and asked > most:
            raise BadRequest(
                f"{strategy.kind}.{name} must be at most {most}", param=f"{place}.{name}"
            )


def check_stop(strategy: BaseStrategy, policy: Engine, place: str = "strategy") -> None:
    """Refuse a stopping rule that takes log-probabilities which the policy does not give."""
    if strategy.top_logprobs and not strategy.parts:
        check_logprobs(policy, strategy.top_logprobs, f"{place}.stop")
    for at, part in strategy.parts.items():
        check_stop(part, policy, f"{place}.{at}")


def check_steps(strategy: Strategy, reward: Reward) -> None:
    """Refuse a reward of whole answers for a search that goes by the steps of unfinished ones."""
    if strategy.stepwise and not reward.partial:
        raise BadRequest(
            f"{strategy.kind} with these parameters goes by scores of unfinished answers, of which "
            f"the reward {reward.kind} says nothing: use a reward that does, or a strategy that "
            "compares whole answers",
            param="reward",
        )


def remarks(strategy: Strategy, reward: Reward, *, given: bool) -> tuple[dict[str, Any], ...]:
    """What of the reward has no effect, as far as that is no reason to refuse a request."""
    found = []
    if given and not strategy.scored:
        found.append(f"{strategy.kind} with choose {strategy.choose} asks no reward")
    stepwise = {part.kind for part in (strategy, *strategy.parts.values()) if part.stepwise}
    if stepwise and not reward.partial:
        found.append(
            f"the reward {reward.kind} says nothing of unfinished answers, whose scores "
            f"{', '.join(sorted(stepwise))} goes by: all are worth the same"
        )
    return tuple({"decision": "reward", "reason": reason} for reason in found)


def check_n(n: int, strategy: Strategy, limits: Limits) -> None:
    most = min(limits.choices, strategy.most_answers())
    if not 1 <= n <= most:
        raise BadRequest(
            f"n must be between 1 and {most} for {strategy.kind} with these parameters", param="n"
        )
