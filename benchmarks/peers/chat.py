"""Asking a server of OpenAI's API, by OpenAI's own client: optillm, and ours when it serves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai

from benchmarks.peers.work import Answer, Job, Solver


@asynccontextmanager
async def asking(job: Job, url: str, model: str, **extra: Any) -> AsyncIterator[Solver]:
    """One client for all questions, which does not repeat what failed."""
    # It has to be closed: what closes one that was thrown away takes its sockets' numbers out of
    # the event loop, when they are another client's by then.
    async with openai.AsyncOpenAI(
        base_url=url, api_key="none", timeout=900, max_retries=0
    ) as client:

        async def solve(question: str) -> Answer:
            reply = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": question}],
                temperature=job.temperature,
                max_tokens=job.max_tokens,
                extra_body=extra,
            )
            return Answer(reply.choices[0].message.content or "")

        yield Solver(solve)
