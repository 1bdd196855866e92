"""Builds a server from its settings. Nothing else puts the parts together."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from time import perf_counter
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from server import engine, profiles, reward
from server.api.app import create_app
from server.api.once import Once
from server.config import Settings, VllmSettings
from server.errors import TraceError
from server.following import Follower
from server.metrics import Metrics
from server.promotions import Promotions
from server.reward import Models
from server.routing.collector import Replicas
from server.service import Service
from server.sources import SettingsError
from server.state.announced import Announced
from server.state.connection import Connection
from server.state.quotas import Quotas
from server.state.replies import RedisReplies
from server.traces import TraceStore
from server.traces.shared import make_store
from server.types import Load

YOUNG = 20_000  # new objects between two looks of the garbage collector; Python has 700
log = logging.getLogger(__name__)


async def built(settings: Settings, stack: AsyncExitStack) -> tuple[Service, FastAPI]:
    """Every part, started; `stack` closes them."""
    profile = profile_of(settings)
    refuse_missing_models(settings)
    if local_engines(settings):
        # Started by a thread it would unblock SIGINT there, just before the engine
        # (`server.running.run`).
        resource_tracker.ensure_running()
    with timed("importing the engines"):
        policy = engine.build(settings.policy)
        prm = reward.build_prm(settings.prm, profile) if settings.prm else None
        orm = reward.build_orm(settings.orm) if settings.orm else None
        judge = engine.build(settings.judge) if settings.judge else None
    metrics = Metrics(CollectorRegistry())
    redis = await _connected(settings, metrics, stack)
    traces = _store(settings, redis)
    tools = reward.Tools(settings.verifiers)
    stack.push_async_callback(tools.close)
    parts = {"policy": policy, "prm": prm, "orm": orm, "judge": judge, "traces": traces}
    starts = []
    for name, part in parts.items():
        if part is not None:
            stack.push_async_callback(part.close)
            starts.append(_timed_start(name, part.start))
    await _started(starts, together=may_start_together(settings))
    quotas = _quotas(settings, redis, metrics)
    stack.push_async_callback(quotas.close)
    service = Service(
        settings,
        Models(policy, profile, prm, orm, tools, judge),
        traces=traces,
        observer=metrics,
        quotas=quotas,
    )
    stack.push_async_callback(service.weights.close)
    watch(metrics, service, traces)
    await _follow(settings, service, metrics, redis, stack)
    metrics.watch("share_waiting", "Requests that wait for room", lambda: service.share.waiting)
    once = _once(settings, redis, metrics)
    stack.push_async_callback(once.close)
    app = create_app(service, settings, traces, metrics, once)
    # What is loaded stays. Walking a million objects of vLLM's and torch's again and again took a
    # quarter of this process's CPU, and a look at the trees for every 700 new objects a sixth.
    gc.collect()
    gc.freeze()
    stack.callback(gc.unfreeze)  # or libraries take what is left at the end for leaks
    stack.callback(gc.set_threshold, *gc.get_threshold())
    gc.set_threshold(YOUNG)
    return service, app


async def _connected(
    settings: Settings, metrics: Metrics, stack: AsyncExitStack
) -> Connection | None:
    """Redis, whether it answers or not; None: what would be shared is in this process."""
    if settings.redis is None:
        return None
    try:
        redis = Connection(settings.redis)
    except OSError as error:
        raise SettingsError([f"redis: {error}"]) from error
    metrics.watch("redis_up", "Whether Redis answers", lambda: redis.up)
    await stack.enter_async_context(redis.watched())
    return redis


def _store(settings: Settings, redis: Connection | None) -> TraceStore:
    try:
        return make_store(settings.traces, redis)
    except TraceError as error:
        raise SettingsError([error.message]) from error


def _quotas(settings: Settings, redis: Connection | None, metrics: Metrics) -> Quotas:
    quotas = Quotas(settings.quotas, settings.server.keys, redis, metrics)
    metrics.watch("quota_owed", "Searches not yet settled in Redis", lambda: quotas.owed)
    return quotas


def _once(settings: Settings, redis: Connection | None, metrics: Metrics) -> Once:
    lease = settings.idempotency.lease_seconds
    return Once(settings.idempotency, metrics, RedisReplies(redis, lease) if redis else None)


async def _follow(
    settings: Settings,
    service: Service,
    metrics: Metrics,
    redis: Connection | None,
    stack: AsyncExitStack,
) -> None:
    """Go over to what is announced, and say what serves."""
    folder = settings.weights.folder
    if folder is not None or redis is not None or service.weights.followed:
        promotions = Promotions(folder, Announced(redis) if redis else None)
        follower = Follower(
            service.weights, promotions, settings.weights.seconds, metrics.announced
        )
        stack.push_async_callback(follower.close)
        await follower.start()
    for part, serving in service.weights.serving.items():
        log.info("the %s is version %s, of %s", part, serving.version, serving.folder)


def watch(metrics: Metrics, service: Service, traces: TraceStore) -> None:
    """Gauges that are read from the parts themselves."""

    def load() -> Load:
        return service.models.policy.load()

    for name, text, value in (
        ("engine_requests_running", "Policy requests running", lambda: load().running),
        ("engine_requests_waiting", "Policy requests waiting", lambda: load().waiting),
        ("engine_kv_usage", "Share of its KV cache in use", lambda: load().kv),
        ("engine_preemptions", "Requests it computed again", lambda: load().preempted),
        ("engine_tokens_drafted", "Tokens drafted for it", lambda: load().drafted),
        ("engine_tokens_accepted", "Drafted tokens it sampled", lambda: load().accepted),
        ("traces_pending", "Traces not yet written", lambda: traces.stats().pending),
        ("traces_dropped", "Traces lost to a full queue or disk", lambda: traces.stats().dropped),
        ("traces_rejected", "Traces that cannot be stored", lambda: traces.stats().rejected),
        ("traces_unshipped", "Traces not yet in the stream", lambda: traces.stats().unshipped),
        ("traces_streamed", "Entries not yet compacted", lambda: traces.stats().streamed),
    ):
        metrics.watch(name, text, value)
    metrics.registry.register(
        Replicas(lambda: {part: m.replicas() for part, m in service.models.remote.items()})
    )


async def _started(starts: list[Coroutine[Any, Any, None]], *, together: bool) -> None:
    if not together:
        for start in starts:
            await start
        return
    results = await asyncio.gather(*starts, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def _timed_start(name: str, start: Callable[[], Awaitable[None]]) -> None:
    with timed(f"starting the {name}"):
        await start()


@contextmanager
def timed(what: str) -> Iterator[None]:
    began = perf_counter()
    yield
    log.info("%s took %.1f s", what, perf_counter() - began)


def may_start_together(settings: Settings) -> bool:
    """Not if an engine takes its share of what memory is free, which the others change."""
    local = list(local_engines(settings).values())
    return len(local) < 2 or all(e.kv_cache_bytes is not None for e in local)


def local_engines(settings: Settings) -> dict[str, VllmSettings]:
    """The models that run in this process, by their key in the settings."""
    engines = {"policy": settings.policy}
    if settings.prm is not None:
        engines["prm.engine"] = settings.prm.engine
    if settings.orm is not None:
        engines["orm.engine"] = settings.orm.engine
    if settings.judge is not None:
        engines["judge"] = settings.judge
    return {key: e for key, e in engines.items() if isinstance(e, VllmSettings)}


def refuse_missing_models(settings: Settings) -> None:
    """An absolute path cannot be a name on a hub: it is there or it is wrong."""
    problems = [
        f"{key}.model: {engine.model} is not a folder with a config.json"
        for key, engine in local_engines(settings).items()
        if Path(engine.model).is_absolute() and not Path(engine.model, "config.json").is_file()
    ]
    if problems:
        raise SettingsError(problems)


def profile_of(settings: Settings) -> profiles.Profile:
    name = settings.profile or settings.policy.profile
    return profiles.shipped()[name] if name else profiles.choose(settings.policy.model)
