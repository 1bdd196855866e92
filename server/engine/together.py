"""Requests that begin in the same turn of the event loop reach the engine as one message.

A search asks for all children of a node at once, and several searches do so in one turn. vLLM sends
each request alone, and each wakes a thread in either process. Here the first one carries the others
among its parameters (`Outbox`), and the engine's scheduler takes them out (`UnpackingScheduler`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreRequest, EngineCoreRequestType
from vllm.v1.engine.core_client import AsyncMPClient
from vllm.v1.request import Request
from vllm.v1.serial_utils import MsgpackDecoder

OTHERS = "others"  # key among the first one's parameters: those that follow it, encoded


class Outbox:
    """Between a client and the socket to its engine. Whatever else is sent keeps its place."""

    def __init__(self, client: AsyncMPClient):
        self._client = client
        self._send = client._send_input
        self._waiting: list[EngineCoreRequest] = []
        client._send_input = self.send

    def send(self, kind: EngineCoreRequestType, what: Any, *engine: Any) -> Awaitable[Any]:
        """As vLLM's own. Raises `EngineDeadError`; of a death that comes later each request is told
        by vLLM's output handler."""
        if kind is not EngineCoreRequestType.ADD or engine:
            self._flush()
            sent: Awaitable[Any] = self._send(kind, what, *engine)
            return sent
        self._client.ensure_alive()
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._flush)
        self._waiting.append(what)
        done = loop.create_future()
        done.set_result(None)
        return done

    def _flush(self) -> None:
        if not self._waiting or self._client.resources.engine_dead:
            return
        (first, *others), self._waiting = self._waiting, []
        if not others:
            self._send(EngineCoreRequestType.ADD, first)
            return
        params, name = _extra(first)
        before = getattr(params, name)
        setattr(params, name, {**(before or {}), OTHERS: [self._encoded(o) for o in others]})
        try:
            self._send(EngineCoreRequestType.ADD, first)
        finally:
            setattr(params, name, before)  # the parameters may be another request's, too

    def _encoded(self, request: EngineCoreRequest) -> bytes:
        (buffer,) = self._client.encoder.encode(request)  # more only where there are tensors
        return bytes(buffer)


class UnpackingScheduler(Scheduler):
    """vLLM's scheduler, for a client with an `Outbox`."""

    unpacks = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._decoder = MsgpackDecoder(EngineCoreRequest)

    def add_request(self, request: Request) -> None:
        params, name = _extra(request)
        others = (getattr(params, name) or {}).pop(OTHERS, ())
        super().add_request(request)
        for other in map(self._decoder.decode, others):
            self.add_request(Request.from_engine_core_request(other, request._block_hasher))


def _extra(request: EngineCoreRequest | Request) -> tuple[Any, str]:
    """A request's parameters, and their field for whatever else a scheduler wants to know."""
    if request.sampling_params is not None:
        return request.sampling_params, "extra_args"
    return request.pooling_params, "extra_kwargs"
