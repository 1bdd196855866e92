"""Any OpenAI-compatible server: POST /v1/chat/completions, text in and text out.

A path is continued by sending its text back as a trailing assistant message. Token ids are
unavailable, and text is cut into steps by characters, but tokens are counted as the server counts
them: one for each log-probability entry if it gives any, else one for each chunk, and in the end
by its usage report. Servers that hide their reasoning have it counted, not shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import exp, inf, log
from typing import Any

from server.config import HttpSettings
from server.engine.characters import TextTokenizer
from server.engine.http_stream import HttpStream, Job, cached
from server.engine.segment import Patterns, Segmenter
from server.engine.tops import MOST, likeliest
from server.errors import NoLogprobs
from server.routing.route import Route
from server.types import Sampling, Step, Stop

ROUTE = "/v1/chat/completions"
ENDLESS = 1 << 62  # characters: steps are limited in tokens here


@dataclass(frozen=True, slots=True)
class Piece:
    """Text, and the tokens that the server made for it."""

    text: str
    logprobs: tuple[float, ...]
    count: int
    tops: tuple[tuple[float, ...], ...] = ()


class Chat:
    """The chat dialect."""

    def __init__(self, settings: HttpSettings):
        self.settings = settings
        self.tokenizer = TextTokenizer()
        self.patterns = lru_cache(maxsize=8)(self._automaton)

    def stream(self, route: Route, job: Job, version: str) -> HttpStream:
        return ChatStream(self, route, job, version)

    async def label_logprobs(
        self, route: Route, ids: Sequence[int], labels: Sequence[int]
    ) -> tuple[tuple[float, ...], int]:
        """Of characters that are a token: their share of the next token's likeliest, -inf for one
        that is none of those. `NoLogprobs` if the server names none.

        What came from a cache is given so that the rest of `ids` are as many as the tokens that
        the server computed.
        """
        messages, path = self.tokenizer.split(ids)
        body = self.asked(messages, path) | {"max_tokens": 1, "temperature": 0.0}
        if not self.settings.logprobs:
            raise NoLogprobs(f"{self.settings.model} is not asked for log-probabilities")
        body |= {"logprobs": True, "top_logprobs": MOST}
        answer = await route.post(ROUTE, body)
        entries = (answer["choices"][0].get("logprobs") or {}).get("content") or []
        tops = entries[0].get("top_logprobs") if entries else None
        if not tops:
            raise NoLogprobs(f"{self.settings.model} gives no log-probabilities")
        found = {chr(label): 0.0 for label in labels}
        for top in tops:
            if (token := top["token"].strip()) in found:
                found[token] += exp(top["logprob"])
        usage = answer.get("usage") or {}
        computed = usage.get("prompt_tokens", 0) - cached(usage)
        logs = tuple(log(p) if p > 0 else -inf for p in (found[chr(i)] for i in labels))
        return logs, max(0, len(ids) - computed)

    def asked(self, messages: list[dict[str, str]], path: str) -> dict[str, Any]:
        """A request to go on from `path`, the assistant's text so far."""
        body: dict[str, Any] = {"model": self.settings.model, "messages": messages}
        if path:
            body["messages"] = [*messages, {"role": "assistant", "content": path}]
        if path and self.settings.prefill == "continue_final_message":
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body

    def _automaton(self, delimiter: str, stop: tuple[str, ...]) -> Patterns:
        return Patterns(self.tokenizer.piece, delimiter, stop)


