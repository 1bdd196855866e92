"""A model that is asked to choose one of a few labels, and how probable each of them is.

Where each label is one token of the model, one forward pass gives their probabilities, and nothing
has to be sampled or parsed (as in G-Eval, arXiv 2303.16634, section 2, and in self-evaluation,
Kadavath et al., arXiv 2207.05221). A model that does not tell them is sampled; its answer is a
label and nothing else, or it is asked again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from math import exp, inf
from string import punctuation

from server.engine.share import branch_priority
from server.errors import NoLogprobs, ScorerError
from server.reward.client import guarded
from server.types import Cut, Engine, Message, Sampling

REPLY = 16  # tokens of a sampled answer, at most
FIRST = branch_priority(inf)  # of its search's requests: a path waits for it


@dataclass(frozen=True, slots=True)
class Grades:
    """What a model answered."""

    shares: tuple[float, ...]  # of the labels' probability, in their order; they sum to 1
    computed: int  # tokens
    cached: int


class Grader:
    """Asks one model for one of these labels."""

    def __init__(self, engine: Engine, labels: Sequence[str], *, tries: int):
        self.engine, self.labels = engine, tuple(labels)
        self._tries = tries
        ids = [engine.tokenizer.encode(label) for label in labels]
        self._ids = [i for (i, *more) in ids if not more]
        self._tells = len(self._ids) == len(labels)

    async def grade(self, messages: Sequence[Message]) -> Grades | None:
        """None if the model cannot read so much. Raises `ScorerError`, `BadRequest`."""
        ids = self.engine.tokenizer.render(messages)
        if len(ids) + REPLY > self.engine.context:
            return None
        return await guarded(self.engine.name, self._grades(ids))

    async def _grades(self, ids: tuple[int, ...]) -> Grades:
        return await self._told(ids) or await self._sampled(ids)

    async def _told(self, ids: tuple[int, ...]) -> Grades | None:
        """None if the model does not tell."""
        if not self._tells:
            return None
        try:
            logprobs, cached = await self.engine.label_logprobs(ids, self._ids)
        except NoLogprobs:
            self._tells = False
            return None
        best = max(logprobs)
        if best == -inf:
            return None
        weights = [exp(p - best) for p in logprobs]
        shares = tuple(w / sum(weights) for w in weights)
        return Grades(shares, len(ids) - cached, cached)

    async def _sampled(self, ids: tuple[int, ...]) -> Grades:
        computed = cached = 0
        for attempt in range(self._tries):
            # The likeliest answer first; the same question again would give the same one.
            sampling = Sampling(temperature=1.0 if attempt else 0.0)
            stream = self.engine.stream(
                ids,
                max_tokens=REPLY,
                seed=attempt,
                sampling=sampling,
                cut=Cut("", REPLY),
                priority=FIRST,
            )
            async with aclosing(stream):
                text = "".join([step.text async for step in stream])
            computed += stream.prompt_tokens - stream.cached_tokens + stream.generated
            cached += stream.cached_tokens
            if (label := self._parse(text)) is not None:
                shares = tuple(float(i == label) for i in range(len(self.labels)))
                return Grades(shares, computed, cached)
        raise ScorerError(
            f"{self.engine.name} answered {text[:80]!r}, not one of {', '.join(self.labels)}"
        )

    def _parse(self, text: str) -> int | None:
        """The index of the label that `text` is, whatever punctuation stands around it."""
        word = text.strip(punctuation + " \n\t").casefold()
        return next((i for i, x in enumerate(self.labels) if x.casefold() == word), None)
