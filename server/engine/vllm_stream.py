"""One request of the in-process policy, cut into steps as its tokens arrive.

Tokens are cut where vLLM's output handler delivers them, so that the reader wakes once a step and
not once a token. The engine runs ahead of its reader, up to `max_tokens`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vllm import SamplingParams
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind

from server.engine.lean import DELIVERY, FIELD
from server.engine.llm import Llm, llm_boundary
from server.engine.segment import Segmenter
from server.engine.tops import likeliest
from server.types import Sampling, Step, Stop

REASONS = {"stop": Stop.END, "length": Stop.LENGTH}
TOGETHER = 16  # tokens of a step that no token ends on its own, in a delivery


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of the engine."""

    prompt_ids: tuple[int, ...]
    max_tokens: int
    seed: int | None
    sampling: Sampling
    priority: int
    top_logprobs: int = 0
    adapter: LoRARequest | None = None

    def params(self, delimiters: list[int], *, halt: bool, together: bool) -> SamplingParams:
        """`delimiters` are the ids that end a step on their own: the engine stops at one, or else
        delivers what it has, if it delivers tokens `together`."""
        s = self.sampling
        delivery = {DELIVERY: (TOGETHER, [] if halt else delimiters)}
        return SamplingParams(
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=s.top_k,
            min_p=s.min_p,
            repetition_penalty=s.repetition_penalty,
            seed=None if self.seed is None else self.seed % (1 << 63),
            max_tokens=self.max_tokens,
            stop_token_ids=delimiters if halt else None,
            extra_args=delivery if together else None,
            logprobs=self.top_logprobs,  # beside the sampled token's
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            skip_clone=True,
        )

    def after(self, ids: list[int]) -> Request:
        """The request that goes on where this one stopped."""
        return replace(
            self,
            prompt_ids=(*self.prompt_ids, *ids),
            max_tokens=self.max_tokens - len(ids),
            seed=None if self.seed is None else self.seed * 1_000_003 + len(ids),
        )


