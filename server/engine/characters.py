"""The tokenizer of a policy that speaks text only: an id is a Unicode code point.

A rendered chat is its messages as JSON and then U+001E, the record separator. JSON escapes control
characters, so no message can hold that mark; what follows it is the assistant's text so far.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from server.types import Message

MARK = 0x1E


class TextTokenizer:
    """`server.types.Tokenizer`, without a vocabulary. What the remote server makes of the names of
    control tokens in a message is up to that server."""

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        chat = [{"role": m.role, "content": m.content} for m in messages]
        return (*self.encode(json.dumps(chat, ensure_ascii=False)), MARK)

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    def say(self, text: str) -> tuple[int, ...]:
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def piece(self, token: int) -> bytes:
        """A code point in UTF-8; a lone surrogate, which has none, is replaced."""
        return chr(token).encode("utf-8", "replace")

    def split(self, ids: Sequence[int]) -> tuple[list[dict[str, str]], str]:
        """The messages, and the assistant's text so far."""
        mark = list(ids).index(MARK)
        messages: list[dict[str, str]] = json.loads(self.decode(ids[:mark]))
        return messages, self.decode(ids[mark + 1 :])
