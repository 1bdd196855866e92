"""The engine's end of the wire to an in-process policy: a step's tokens are delivered together.

It runs in the engine's process, and is there for the CPU; on a GPU vLLM schedules ahead of the
device with another class. `vllm_stream.py` is the other end.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm import SamplingParams
from vllm.platforms import current_platform
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import DraftTokenIds, LogprobsTensors
from vllm.v1.request import Request
from vllm.v1.sample.sampler import Sampler

from server.engine.drafts import ORDERS, worth_of, written
from server.engine.tails import TailScheduler

FIELD = "logprobs"  # key in `kv_transfer_params`, which is free without a KV connector
DELIVERY = "delivery"  # key in `extra_args`: at most so many tokens at once, and ids that end one


def gather_logprobs(logprobs: torch.Tensor, k: int, token_ids: torch.Tensor) -> LogprobsTensors:
    """Of each row the sampled token's and the `k` likeliest ones', without the sampled one's rank,
    which vLLM's own counts in the whole vocabulary, and we do not send."""
    ids = token_ids.unsqueeze(-1)
    own = logprobs.gather(-1, ids)
    if k:
        likely = logprobs.topk(k)
        ids, own = torch.cat((ids, likely.indices), 1), torch.cat((own, likely.values), 1)
    return LogprobsTensors(ids.to(torch.int32), own, torch.zeros_like(token_ids))


@dataclass(slots=True)
class Kept:
    """A request's tokens that are not delivered yet: at most so many, and up to one of `ids`."""

    most: int
    ids: frozenset[int]
    likeliest: int  # log-probabilities beside the sampled token's own
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)  # each one's: a float, or a list of them
    stats: Any = None  # of its prompt, which its first token brings

    def take(self, output: EngineCoreOutput, logprobs: list[Any]) -> None:
        self.tokens += output.new_token_ids
        self.logprobs += logprobs
        self.stats = self.stats or output.prefill_stats

    def delivered(self, output: EngineCoreOutput) -> bool:
        """Put them into this output, the last one's, if it is time. Whether it is."""
        goes_on = output.finish_reason is None and 0 < len(self.tokens) < self.most
        if goes_on and self.ids.isdisjoint(output.new_token_ids):
            return False
        output.new_token_ids, output.kv_transfer_params = self.tokens, {FIELD: self.logprobs}
        output.prefill_stats, self.stats = self.stats, None
        self.tokens, self.logprobs = [], []
        return True


