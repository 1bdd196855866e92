"""Searches through a container, as a client makes them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx

from benchmarks.puzzles import draw, puzzles, question
from deploy.image.checks.container import Container

QUESTION = "Use 4 9 10 13 to make 24."
# None of them is held out.
EASY = [question(puzzle) for puzzle in puzzles()[:60] if draw(puzzle) >= 200][:4]
LONG = {"question": QUESTION, "strategy": {"kind": "best_of_n", "n": 96, "stop_at": 1.0}}
# A verifier that reads mathematics in a process of its own, behind a system call filter.
SHORT = {
    "question": QUESTION,
    "strategy": {"kind": "beam", "width": 2, "branch": 4},
    "verify": {"kind": "math", "gold": "24"},
    "seed": 1,
}


async def reason(container: Container, body: dict[str, Any]) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=container.url, timeout=120) as http:
        reply = await http.post("/v1/reason", json=body)
        assert reply.is_success, f"{reply.text}\n{await container.logs()}"
        found = reply.json()
    assert isinstance(found, dict)
    return found


async def trace(container: Container, trace_id: str) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=container.url) as http:
        found = (await http.get(f"/v1/traces/{trace_id}")).raise_for_status().json()
    assert isinstance(found, dict)
    return found


async def events(container: Container, body: dict[str, Any]) -> AsyncIterator[tuple[str, Any]]:
    """Name and data of each event, as it arrives."""
    name = ""
    async with (
        httpx.AsyncClient(base_url=container.url, timeout=120) as http,
        http.stream("POST", "/v1/reason", json={**body, "stream": True}) as reply,
    ):
        async for line in reply.aiter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, json.loads(value)


async def drained(container: Container) -> None:
    """A search that is under way when SIGTERM comes ends whole, and then the server, with 0."""
    names: list[str] = []
    async for name, _ in events(container, LONG):
        if not names:
            await container.signal("TERM")
        names.append(name)
    assert names[-1] == "done", await container.logs()
    assert names.count("step") > 96
    assert await container.status() == 0, await container.logs()
