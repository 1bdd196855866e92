"""One request, from a validated question to its answers and its trace. No HTTP in here."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import uuid4

from server.admission import Admission
from server.ask import Ask, Preparer
from server.budget import Budget
from server.config import Settings
from server.engine.share import Share
from server.engine.shared import shared
from server.errors import NoAnswer
from server.exchangeable import WeightsObserver
from server.profiles import Profile
from server.reward import Models
from server.reward.models import Settles
from server.search.ahead import Ahead
from server.search.answers import Answer, rank
from server.search.core import Search
from server.search.events import Listener
from server.search.record import node_records, usage_record
from server.search.run import run_search
from server.search.writer import Shape
from server.state.quotas import Hold, QuotaObserver, Quotas, Told
from server.traces.schema import Trace, UsageRecord, Versions
from server.types import Node
from server.weights import Weights


@dataclass(frozen=True, slots=True)
class Outcome:
    trace_id: str
    answers: list[Answer]  # the chosen one first, then the next best; 1..n, as many as there are
    usage: UsageRecord
    nodes: Sequence[Node]  # of the tree, as they stand in the trace
    trace: Trace
    model: str
    version: str  # of the policy


class TraceSink(Protocol):
    """Where traces go. Must not block."""

    def put(self, trace: Trace) -> None: ...


class Observer(WeightsObserver, QuotaObserver, Protocol):
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
        quotas: Quotas | None = None,
    ):
        """Without `quotas` it counts them itself, in this process."""
        self.settings = settings
        keys = settings.server.keys
        self.quotas = quotas or Quotas(settings.quotas, keys, observer=observer)
        self._preparer = Preparer(settings.limits, models)
        self._traces, self._observer = traces, observer
        self._ahead: defaultdict[str, Ahead] = defaultdict(Ahead)  # by kind of strategy
        self.share = Share(lambda: self.models.policy.load(), settings.scheduling)
        self._admission = Admission(
            settings.limits,
            settings.scheduling.weights,
            full=self._full,
            queued=observer.queued if observer else None,
        )
        self.weights = Weights(
            models, self._admission, folder=settings.weights.folder, observer=observer
        )

    @property
    def models(self) -> Models:
        """Those that a search begins with now."""
        return self.weights.models

    @property
    def profile(self) -> Profile:
        return self.models.profile

    def prepare(self, **request: Any) -> Ask:
        """See `Preparer.prepare`."""
        if self._preparer.models is not self.models:
            self._preparer = Preparer(self.settings.limits, self.models)
        return self._preparer.prepare(**request)

    async def reason(
        self, ask: Ask, listener: Listener | None = None, told: Told | None = None
    ) -> Outcome:
        """Run one search. Cancelling it aborts everything in the engine. `told` is given the
        headers that say where the tenant's quota stands.

        Raises `Overloaded`, `EngineError`, `ScorerError`, `NoAnswer`, `StateError`.
        """
        seconds = ask.budget.seconds
        assert seconds is not None
        async with self.quotas.held(ask.tenant, ask.most, seconds, told) as hold:
            return await self._admitted(ask, listener, seconds, hold)

    async def _admitted(
        self, ask: Ask, listener: Listener | None, seconds: float, hold: Hold
    ) -> Outcome:
        async with self._admission.admitted(ask.tenant, seconds) as left:
            with self.weights.pinned() as models:
                models = models.routed(ask.prompt.messages)
                if not self.settings.scheduling.enabled:
                    return await self._search(ask, listener, models, left, hold)
                with shared(models.policy, self.share, ask.tenant, left) as policy:
                    # What a reward has the policy say is said in its search's turn, too.
                    models = replace(models, policy=policy)
                    return await self._search(ask, listener, models, left, hold)

    def _full(self) -> bool:
        return self.settings.scheduling.enabled and self.share.full

    async def _search(
        self, ask: Ask, listener: Listener | None, models: Models, seconds: float, hold: Hold
    ) -> Outcome:
        clock = asyncio.get_running_loop().time
        started, trace_id = clock(), uuid4().hex
        # The models that it was prepared for may have made room for others.
        ask = replace(ask, scorer=ask.reward.scorer(models))
        search = self._new_search(ask, listener, models, seconds)
        error: BaseException | None = None
        answers: list[Answer] = []
        if self._observer:
            self._observer.started(ask)
        for remark in ask.remarks:
            search.decide(**remark)
        try:
            await run_search(ask.strategy, search)
            if isinstance(ask.scorer, Settles) and (said := ask.scorer.settle(search.nodes)):
                search.decide(**said)
            answers = rank(search.nodes, ask.strategy.choose, models.profile.answer)
            if not answers:
                raise NoAnswer("the budget ended before one step was written", param="budget")
        except BaseException as failed:
            error = failed
            raise
        finally:
            usage = usage_record(search, clock() - started)
            hold.used = usage.policy
            trace = self._trace(trace_id, ask, models, search, answers, usage, error)
            if self._observer:
                self._observer.finished(ask, usage, error)
            if self._traces:
                self._traces.put(trace)
        versions = trace.versions
        return Outcome(
            *(trace_id, answers[: ask.n], usage, search.nodes, trace),
            *(versions.model_id, versions.policy_version),
        )

    def _new_search(
        self, ask: Ask, listener: Listener | None, models: Models, seconds: float
    ) -> Search:
        """`seconds` are what the queue has left of the caller's."""
        budget, profile = ask.budget, models.profile
        assert budget.tokens is not None
        return Search(
            ask.prompt,
            models.policy,
            ask.scorer,
            Budget(
                tokens=budget.tokens,
                seconds=seconds,
                calls=budget.calls,
                concurrency=budget.concurrency,
                reserve=min(ask.max_tokens, budget.tokens // 4),
            ),
            shape=Shape(
                cut=profile.cut(),
                max_tokens=ask.max_tokens,
                # What runs ahead depends on the load, and a seed is to give the same again.
                lookahead=self.settings.speculation if ask.seed is None else 0,
                depth=ask.strategy.depth or self.settings.limits.depth,
                top_logprobs=max(ask.reward.top_logprobs, ask.strategy.top_logprobs),
            ),
            sampling=ask.sampling,
            seed=ask.seed,
            listener=listener,
            answer=profile.answer,
            judge=ask.judge,
            operators=profile.operators,
            actions=ask.strategy.behaviours,
            ahead=self._ahead[ask.strategy.kind],
            wanted=ask.n,
        )

    def _trace(
        self,
        trace_id: str,
        ask: Ask,
        models: Models,
        search: Search,
        answers: list[Answer],
        usage: UsageRecord,
        error: BaseException | None,
    ) -> Trace:
        policy = models.policy
        chosen = answers[0] if answers else None
        return Trace(
            trace_id=trace_id,
            created_at=datetime.now(UTC),
            tenant=ask.tenant,
            versions=Versions(
                model_id=policy.name,
                policy_version=policy.version,
                tokenizer_sha=getattr(policy.tokenizer, "sha", None),
                chat_template_sha=getattr(policy.tokenizer, "template_sha", None),
                scorer_id=ask.scorer.name,
                scorer_version=ask.scorer.version,
            ),
            prompt_messages=tuple(
                {"role": m.role, "content": m.content} for m in ask.prompt.messages
            ),
            prompt_ids=ask.prompt.ids,
            sampling={**ask.sampling.model_dump(mode="json"), "logprobs_mode": "processed"},
            strategy=ask.strategy.model_dump(mode="json"),
            decisions=tuple(search.decisions),
            reward=ask.reward.model_dump(mode="json"),
            verify=ask.verify.model_dump(mode="json") if ask.verify else None,
            budget={
                "tokens": ask.budget.tokens,
                "seconds": ask.budget.seconds,
                "calls": ask.budget.calls,
                "concurrency": ask.budget.concurrency,
                "max_tokens": ask.max_tokens,
                "speculation": self.settings.speculation,
            },
            seed=ask.seed,
            nodes=node_records(search, models.profile.answer, ask.reward.outcome),
            selected=chosen.node.id if chosen else None,
            answer=chosen.final if chosen else None,
            finish_reason=chosen.finish_reason if chosen else None,
            error=f"{type(error).__name__}: {error}" if error else None,
            usage=usage,
            outcome=ask.reward.outcome(chosen.node) if chosen else None,
        )
