"""A remote vLLM: POST /v1/completions with token ids in, and out with log-probabilities.

Run it with `--logprobs-mode processed_logprobs`, without which log-probabilities are those before
temperature, top-p and top-k, and with `--enable-prompt-tokens-details`, without which it reports
no cached tokens. With `--enable-scale-out` it has a cheaper route, which is then used
(`http_tokens.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from typing import Any

from server.config import HttpSettings
from server.engine.halting import Halting
from server.engine.http_stream import HttpStream, Job, cached
from server.engine.segment import Patterns, Segmenter
from server.engine.tokenizer import HFTokenizer
from server.engine.tops import likeliest
from server.routing.route import Route
from server.types import Sampling, Step, Stop

ROUTE = "/v1/completions"
RAW = -1e-4  # a token that was the only candidate has log-probability 0, unless it is a raw one


class Completions:
    """The vllm dialect. `streams` are of what the server has routes for."""

    def __init__(
        self,
        settings: HttpSettings,
        tokenizer: HFTokenizer,
        streams: type[CompletionStream],
    ):
        self.settings = settings
        self.tokenizer = tokenizer
        self.halting = Halting(tokenizer)
        self._streams = streams
        self._patterns = lru_cache(maxsize=8)(self._automaton)

    def named(self, settings: HttpSettings) -> Completions:
        """The same servers, with the model that these settings name."""
        other = copy(self)
        other.settings = settings
        return other

    def stream(self, route: Route, job: Job, version: str) -> HttpStream:
        segmenter = Segmenter(
            self._patterns(job.cut.delimiter, job.sampling.stop),
            max_step_tokens=job.cut.max_step_tokens,
            version=version,
            before=self._answer(job.prompt_ids),
            begun=job.cut.begun,
        )
        return self._streams(self, route, job, segmenter)

    async def label_logprobs(
        self, route: Route, ids: Sequence[int], labels: Sequence[int]
    ) -> tuple[tuple[float, ...], int]:
        body = self._one_token(ids) | {"temperature": 0.0, "logprob_token_ids": list(labels)}
        answer = await route.post(ROUTE, body)
        top = answer["choices"][0]["logprobs"]["top_logprobs"][0]
        return tuple(float(top[f"token_id:{i}"]) for i in labels), cached(answer["usage"])

    async def gives_raw_logprobs(self, route: Route, prompt_ids: Sequence[int]) -> bool:
        """Whether log-probabilities are certainly not those of the sampling distribution. Costs
        one token."""
        answer = await route.post(ROUTE, self._one_token(prompt_ids) | {"top_k": 1})
        return bool(answer["choices"][0]["logprobs"]["token_logprobs"][0] < RAW)

    def _one_token(self, ids: Sequence[int]) -> dict[str, Any]:
        return {
            "model": self.settings.model,
            "prompt": list(ids),
            "max_tokens": 1,
            "logprobs": 0,
            "return_tokens_as_token_ids": True,
            **neutral(),
        }

    def _answer(self, prompt_ids: Sequence[int]) -> Sequence[int]:
        """The end of the answer that a prompt already holds: what cuts the next step."""
        tail = self.tokenizer.since_control(prompt_ids[-Segmenter.context :])
        opening = self.tokenizer.opening
        return tail[len(opening) :] if tail[: len(opening)] == opening else tail

    def _automaton(self, delimiter: str, stop: tuple[str, ...]) -> Patterns:
        return Patterns(self.tokenizer.piece, delimiter, stop, self.tokenizer.eos_ids)


class CompletionStream(HttpStream):
    route = ROUTE

    def __init__(self, dialect: Completions, route: Route, job: Job, segmenter: Segmenter):
        super().__init__(route, job)
        self.prompt_tokens = len(job.prompt_ids)
        self._dialect = dialect
        self._segmenter = segmenter
        self._ids: list[int] = []  # all that was generated

    def body(self) -> dict[str, Any]:
        job = self.job
        # What the server stops at by itself is exact; the segmenter knows the path before, too.
        stops = [*job.sampling.stop, *([job.cut.delimiter] if job.cut.halt else [])]
        body = {
            "model": self._dialect.settings.model,
            "prompt": [*job.prompt_ids, *self._ids],
            "max_tokens": job.limit - len(self._ids),
            "stream": True,
            "stream_options": {"include_usage": True},
            "logprobs": job.top_logprobs,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "stop": [s for s in stops if s],
            **job.sampling.model_dump(exclude={"stop"}),
        }
        if (seed := job.seed_after(len(self._ids))) is not None:
            body["seed"] = seed
        if self._dialect.settings.priority:
            body["priority"] = job.priority
        return body

    def take(self, choice: dict[str, Any]) -> list[Step]:
        ids = choice["token_ids"]
        if not ids:
            return []
        logprobs, tops = self.logprobs(choice["logprobs"])
        if len(logprobs) != len(ids):
            raise ValueError(f"{len(logprobs)} log-probabilities for {len(ids)} tokens")
        self.generated += len(ids)
        self._ids.extend(ids)
        return self._segmenter.feed(ids, logprobs, tops)

    def logprobs(self, given: dict[str, Any]) -> tuple[list[float], list[tuple[float, ...]]]:
        """Of a chunk's tokens, and the likeliest ones beside them. vLLM names the likeliest, and
        the sampled one if it is none of them."""
        k = self.job.top_logprobs
        found = given["top_logprobs"] if k else ()
        return given["token_logprobs"], [likeliest((row or {}).values(), k) for row in found]

    def asked(self) -> int:
        return len(self.job.prompt_ids) + len(self._ids)

    def rest(self, stop: Stop) -> Step | None:
        return self._segmenter.finish(stop)


def neutral() -> dict[str, Any]:
    """The policy's own distribution: a server's defaults may be others."""
    return Sampling().model_dump(exclude={"stop"})