class LeanScheduler(TailScheduler):
    """One that sends a sampled token's log-probability as one float, the `k` likeliest ones' as `k`
    more where a request asks for them, and the tokens of a request together where it lets us.

    vLLM cuts three NumPy arrays out for each token and sends them; packing, unpacking and wrapping
    them took 17 of the 29 us of front-end CPU that a token of the reference policy cost. Requests
    that ask for the log-probabilities of given tokens get vLLM's own form.

    A request with a `DELIVERY` is told its end in any case, with all that it made, also where it is
    aborted: by `Llm.abort`, which leaves the front end's books open until then.
    """

    tells_last = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._lean = self.connector is None
        self._kept: dict[str, Kept] = {}
        self._aborted: list[Request] = []  # and not told so yet
        if current_platform.is_cpu():  # where the worker lives in this process
            Sampler.gather_logprobs = staticmethod(gather_logprobs)

    def add_request(self, request: Request) -> None:
        params, delivery = request.sampling_params, _delivery(request)
        if self._lean and params is not None and delivery is not None and not _as_vllm(params):
            most, ids = delivery
            self._kept[request.request_id] = Kept(most, frozenset(ids), params.num_logprobs or 0)
        super().add_request(request)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        found, rows = model_runner_output.logprobs, model_runner_output.req_id_to_index
        if found is not None and self._lean:
            model_runner_output.logprobs = None  # so that vLLM cuts nothing out
        else:
            found, rows = None, {}
        requests = self.requests | {r.request_id: r for r in self._aborted}  # those that end leave
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for request in self._aborted:  # since this pass began, or before
            row = rows.get(request.request_id)
            made = [] if row is None else model_runner_output.sampled_token_ids[row]
            last = EngineCoreOutput(request.request_id, made)
            last.finish_reason = request.get_finished_reason()
            outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(last)
        self._aborted.clear()
        sampled = [] if found is None else found.logprobs[:, 0].tolist()
        firsts = None if found is None else found.cu_num_generated_tokens
        for batch in outputs.values():
            due = []
            for output in batch.outputs:
                kept = self._kept.get(output.request_id)
                if output.new_token_ids and (found is not None or kept is not None):
                    row = rows[output.request_id]
                    first = row if firsts is None else firsts[row]
                    its = slice(first, first + len(output.new_token_ids))
                    if kept is None:
                        params = requests[output.request_id].sampling_params
                        _attach(output, params, found, row, its)
                    elif kept.likeliest:
                        kept.take(output, found.logprobs[its, : kept.likeliest + 1].tolist())
                    else:
                        kept.take(output, sampled[its])
                if kept is None or kept.delivered(output):
                    due.append(output)
                    if output.finish_reason is not None:
                        self._kept.pop(output.request_id, None)
            batch.outputs = due
        return outputs

    def update_draft_token_ids(self, draft_token_ids: DraftTokenIds) -> None:
        found = zip(draft_token_ids.req_ids, draft_token_ids.draft_token_ids, strict=True)
        for request_id, draft in found:
            if draft and request_id in self.requests:
                _cut(draft, self.requests[request_id])
        super().update_draft_token_ids(draft_token_ids)

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        """A request whose prompt is cached but for a token begins with a draft, too: vLLM makes
        room for one of full length, and fills it with nothing."""
        scheduled = scheduler_output.scheduled_spec_decode_tokens
        counts = scheduler_output.num_scheduled_tokens
        for request_id in [r for r, draft in scheduled.items() if draft[0] < 0]:
            request, room = self.requests[request_id], len(scheduled[request_id])
            context = request.all_token_ids[-ORDERS[0] :]
            draft = written().draft(context, room, worth_of(len(counts)))
            if request.use_structured_output:  # nobody holds it against the grammar
                draft = []
            _cut(draft, request)
            counts[request_id] -= room - len(draft)
            scheduler_output.total_num_scheduled_tokens -= room - len(draft)
            if draft:
                scheduled[request_id] = draft
            else:
                del scheduled[request_id]
        super()._update_after_schedule(scheduler_output)

    def finish_requests(self, *args: Any, **kwargs: Any) -> list[Request]:
        ended: list[Request] = super().finish_requests(*args, **kwargs)
        self._aborted += [request for request in ended if _delivery(request) is not None]
        return ended


def _attach(
    output: EngineCoreOutput, params: SamplingParams | None, found: Any, row: int, its: slice
) -> None:
    """The log-probabilities that were asked for, to tokens that are delivered as they come."""
    if params is None or params.num_logprobs is None:
        return
    if _as_vllm(params):
        output.new_logprobs = found.slice_request(row, len(output.new_token_ids))
    elif k := params.logprobs:
        output.kv_transfer_params = {FIELD: found.logprobs[its, : k + 1].tolist()}
    else:
        output.kv_transfer_params = {FIELD: found.logprobs[its, 0].tolist()}


def _cut(draft: list[int], request: Request) -> None:
    """Leave out what the request would not use: beyond its length, or a token that ends it."""
    assert request.sampling_params is not None
    del draft[max(0, request.max_tokens - request.num_output_tokens - 1) :]
    ends = request.sampling_params.all_stop_token_ids
    last = next((i for i, token in enumerate(draft) if token in ends), len(draft))
    del draft[last + 1 :]


def _as_vllm(params: SamplingParams) -> bool:
    """Whether its log-probabilities, if any, are sent in vLLM's own form."""
    return params.num_logprobs is None or bool(params.logprob_token_ids)


def _delivery(request: Request) -> tuple[int, Collection[int]] | None:
    params = request.sampling_params
    return None if params is None or not params.extra_args else params.extra_args.get(DELIVERY)
