"""`logprobs` of a chat choice: those of the content's tokens, as they were sampled."""

from __future__ import annotations

from pydantic import BaseModel

from server.api.usage import content_nodes
from server.search.answers import Answer
from server.types import Tokenizer


class TokenLogprob(BaseModel):
    token: str
    logprob: float  # natural, under the sampling distribution
    bytes: list[int]
    top_logprobs: list[dict[str, object]] = []


class ChoiceLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


def choice_logprobs(answer: Answer, tokenizer: Tokenizer) -> ChoiceLogprobs:
    """One entry per token of the content; control tokens have no text and are left out."""
    entries = []
    for node in content_nodes(answer):
        assert node.step is not None
        # An engine that gives no log-probabilities is refused before the search.
        for token_id, value in zip(node.step.token_ids, node.step.logprobs, strict=True):
            if text := tokenizer.decode([token_id]):
                piece = tokenizer.piece(token_id)  # half a character has bytes, but no text
                entries.append(TokenLogprob(token=text, logprob=value, bytes=list(piece)))
    return ChoiceLogprobs(content=entries)
