"""The http verifier: a webhook gives the verdict.

It is sent `{"messages": [{"role": ..., "content": ...}], "answer": TEXT}` by POST, all that was
written being the answer, and replies `{"verdict": NUMBER in [0, 1] or null}` with status 200.
Only addresses under those of `verifiers.webhooks` in the server's settings can be called.
Redirects are not followed, and it is not asked twice.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Literal

import httpx
from pydantic import Field

from server.errors import BadRequest, ScorerError, boundary
from server.reward.tools import Tools
from server.reward.verifiers.verifier import Answer, Verifier
from server.types import Prompt

MAX_REPLY = 1 << 16  # bytes


class Http(Verifier):
    kind: Literal["http"] = "http"
    url: str = Field(max_length=2048)

    def permit(self, tools: Tools) -> None:
        allowed = tools.settings.webhooks
        if not any(within(self.url, base) for base in allowed):
            listed = ", ".join(allowed) or "none (the server's setting verifiers.webhooks)"
            raise BadRequest(f"url must be under one of: {listed}", param="reward.url")

    def subject(self, text: str, pattern: str | None) -> Answer | None:
        return Answer(text, found=False)

    async def verdict(self, tools: Tools, prompt: Prompt, answer: Answer) -> float | None:
        body = {"messages": [asdict(m) for m in prompt.messages], "answer": answer.text}
        with boundary(ScorerError, f"the verifier at {self.url}"):
            content = await self._post(tools.client, body)
            return _verdict(json.loads(content))

    async def _post(self, client: httpx.AsyncClient, body: dict[str, Any]) -> bytes:
        content = b""
        async with client.stream("POST", self.url, json=body) as response:
            if response.status_code != 200:
                raise ValueError(f"HTTP {response.status_code}")
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > MAX_REPLY:
                    raise ValueError(f"its reply has more than {MAX_REPLY} bytes")
        return content


def _verdict(reply: Any) -> float | None:
    verdict = reply["verdict"]
    if verdict is None:
        return None
    if type(verdict) not in (int, float) or not 0 <= verdict <= 1:
        raise ValueError(f"a verdict of {verdict!r:.100}, not a number in [0, 1] or null")
    return float(verdict)


def within(url: str, base: str) -> bool:
    """Whether `url` is `base`, or lies below it: same scheme, host and port, no user, and a path
    that goes on where that of `base` ends at a `/`."""
    try:
        asked, allowed = httpx.URL(url), httpx.URL(base)
    except httpx.InvalidURL:
        return False
    same = (asked.scheme, asked.host, asked.port) == (allowed.scheme, allowed.host, allowed.port)
    root = allowed.raw_path.rstrip(b"/")
    path = asked.raw_path.partition(b"?")[0]
    below = path == root or path.startswith(root + b"/")
    plain = not asked.userinfo and not asked.fragment and not _climbs(path)
    return same and below and plain


def _climbs(path: bytes) -> bool:
    """Whether a server might read it as another path."""
    lower = path.lower()
    return b".." in lower or b"%2e" in lower or b"%2f" in lower or b"%5c" in lower or b"\\" in lower
