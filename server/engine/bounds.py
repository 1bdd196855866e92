"""What fits into a context."""

from __future__ import annotations

from server.errors import BadRequest


def fit(name: str, context: int, prompt: int, tokens: int) -> None:
    """Check a request of `tokens` after a prompt of `prompt` ids. Raises `BadRequest`."""
    if prompt < 1:
        raise BadRequest("the prompt is empty", param="messages")
    if tokens < 1:
        raise BadRequest("max_tokens must be at least 1", param="max_tokens")
    if prompt + 1 > context:
        raise BadRequest(
            f"the prompt has {prompt} tokens; {name} takes at most {context - 1}",
            param="messages",
            code="context_length_exceeded",
        )
    if prompt + tokens > context:
        raise BadRequest(
            f"max_tokens is {tokens}; at most {context - prompt} fit after a prompt of {prompt} "
            f"tokens in a context of {context}",
            param="max_tokens",
            code="context_length_exceeded",
        )
