"""One request, from a validated question to its answers and its trace. No HTTP in here."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

from server.budget import Budget
from server.config import Limits, Settings
from server.errors import BadRequest, NoAnswer, Overloaded
from server.profiles import Profile
from server.reward import Confidence, Models, Prm, Reward, Verifier
from server.search import BestOfN, Strategy
from server.search.answers import Answer, rank
from server.search.core import Search, run_search
from server.search.events import Listener
from server.search.record import node_records, usage_record
from server.search.writer import Shape
from server.traces.schema import Trace, UsageRecord, Versions
from server.types import Message, Prompt, Sampling, Scorer

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
    seed: int | None = None
    n: int = 1  # best candidates wanted
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    trace_id: str
    answers: list[Answer]  # the chosen one first, then the next best; 1..n
    usage: UsageRecord
    trace: Trace
    model: str
    version: str  # of the policy


class TraceSink(Protocol):
    """Where traces go. Must not block."""

    def put(self, trace: Trace) -> None: ...


class Observer(Protocol):
    """Told of every search; observes, never decides. Must not block."""

    def queued(self, waiting: int) -> None: ...

    def started(self, ask: Ask) -> None: ...

    def finished(self, ask: Ask, usage: UsageRecord, error: BaseException | None) -> None: ...


class Service:
    """Holds the models and runs searches: admission, search, answer, trace."""

    def __init__(
        self,
        settings: Settings,
        models: Models,
        *,
        traces: TraceSink | None = None,
        observer: Observer | None = None,
    ):
        self.settings, self.models = settings, models
        self._defaults = strategies(models.profile)
        self._traces, self._observer = traces, observer
        self._slots = asyncio.Semaphore(settings.limits.searches)
        self._waiting = 0

    @property
    def profile(self) -> Profile:
        return self.models.profile

    def prepare(
        self,
        *,
        messages: Sequence[Message],
        strategy: Strategy | None = None,
        reward: Reward | None = None,
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
        limits = self.settings.limits
        prompt = self._render(messages)
        reward = reward or (Prm() if self.models.prm else Confidence())
        reward.check(prompt)
        scorer = reward.scorer(self.models)
        max_tokens = self._max_tokens(prompt, self._context(reward), max_tokens)
        strategy = self._fitted(strategy or BestOfN())
        check_bounds(strategy, limits)
        check_n(n, strategy, limits)
        return Ask(
            prompt=prompt,
            strategy=strategy,
            reward=reward,
            scorer=scorer,
            sampling=self._sampling(sampling or {}),
            budget=self._budget(budget or BudgetSpec(), strategy, max_tokens),
            max_tokens=max_tokens,
            seed=seed,
            n=n,
            tenant=tenant,
        )

    async def reason(self, ask: Ask, listener: Listener | None = None) -> Outcome:
        """Run one search. Cancelling it aborts everything in the engine.

        Raises `Overloaded`, `EngineError`, `ScorerError`, `NoAnswer`.
        """
        await self._admit(ask)
        try:
            return await self._search(ask, listener)
        finally:
            self._slots.release()

    async def _admit(self, ask: Ask) -> None:
        if self._slots.locked() and self._waiting >= self.settings.limits.queue:
            raise Overloaded(
                f"{self.settings.limits.searches} searches run and {self._waiting} wait"
            )
        self._wait(+1)
        try:
            async with asyncio.timeout(ask.budget.seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise Overloaded("the search's time ran out in the queue") from None
        finally:
            self._wait(-1)

    def _wait(self, change: int) -> None:
        self._waiting += change
        if self._observer:
            self._observer.queued(self._waiting)

    async def _search(self, ask: Ask, listener: Listener | None) -> Outcome:
        models, started, trace_id = self.models, time.monotonic(), uuid4().hex
        version = models.policy.version
        search = self._new_search(ask, listener)
        error: BaseException | None = None
        answers: list[Answer] = []
        if self._observer:
            self._observer.started(ask)
        try:
            await run_search(ask.strategy, search)
            answers = rank(search.nodes, ask.strategy.choose, self.profile.answer)
            if not answers:
                raise NoAnswer("the budget ended before one step was written", param="budget")
        except BaseException as failed:
            error = failed
            raise
        finally:
            usage = usage_record(search, time.monotonic() - started)
            trace = self._trace(trace_id, ask, search, answers, usage, version, error)
            if self._observer:
                self._observer.finished(ask, usage, error)
            if self._traces:
                self._traces.put(trace)
        return Outcome(trace_id, answers[: ask.n], usage, trace, models.policy.name, version)

    def _new_search(self, ask: Ask, listener: Listener | None) -> Search:
        budget = ask.budget
        assert budget.tokens is not None
        return Search(
            ask.prompt,
            self.models.policy,
            ask.scorer,
            Budget(
                tokens=budget.tokens,
                seconds=budget.seconds,
                calls=budget.calls,
                concurrency=budget.concurrency,
                reserve=min(ask.max_tokens, budget.tokens // 4),
            ),
            shape=Shape(
                cut=self.profile.cut(),
                max_tokens=ask.max_tokens,
                lookahead=self.settings.speculation,
            ),
            sampling=ask.sampling,
            seed=ask.seed,
            listener=listener,
        )

    def _render(self, messages: Sequence[Message]) -> Prompt:
        if not messages:
            raise BadRequest("messages must hold at least one message", param="messages")
        for i, message in enumerate(messages):
            if message.role not in ROLES:
                raise BadRequest(
                    f"role must be one of {', '.join(ROLES)}", param=f"messages.{i}.role"
                )
        if not any(m.role == "user" and m.content.strip() for m in messages):
            raise BadRequest("messages must hold a user message with text", param="messages")
        return Prompt(tuple(messages), self.models.policy.tokenizer.render(messages))

    def _fitted(self, strategy: Strategy) -> Strategy:
        """The strategy with what the caller left open taken from the profile."""
        fitted = self._defaults.get(strategy.kind)
        if fitted is None:
            return strategy
        given = {name: getattr(strategy, name) for name in strategy.model_fields_set}
        return fitted.model_copy(update=given)

    def _context(self, reward: Reward) -> int:
        """Tokens that a path may have: what the policy can write and the PRM can read."""
        contexts = [self.models.policy.context]
        if isinstance(reward, Prm) and self.models.prm is not None:
            contexts.append(self.models.prm.context)
        return min(contexts)

    def _max_tokens(self, prompt: Prompt, context: int, asked: int | None) -> int:
        """Tokens of one answer: the caller's, or the profile's as far as the context allows."""
        limit = self.settings.limits.max_tokens
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

    def _budget(self, asked: BudgetSpec, strategy: Strategy, max_tokens: int) -> BudgetSpec:
        limits = self.settings.limits
        for name in ("tokens", "seconds", "calls", "concurrency"):
            value, limit = getattr(asked, name), getattr(limits, name)
            if value is not None and not (math.isfinite(value) and 0 < value <= limit):
                raise BadRequest(
                    f"budget.{name} must be above 0 and at most {limit}", param=f"budget.{name}"
                )
        if asked.tokens is None:
            worst = strategy.worst_case(max_tokens, self.profile.max_step_tokens)
            if worst > limits.tokens:
                raise BadRequest(
                    f"{strategy.kind} with these parameters may take {worst} tokens; at most "
                    f"{limits.tokens} are allowed: lower max_tokens or the strategy's parameters, "
                    "or set budget.tokens",
                    param="strategy",
                )
        return BudgetSpec(
            tokens=asked.tokens or limits.tokens,
            seconds=asked.seconds or limits.seconds,
            calls=asked.calls or limits.calls,
            concurrency=asked.concurrency or limits.concurrency,
        )

    def _trace(
        self,
        trace_id: str,
        ask: Ask,
        search: Search,
        answers: list[Answer],
        usage: UsageRecord,
        version: str,
        error: BaseException | None,
    ) -> Trace:
        tokenizer = self.models.policy.tokenizer
        chosen = answers[0] if answers else None
        verified = isinstance(ask.reward, Verifier)
        return Trace(
            trace_id=trace_id,
            created_at=datetime.now(UTC),
            tenant=ask.tenant,
            versions=Versions(
                model_id=self.models.policy.name,
                policy_version=version,
                tokenizer_sha=getattr(tokenizer, "sha", None),
                chat_template_sha=getattr(tokenizer, "template_sha", None),
                scorer_id=ask.scorer.name,
                scorer_version=ask.scorer.version,
            ),
            prompt_messages=tuple(
                {"role": m.role, "content": m.content} for m in ask.prompt.messages
            ),
            prompt_ids=ask.prompt.ids,
            sampling={**ask.sampling.model_dump(mode="json"), "logprobs_mode": "processed"},
            strategy=ask.strategy.model_dump(mode="json"),
            reward=ask.reward.model_dump(mode="json"),
            budget={
                "tokens": ask.budget.tokens,
                "seconds": ask.budget.seconds,
                "calls": ask.budget.calls,
                "concurrency": ask.budget.concurrency,
                "max_tokens": ask.max_tokens,
                "speculation": self.settings.speculation,
            },
            seed=ask.seed,
            nodes=node_records(search, self.profile.answer, verified=verified),
            selected=chosen.node.id if chosen else None,
            answer=chosen.final if chosen else None,
            finish_reason=chosen.finish_reason if chosen else None,
            error=f"{type(error).__name__}: {error}" if error else None,
            usage=usage,
            outcome=chosen.node.raw if chosen and verified else None,
        )


def strategies(profile: Profile) -> dict[str, Strategy]:
    """A profile's own defaults, as strategies by kind. `ValidationError` if they are none."""
    adapter: TypeAdapter[Strategy] = TypeAdapter(Strategy)
    return {
        kind: adapter.validate_python({"kind": kind, **fields})
        for kind, fields in profile.search.items()
    }


def check_bounds(strategy: Strategy, limits: Limits) -> None:
    """Refuse parameters beyond the server's limits, by name."""
    for name, bound in strategy.bounds.items():
        most = getattr(limits, bound)
        if getattr(strategy, name) > most:
            raise BadRequest(
                f"{strategy.kind}.{name} must be at most {most}", param=f"strategy.{name}"
            )


def check_n(n: int, strategy: Strategy, limits: Limits) -> None:
    most = min(limits.choices, strategy.most_answers())
    if not 1 <= n <= most:
        raise BadRequest(
            f"n must be between 1 and {most} for {strategy.kind} with these parameters", param="n"
        )
