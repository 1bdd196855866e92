"""`logprobs` of a chat choice: those of the content's tokens, as they were sampled."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from pydantic import BaseModel

from server.search.answers import Answer
from server.types import Step, Stop, Tokenizer


class TokenLogprob(BaseModel):
    token: str
    logprob: float  # natural, under the sampling distribution
    bytes: list[int]
    top_logprobs: list[dict[str, object]] = []


class ChoiceLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


def choice_logprobs(answer: Answer, tokenizer: Tokenizer) -> ChoiceLogprobs:
    """One entry per token of the content that the policy sampled. Words put in its mouth have no
    log-probability, control tokens no text; what follows the content (the caller's stop string)
    is not part of it."""
    entries = []
    utf8 = codecs.getincrementaldecoder("utf-8")("replace")  # a character may lie across steps
    for at, node in enumerate(answer.node.path()):
        assert node.step is not None
        for token_id, value in _written(node.step, tokenizer, utf8):
            # Half a character has bytes, but no text.
            if at >= len(answer.reasoning) and (text := tokenizer.decode([token_id])):
                piece = tokenizer.piece(token_id)
                entries.append(TokenLogprob(token=text, logprob=value, bytes=list(piece)))
    return ChoiceLogprobs(content=entries)


def _written(
    step: Step, tokenizer: Tokenizer, utf8: codecs.IncrementalDecoder
) -> Iterator[tuple[int, float]]:
    """The sampled tokens that the step's text is made of, and their log-probabilities."""
    sampled = step.token_ids[step.forced :]
    # An engine that gives no log-probabilities is refused before the search.
    values = iter(zip(sampled, step.logprobs, strict=True))
    length = 0  # characters
    for at, token_id in enumerate(step.token_ids):
        if step.stop is Stop.END and length >= len(step.text):
            break
        length += len(utf8.decode(tokenizer.piece(token_id)))
        if at >= step.forced:
            yield next(values)
    if step.stop is Stop.END:
        utf8.reset()
