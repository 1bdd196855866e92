"""Requests that begin in the same turn of the event loop reach the engine as one message.

A search asks for all children of a node at once, and several searches do so in one turn. vLLM sends
each request alone, and each wakes a thread in either process. Here the first one carries the others
among its parameters, and the engine's scheduler takes them out.
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

FOLLOWERS = "followers"  # key among the first one's parameters: the others, encoded


def send_together(client: AsyncMPClient) -> None:
    """Have the client do so from now on."""
    client._send_input = Outbox(client).send


class Outbox:
    """What a client has to send. Requests wait for the turn's end, aborts stay behind them."""

    def __init__(self, client: AsyncMPClient):
        self._client = client
        self._send = client._send_input
        self._first: EngineCoreRequest | None = None
        self._followers: list[bytes] = []

    def send(self, kind: EngineCoreRequestType, what: Any, *engine: Any) -> Awaitable[Any]:
        """As vLLM's own. Raises `EngineDeadError`; of a death that comes later each request is told
        by vLLM's output handler."""
        if kind is not EngineCoreRequestType.ADD or engine:
            self._flush()
            sent: Awaitable[Any] = self._send(kind, what, *engine)
            return sent
        self._client.ensure_alive()
        loop = asyncio.get_running_loop()
        if self._first is None:
            self._first = what
            loop.call_soon(self._flush)
        else:
            (encoded,) = self._client.encoder.encode(what)  # more only where there are tensors
            self._followers.append(bytes(encoded))
        done = loop.create_future()
        done.set_result(None)
        return done

    def _flush(self) -> None:
        first, followers = self._first, self._followers
        self._first, self._followers = None, []
        if first is None or self._client.resources.engine_dead:
            return
        params, name = _extra(first)
        before = getattr(params, name)
        if followers:
            setattr(params, name, {**(before or {}), FOLLOWERS: followers})
        try:
            self._send(EngineCoreRequestType.ADD, first)
        finally:
            setattr(params, name, before)  # the parameters may be another request's, too


class UnpackingScheduler(Scheduler):
    """vLLM's scheduler, for a client that does `send_together`: requests of token ids, without a
    grammar or media, which vLLM would prepare before it schedules them."""

    unpacks = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._decoder = MsgpackDecoder(EngineCoreRequest)

    def add_request(self, request: Request) -> None:
        params, name = _extra(request)
        followers = (getattr(params, name) or {}).pop(FOLLOWERS, ())
        super().add_request(request)
        for follower in map(self._decoder.decode, followers):
            self.add_request(Request.from_engine_core_request(follower, request._block_hasher))


def _extra(request: EngineCoreRequest | Request) -> tuple[Any, str]:
    """A request's parameters, and their field for whatever else a scheduler wants to know."""
    if request.sampling_params is not None:
        return request.sampling_params, "extra_args"
    return request.pooling_params, "extra_kwargs"