class ChatStream(HttpStream):
    route = ROUTE

    def __init__(self, dialect: Chat, route: Route, job: Job, version: str):
        super().__init__(route, job)
        self._dialect = dialect
        self._flagged = dialect.settings.prefill == "continue_final_message"
        self._messages, self._path = dialect.tokenizer.split(job.prompt_ids)
        self._version = version
        self._segmenter = self._cutter()
        self._room = job.cut.max_step_tokens - job.cut.begun  # tokens this step may have
        self._counted = 0  # tokens of this step so far
        self._logprobs: list[float] = []  # of this step so far
        self._tops: list[tuple[float, ...]] = []
        self._before = 0  # tokens of earlier requests
        self._reported: int | None = None  # by the server, for this request

    def body(self) -> dict[str, Any]:
        job, settings = self.job, self._dialect.settings
        self._counted += self._missing()
        self._before = self.generated
        body = self._dialect.asked(self._messages, self._path) | {
            "max_tokens": job.limit - self.generated,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        body |= sampling(job.sampling, whole=self._flagged) | self._stops()
        if settings.logprobs:
            body |= {"logprobs": True} | ({"top_logprobs": k} if (k := job.top_logprobs) else {})
        if (seed := job.seed_after(self.generated)) is not None:
            body["seed"] = seed
        if settings.priority:
            body["priority"] = job.priority
        return body

    def take(self, choice: dict[str, Any]) -> list[Step]:
        parts = pieces(choice, self.job.top_logprobs)
        return [step for part in parts for step in self._feed(part)]

    def rest(self, stop: Stop) -> Step | None:
        step = self._segmenter.finish(stop)
        # An end is news even where it adds no text, for its token has none here.
        if step is None and (stop is Stop.END or self._counted):
            step = Step("", (), (), stop, self._version, 0)
        return None if step is None else self._charged(step)

    def usage(self, usage: dict[str, Any]) -> None:
        super().usage(usage)
        self._reported = usage.get("completion_tokens")

    def settle(self, last: Step) -> Step:
        return replace(last, count=max(0, last.count + self._missing()))

    def _missing(self) -> int:
        """Tokens of this request that only the server's report knows of; counted from now on."""
        if self._reported is None:
            return 0
        # A server that counts more than it was allowed to make is not believed.
        made = min(self._before + self._reported, self.job.limit)
        missing, self.generated, self._reported = made - self.generated, made, None
        return missing

    def _stops(self) -> dict[str, Any]:
        stops = [*self.job.sampling.stop]
        if self._flagged and self.job.cut.halt and self.job.cut.delimiter:
            stops.append(self.job.cut.delimiter)
        if not stops:
            return {}
        return {"stop": stops} | ({"include_stop_str_in_output": True} if self._flagged else {})

    def _feed(self, part: Piece) -> list[Step]:
        # Chunks may be finer than tokens, and a server may not know `max_tokens`.
        made = min(part.count, self.job.limit - self.generated)
        self.generated += made
        self._counted += made
        self._logprobs.extend(part.logprobs)
        self._tops.extend(part.tops)
        self._path += part.text
        steps = self._segmenter.feed(self._dialect.tokenizer.encode(part.text))
        if not steps and self._counted >= self._room:
            steps = [self._segmenter.finish(Stop.STEP) or self._nothing()]
            self._segmenter = self._cutter()
        return [self._charged(step) for step in steps]

    def _charged(self, step: Step) -> Step:
        """With the tokens that the server made for it; the next step starts from none."""
        logprobs, tops = tuple(self._logprobs), tuple(self._tops)
        step = replace(step, logprobs=logprobs, tops=tops, count=self._counted)
        self._logprobs, self._tops = [], []
        self._counted, self._room = 0, self.job.cut.max_step_tokens
        return step

    def _nothing(self) -> Step:
        return Step("", (), (), Stop.STEP, self._version, 0)

    def _cutter(self) -> Segmenter:
        return Segmenter(
            self._dialect.patterns(self.job.cut.delimiter, self.job.sampling.stop),
            max_step_tokens=ENDLESS,
            version=self._version,
            before=self._dialect.tokenizer.encode(self._path[-Segmenter.context :]),
        )


def sampling(settings: Sampling, *, whole: bool) -> dict[str, Any]:
    """OpenAI's parameters always, for a server's defaults may differ from ours; those that are not
    OpenAI's if they change anything, or if the server is known to take them (`whole`)."""
    ours = settings.model_dump(exclude={"stop"})
    neutral = Sampling().model_dump()
    return {
        name: value
        for name, value in ours.items()
        if whole or name in ("temperature", "top_p") or value != neutral[name]
    }


def pieces(choice: dict[str, Any], k: int = 0) -> list[Piece]:
    """A chunk token by token where its log-probabilities spell its text, else in one piece."""
    text = (choice.get("delta") or {}).get("content") or ""
    entries = (choice.get("logprobs") or {}).get("content") or []
    if not entries:
        return [Piece(text, (), 1)] if text else []
    logprobs = tuple(entry["logprob"] for entry in entries)
    tops = tuple(_tops(entry, k) for entry in entries) if k else ()
    if "".join(entry["token"] for entry in entries) == text:
        each = enumerate(entries)
        return [Piece(e["token"], logprobs[i : i + 1], 1, tops[i : i + 1]) for i, e in each]
    return [Piece(text, logprobs, len(entries), tops)]


def _tops(entry: dict[str, Any], k: int) -> tuple[float, ...]:
    return likeliest((top["logprob"] for top in entry.get("top_logprobs") or ()), k)
