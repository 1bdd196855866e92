"""The engine's end of the wire to an in-process policy: a step's tokens are delivered together.

It runs in the engine's process, and is there for the CPU; on a GPU vLLM schedules ahead of the
device with another class. `vllm_stream.py` is the other end.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from vllm import SamplingParams
from vllm.platforms import current_platform
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.request import Request
from vllm.v1.sample.sampler import Sampler

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
        self._lean = self.connector is None and not self.num_spec_tokens  # a token a pass
        self._kept: dict[str, EngineCoreOutput] = {}  # not delivered yet
        self._aborted: list[Request] = []  # and not told so yet
        if current_platform.is_cpu():  # where the worker lives in this process
            Sampler.gather_logprobs = staticmethod(gather_logprobs)

    def add_request(self, request: Request) -> None:
        if delivery := _delivery(request):
            most, ids = delivery
            assert request.sampling_params is not None
            request.sampling_params.extra_args[DELIVERY] = most, frozenset(ids)
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
        for batch in outputs.values():
            for output in batch.outputs:
                if output.new_token_ids and found is not None:
                    row = rows[output.request_id]
                    params = requests[output.request_id].sampling_params
                    _attach(output, params, found, row, sampled[row])
            batch.outputs = [o for o in batch.outputs if self._due(o, requests[o.request_id])]
        return outputs

    def finish_requests(self, *args: Any, **kwargs: Any) -> list[Request]:
        ended: list[Request] = super().finish_requests(*args, **kwargs)
        self._aborted += [request for request in ended if _delivery(request) is not None]
        return ended

    def _due(self, output: EngineCoreOutput, request: Request) -> bool:
        """Whether to deliver it now, with what was kept of its request; else it is kept."""
        delivery = _delivery(request)
        if delivery is None:
            return True
        if kept := self._kept.pop(output.request_id, None):
            output.new_token_ids = kept.new_token_ids + output.new_token_ids
            output.kv_transfer_params = {FIELD: _sent(kept) + _sent(output)}
            output.prefill_stats = kept.prefill_stats
        most, ids = delivery
        made = output.new_token_ids
        if output.finish_reason is not None or output.kv_transfer_params is None:
            return True
        if len(made) >= most or made[-1] in ids:
            return True
        self._kept[output.request_id] = output
        return False


def _attach(
    output: EngineCoreOutput, params: SamplingParams | None, found: Any, row: int, sampled: float
) -> None:
    """The log-probabilities that were asked for, to a token."""
    if params is None or params.num_logprobs is None:
        return
    if params.logprob_token_ids:
        output.new_logprobs = found.slice_request(row, 1)
    elif k := params.logprobs:
        output.kv_transfer_params = {FIELD: found.logprobs[row : row + 1, : k + 1].tolist()}
    else:
        output.kv_transfer_params = {FIELD: [sampled]}


def _sent(output: EngineCoreOutput) -> list[Any]:
    params = output.kv_transfer_params
    return [] if params is None else params[FIELD]


def _delivery(request: Request) -> tuple[int, Collection[int]] | None:
    params = request.sampling_params
    return None if params is None or not params.extra_args else params.extra_args.get(DELIVERY)
