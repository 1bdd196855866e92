"""Prometheus counters and histograms. They observe; they never decide.

`Metrics` is the `Observer` that a `Service` tells of its searches; the API adds its replies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from server.ask import Ask
from server.errors import PonderError, unwrap
from server.published import Kind
from server.search.events import Event, Listener
from server.traces.schema import UsageRecord

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
FIRST_EVENT = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Everything that is counted, in one registry."""

    def __init__(self, registry: CollectorRegistry):
        self.registry = registry
        self._define_searches()
        self._define_replies()
        self._define_weights()
        self._define_quotas()

    def _define_searches(self) -> None:
        self._searches = self._counter("searches", "Searches ended", "strategy", "outcome")
        self._tokens = self._counter("tokens", "Tokens, by what they were spent on", "kind")
        self._nodes = self._counter("nodes", "Nodes attached to trees", "strategy")
        self._calls = self._counter("scorer_calls", "Paths sent to a scorer")
        self._running = self._gauge("searches_running", "Searches admitted and not ended")
        self._queued = self._gauge("searches_queued", "Searches waiting to be admitted")
        self._seconds = self._histogram("search_seconds", "Of a search", SECONDS, "strategy")
        self._first_event = self._histogram(
            "first_event_seconds", "Until a search's first event", FIRST_EVENT, "strategy"
        )

    def _define_replies(self) -> None:
        self._errors = self._counter("errors", "Error replies", "status", "type", "code")
        self._requests = self._counter("http_requests", "Replies", "method", "route", "status")
        self._reply_seconds = self._histogram(
            "http_seconds", "Until a reply's last byte", SECONDS, "route"
        )

    def _define_weights(self) -> None:
        self._weights = self._versions_gauge("weights_info", "1 for the version that serves")
        self._announced = self._versions_gauge(
            "weights_announced_info", "1 for the version that is to serve, as far as is known here"
        )
        self._versions: dict[str, str] = {}
        self._exchanges = self._counter(
            "weight_exchanges", "Other weights were to be served", "part", "outcome"
        )
        self._exchange_seconds = self._histogram(
            "weight_exchange_seconds", "Until they were, draining included", SECONDS, "part"
        )

    def _define_quotas(self) -> None:
        self._taken = self._counter("quota_tokens", "Policy tokens, by who spent them", "tenant")
        self._refused = self._counter("quota_refusals", "Searches refused", "tenant", "limit")
        self._uncounted = self._counter(
            "quota_uncounted", "Searches begun while Redis was away", "policy"
        )
        self._repeated = self._counter(
            "repeated_requests", "Requests that were sent again, by what became of them", "how"
        )

    def _versions_gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"ponder_{name}", text, ["part", "version"], registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"ponder_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"ponder_{name}", text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], label: str) -> Histogram:
        return Histogram(f"ponder_{name}", text, [label], buckets=buckets, registry=self.registry)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge that is read from `value` whenever the metrics are."""
        self._gauge(name, text).set_function(value)

    def queued(self, waiting: int) -> None:
        self._queued.set(waiting)

    def started(self, ask: Ask) -> None:
        self._running.inc()

    def finished(self, ask: Ask, usage: UsageRecord, error: BaseException | None) -> None:
        """Count a search that was started, and what it cost."""
        strategy = ask.strategy.kind
        self._running.dec()
        self._searches.labels(strategy, _outcome(error)).inc()
        self._seconds.labels(strategy).observe(usage.seconds)
        self._nodes.labels(strategy).inc(usage.nodes)
        self._calls.inc(usage.scorer_calls)
        for kind, count in _spent(usage).items():
            self._tokens.labels(kind).inc(count)

    def serves(self, part: str, version: str) -> None:
        """The policy or PRM has these weights now."""
        if part in self._versions:
            self._weights.remove(part, self._versions[part])
        self._versions[part] = version
        self._weights.labels(part, version).set(1)

    def announced(self, versions: Mapping[Kind, str]) -> None:
        """What is to serve, by part."""
        self._announced.clear()
        for part, version in versions.items():
            self._announced.labels(part, version).set(1)

    def exchanged(self, part: str, outcome: str, seconds: float) -> None:
        """It was to be given others: loaded, refused, or failed."""
        self._exchanges.labels(part, outcome).inc()
        if outcome == "loaded":
            self._exchange_seconds.labels(part).observe(seconds)

    def took(self, tenant: str, tokens: int) -> None:
        """A search ended, and its tenant pays for it; there are as many as keys in the settings."""
        self._taken.labels(tenant).inc(tokens)

    def refused(self, tenant: str, limit: str) -> None:
        """A search was over its tenant's quota."""
        self._refused.labels(tenant, limit).inc()

    def uncounted(self, away: str) -> None:
        """A search began by the policy for when Redis does not answer."""
        self._uncounted.labels(away).inc()

    def repeated(self, how: str) -> None:
        """A request was sent again: joined, stored, refused."""
        self._repeated.labels(how).inc()

    def timed(self, strategy: str, then: Listener | None) -> Listener:
        """A listener that notes when the first event came, and passes every one on."""
        began, seen = perf_counter(), False

        def listen(event: Event) -> None:
            nonlocal seen
            if not seen:
                seen = True
                self._first_event.labels(strategy).observe(perf_counter() - began)
            if then is not None:
                then(event)

        return listen

    def failed(self, error: PonderError) -> None:
        """Count one error reply."""
        self._errors.labels(str(error.status), error.type, error.code or "none").inc()

    def replied(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one reply; `route` is the template, so that clients cannot make new labels."""
        self._requests.labels(method, route, str(status)).inc()
        self._reply_seconds.labels(route).observe(seconds)


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "answered"
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    cause = unwrap(error)
    return cause.code or cause.type if isinstance(cause, PonderError) else type(cause).__name__


def _spent(usage: UsageRecord) -> dict[str, int]:
    return {
        "policy": usage.policy,
        "discarded": usage.discarded,
        "prompt": usage.prompt_computed,
        "prompt_cached": usage.prompt_cached,
        "prm": usage.scorer_computed,
        "prm_cached": usage.scorer_cached,
    }
