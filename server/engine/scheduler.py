"""vLLM's scheduler, sending a sampled token's log-probability as one float.

vLLM sends three NumPy arrays for each token, and packing, unpacking and wrapping those costs more
than the token: measured in benchmarks/overhead. Here they become a list of floats in a field that
is free without a KV connector. Runs in the engine's process.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

FIELD = "logprobs"  # key in a request output's `kv_transfer_params`


class LeanScheduler(Scheduler):
    """Requests that ask for the log-probabilities of given tokens get vLLM's own form."""

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        if model_runner_output.logprobs is None or self.connector is not None:
            return super().update_from_output(scheduler_output, model_runner_output)
        whole = {i for i in model_runner_output.req_ids if self._wants_more(i)}
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for output in chain.from_iterable(o.outputs for o in outputs.values()):
            if output.new_logprobs is not None and output.request_id not in whole:
                sampled = output.new_logprobs.logprobs[:, 0]
                output.kv_transfer_params = {FIELD: sampled.tolist()}
                output.new_logprobs = None
        return outputs

    def _wants_more(self, request_id: str) -> bool:
        request = self.requests.get(request_id)
        params = None if request is None else request.sampling_params
        return params is not None and bool(params.logprobs or params.logprob_token_ids)
