"""The ASGI application: middleware, routes, and who may call them."""

from __future__ import annotations

import time

from fastapi import APIRouter, Depends, FastAPI
from prometheus_client import CollectorRegistry

from server.api import chat, docs, errors, feedback, health, models, presets, reason, weights
from server.api import traces as trace
from server.api.auth import authorizer, for_admins
from server.api.chat_schema import ChatRequest
from server.api.feedback import FeedbackRequest
from server.api.limits import Limits
from server.api.once import Once
from server.api.parts import Parts
from server.api.reason_schema import ReasonRequest
from server.api.trail import Trail
from server.api.weights import WeightsRequest
from server.config import Settings
from server.metrics import Metrics
from server.service import Service
from server.traces import TraceStore


def create_app(
    service: Service,
    settings: Settings,
    traces: TraceStore | None,
    metrics: Metrics | None = None,
    once: Once | None = None,
) -> FastAPI:
    """The whole API over a service that was started and is closed by whoever made it.

    `metrics` is the one that the service was given as its observer, `once` what replicas share.
    """
    metrics = metrics or Metrics(CollectorRegistry())
    once = once or Once(settings.idempotency, metrics)
    parts = Parts(service, settings, traces, metrics, int(time.time()), once)
    # No redirects, and no docs of FastAPI's own: those load their scripts from elsewhere.
    app = FastAPI(
        title="Ponder", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    errors.install(app, metrics)
    app.add_middleware(Limits, settings=settings.limits, metrics=metrics)
    app.add_middleware(Trail, metrics=metrics)
    app.include_router(health.open_routes(parts))
    app.include_router(_guarded(app, parts))
    docs.describe(app, ChatRequest, ReasonRequest, FeedbackRequest, WeightsRequest)
    return app


def _guarded(app: FastAPI, parts: Parts) -> APIRouter:
    """Every route that asks for a key: all but the two probes."""
    server = parts.settings.server
    router = APIRouter(dependencies=[Depends(authorizer(server.keys))])
    for family in (chat, reason, models, presets, trace, feedback, health):
        router.include_router(family.routes(parts))
    admins = [Depends(for_admins(server.admin_keys))]
    router.include_router(weights.routes(parts), dependencies=admins)
    if server.docs:
        router.include_router(docs.routes(app))
    return router