class VllmStream:
    """`server.types.Stream`. Opened by the first `__anext__`; cancelling that aborts it.

    `delimiters` says which token ids end a step on their own. If it is to `halt`, the stream ends
    after one, of at most `room` tokens.
    `generated` counts the tokens that reached this process: all, where the scheduler is ours; else
    an abort loses what is under way.
    """

    def __init__(
        self,
        llm: Llm,
        segmenter: Segmenter,
        request: Request,
        room: int,
        delimiters: Callable[[], Awaitable[list[int]]],
        *,
        halt: bool,
    ):
        self.prompt_tokens = len(request.prompt_ids)
        self.cached_tokens = 0
        self.generated = 0
        self._llm = llm
        self._segmenter = segmenter
        self._request = request
        self._room = room
        self._delimiters = delimiters
        self._halt = halt
        self._id: str | None = None  # of the engine request that runs
        self._ids: list[int] = []  # made by it
        self._steps: deque[Step] = deque()
        self._opened = False
        self._cached = False  # the running request's cached tokens have been counted
        self._ended = False  # no more tokens will be taken, but for
        self._late = False  # those that an abort brings, and `rest` is to have
        self._over = asyncio.Event()  # the engine has told the running request's end
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._abortion: asyncio.Task[None] | None = None

    def __aiter__(self) -> VllmStream:
        return self

    async def __anext__(self) -> Step:
        try:
            while not self._steps:
                if self._error is not None:
                    with llm_boundary(f"sampling from {self._llm.name}"):
                        raise self._error
                if self._ended:
                    raise StopAsyncIteration
                if self._id is None:
                    await self._open()
                else:
                    await self._wait()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        return self._steps.popleft()

    async def aclose(self) -> None:
        """The engine's last word is waited for, also where this is cancelled: a pass of it."""
        if not self._ended:
            self._ended = self._late = True
        if self._id is not None and self._abortion is None:
            self._abortion = asyncio.create_task(self._abort())
        if self._abortion is not None:
            try:
                await asyncio.shield(self._abortion)
            except asyncio.CancelledError:
                await asyncio.wait([self._abortion])
                raise

    def rest(self, stop: Stop) -> Step | None:
        return self._steps.popleft() if self._steps else self._segmenter.finish(stop)

    async def _open(self) -> None:
        if self._opened:  # the engine stopped at a delimiter that ends no step
            self._request = self._request.after(self._ids)
            self._ids = []
            self.prompt_tokens += len(self._request.prompt_ids)
            self._cached = False
        self._opened = True
        together = self._llm.tells_last
        delimiters = await self._delimiters() if self._halt or together else []
        request = self._request
        if self._halt:
            room = self._room - self._segmenter.pending
            request = replace(request, max_tokens=min(request.max_tokens, room))
        self._id = self._llm.request_id()
        self._over.clear()
        sent = False
        try:
            with llm_boundary(f"sampling from {self._llm.name}"):
                queue = await self._llm.engine.add_request(
                    self._id,
                    tokens_input(list(request.prompt_ids)),
                    request.params(delimiters, halt=self._halt, together=together),
                    priority=request.priority,
                    lora_request=request.adapter,
                )
                early = queue.get_nowait()
            sent = True
        finally:
            if not sent:
                await self._abort(known=False)
        queue.put = self._put
        if early is not None:
            self._put(early)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    async def _abort(self, *, known: bool = True) -> None:
        """End the engine request, if one runs, and take in what it had made. Where the engine may
        not know of it, nobody waits for its word."""
        request, self._id = self._id, None
        if request is not None and not self._llm.dead:
            with llm_boundary(f"aborting in {self._llm.name}"):
                if known and self._llm.tells_last:
                    await self._llm.abort(request)
                    await self._over.wait()
                else:
                    await self._llm.engine.abort(request)

    def _put(self, output: Any) -> None:
        """Called by vLLM's output handler for each delivery."""
        if isinstance(output, Exception):
            self._error, self._id = output, None
            self._over.set()
        else:
            self._take(output)
        if (self._steps or self._id is None) and self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_result(None)
            self._waiter = None

    def _take(self, output: Any) -> None:
        made = output.outputs[0]
        self.generated += len(made.token_ids)
        if made.token_ids and (self._late or not self._ended):
            if not self._cached:  # once a request
                self._cached = True
                self.cached_tokens += output.num_cached_tokens
            logprobs, tops = _logprobs(output, self._request.top_logprobs)
            self._cut(made.token_ids, logprobs, tops)
        if output.finished:
            self._finish(made.finish_reason)
        elif self._ended and self._id is not None and self._abortion is None:
            self._abortion = asyncio.create_task(self._abort())

    def _cut(
        self, ids: list[int], logprobs: Sequence[float], tops: Sequence[tuple[float, ...]]
    ) -> None:
        self._ids += ids
        steps = self._segmenter.feed(ids, logprobs, tops)
        if not steps:
            return
        if self._halt:
            self._ended, self._late = True, False
            del steps[1:]
        self._steps += steps
        self._ended |= self._segmenter.ended

    def _finish(self, reason: str) -> None:
        """The engine request is over; an eos has already been cut and has ended the stream."""
        self._id = None
        self._over.set()
        if self._ended:
            return
        if reason == "stop" and self._halt:
            if len(self._ids) < self._request.max_tokens:
                return  # it stopped at a delimiter that ends no step: `__anext__` goes on
            reason = "length"
        self._ended = True
        if reason not in REASONS:
            self._error = RuntimeError(f"the engine ended the request: {reason}")
        elif step := self._segmenter.finish(REASONS[reason]):
            self._steps.append(step)


def _logprobs(output: Any, k: int) -> tuple[list[float], Sequence[tuple[float, ...]]]:
    """For each sampled token of a delivery its own and the `k` likeliest ones', from our
    scheduler's form or from vLLM's."""
    found = (output.kv_transfer_params or {}).get(FIELD)
    if found is not None and not k:
        return found, ()
    if found is not None:
        return [row[0] for row in found], [likeliest(row[1:], k) for row in found]
    rows = [[p.logprob for p in d.values()] for d in output.outputs[0].logprobs]
    return [row[0] for row in rows], [likeliest(row, k) for row in rows] if k else ()
