"""Clients that never try again: searches through a Service until standard input ends, then a count.

    python3 load.py http://ponder-gateway:8000

Each client sends the next request when the last is answered; some keep their connections, some make
a new one for each. It says `begun` when every kind of request was answered once.
"""

import asyncio
import json
import sys
from collections import Counter
from itertools import cycle
from typing import Any

import httpx

QUESTION = "Use 4 9 10 13 to make 24."
CHAT = {
    "model": "ponder-reference",
    "messages": [{"role": "user", "content": QUESTION}],
    "search": {"strategy": {"kind": "best_of_n", "n": 2}},
}
REASON = {"question": QUESTION, "strategy": {"kind": "beam", "width": 2, "branch": 2}}
KINDS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "chat": ("/v1/chat/completions", CHAT, None),
    "chat streamed": ("/v1/chat/completions", {**CHAT, "stream": True}, "data: [DONE]"),
    "reason": ("/v1/reason", REASON, None),
    "reason streamed": ("/v1/reason", {**REASON, "stream": True}, "event: done"),
}
KEEPING, FRESH = 3, 3  # clients
SECONDS = 120


class Load:
    def __init__(self, url: str):
        self.url = url
        self.ok: Counter[str] = Counter()
        self.failed: list[str] = []
        self.ending = asyncio.Event()

    async def run(self) -> None:
        """Until standard input ends, and what is under way then."""
        clients = [self.client(keeps=n < KEEPING, first=n) for n in range(KEEPING + FRESH)]
        running = asyncio.gather(*clients)
        await asyncio.to_thread(sys.stdin.read)
        self.ending.set()
        await running

    async def client(self, *, keeps: bool, first: int) -> None:
        kinds = cycle(list(KINDS)[first % len(KINDS) :] + list(KINDS)[: first % len(KINDS)])
        limits = httpx.Limits() if keeps else httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=self.url, timeout=SECONDS, limits=limits) as http:
            while not self.ending.is_set():
                await self.ask(http, next(kinds), "kept" if keeps else "fresh")

    async def ask(self, http: httpx.AsyncClient, kind: str, connection: str) -> None:
        path, body, last = KINDS[kind]
        try:
            complaint = await whole(http, path, body, last)
        except httpx.HTTPError as error:
            complaint = repr(error)
        if complaint is not None:
            self.failed.append(f"{kind}, {connection} connection: {complaint}")
            await asyncio.sleep(1)  # else a server that refuses at once is asked without end
            return
        self.ok[kind] += 1
        if len(self.ok) == len(KINDS) and self.ok[kind] == 1:
            print("begun", flush=True)


async def whole(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], last: str | None
) -> str | None:
    """What is wrong with the reply, if anything is."""
    if last is None:
        reply = await http.post(path, json=body)
        return None if reply.is_success else f"{reply.status_code} {reply.text}"
    async with http.stream("POST", path, json=body) as reply:
        if not reply.is_success:
            return f"{reply.status_code} {(await reply.aread()).decode()}"
        lines = [line async for line in reply.aiter_lines()]
    return None if last in lines else f"it ended early: {lines[-3:]}"


if __name__ == "__main__":
    load = Load(sys.argv[1])
    asyncio.run(load.run())
    print(json.dumps({"ok": load.ok, "failed": load.failed}))
