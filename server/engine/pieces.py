"""What each token adds to a text, in bytes: byte-level, byte-fallback and plain vocabularies."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

BYTE = re.compile("<0x([0-9A-F]{2})>")


class Pieces(dict[int, bytes]):
    """Token id to UTF-8 bytes (perhaps part of a character), worked out when first asked for.

    Control tokens and ids outside the vocabulary are b"". `hf` is a transformers tokenizer, and
    `decoder` the part of that name of its tokenizer.json.
    """

    def __init__(self, hf: Any, control: Collection[int], decoder: object):
        super().__init__()
        self._hf = hf
        self._control = control
        kinds = set(re.findall(r'"type": "(\w+)"', json.dumps(decoder)))
        self._table = dict(byte_level()) if "ByteLevel" in kinds else None
        self._fallback = "ByteFallback" in kinds
        self._anchor: list[int] = hf.encode("a", add_special_tokens=False)[-1:]
        self._anchor_text = self._decode(self._anchor)

    def __missing__(self, token: int) -> bytes:
        self[token] = piece = self._work_out(token)
        return piece

    def _work_out(self, token: int) -> bytes:
        name = self._hf.convert_ids_to_tokens(token)
        if name is None or token in self._control:
            return b""
        if self._table is not None:
            table = self._table
            return bytes(table[c] for c in name) if all(c in table for c in name) else name.encode()
        if self._fallback and (byte := BYTE.fullmatch(name)):
            return bytes([int(byte[1], 16)])
        # Decoders drop the space that a text begins with, so let another token begin it.
        text = self._decode([*self._anchor, token])
        return text.removeprefix(self._anchor_text).encode()

    def _decode(self, ids: list[int]) -> str:
        text = self._hf.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def byte_level() -> Iterator[tuple[str, int]]:
    """GPT-2's printable stand-ins for the 256 bytes: (character, byte)."""
    spare = 256
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174:
            yield chr(byte), byte
        else:
            yield chr(spare), byte
            spare += 1
