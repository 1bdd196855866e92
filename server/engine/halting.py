"""The tokens that end a step on their own: what an engine that halts is told to stop at."""

from __future__ import annotations

import asyncio

from server.engine.tokenizer import HFTokenizer


class Halting:
    """Found once for each delimiter, off the loop: it takes a look at the whole vocabulary."""

    def __init__(self, tokenizer: HFTokenizer):
        self._tokenizer = tokenizer
        self._found: dict[str, asyncio.Task[list[int]]] = {}

    async def ids(self, delimiter: str) -> list[int]:
        if not delimiter:
            return []
        if delimiter not in self._found:
            work = asyncio.to_thread(self._tokenizer.containing, delimiter)
            self._found[delimiter] = asyncio.create_task(work)
        return await asyncio.shield(self._found[delimiter])
