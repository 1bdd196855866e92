"""Policies: what the search samples from. `build` is the list of kinds."""

from __future__ import annotations

from importlib import import_module

from server.config import EngineSettings
from server.types import Engine

# Modules are imported when their kind is asked for: a gateway to a remote engine needs no vLLM.
KINDS = {
    "vllm": ("server.engine.vllm", "VllmEngine"),
    "http": ("server.engine.http", "HttpEngine"),
}


def build(settings: EngineSettings) -> Engine:
    """The engine of these settings, not started."""
    module, name = KINDS[settings.kind]
    engine: Engine = getattr(import_module(module), name)(settings)
    return engine
