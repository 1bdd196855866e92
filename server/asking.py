"""Puts a question to a running server, and yields what its search says. HTTP and JSON only."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx

from server.errors import PonderError, boundary

# A search may be silent for as long as a step takes; the server sends a comment when it is.
TIMEOUT = httpx.Timeout(10.0, read=60.0)


class AskError(PonderError):
    """The server could not be reached, or refused."""


def client(url: str, api_key: str | None) -> httpx.AsyncClient:
    """For the server at `url`, with or without a trailing `/v1`."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    base = url.rstrip("/").removesuffix("/v1")
    return httpx.AsyncClient(base_url=base, headers=headers, timeout=TIMEOUT)


async def events(
    http: httpx.AsyncClient, body: Mapping[str, Any]
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Name and data of each event of `POST /v1/reason`. Raises `AskError`."""
    with boundary(AskError, str(http.base_url)):
        async with http.stream("POST", "/v1/reason", json={**body, "stream": True}) as reply:
            await check(reply)
            name = ""
            async for line in reply.aiter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, json.loads(value)


async def reason(http: httpx.AsyncClient, body: Mapping[str, Any]) -> dict[str, Any]:
    """The whole reply of `POST /v1/reason`, with steps and scores. Raises `AskError`."""
    asked = {"include": ["steps", "scores"], **body}
    with boundary(AskError, str(http.base_url)):
        # The server bounds a search by its own limits; the client waits for as long.
        reply = await http.post("/v1/reason", json=asked, timeout=httpx.Timeout(10.0, read=None))
        await check(reply)
        whole: dict[str, Any] = reply.json()
        return whole


async def models(http: httpx.AsyncClient) -> list[str]:
    """The names of `GET /v1/models`. Raises `AskError`."""
    with boundary(AskError, str(http.base_url)):
        reply = await http.get("/v1/models")
        await check(reply)
        return [model["id"] for model in reply.json()["data"]]


async def check(reply: httpx.Response) -> None:
    """Raises `AskError` with the server's own words."""
    if reply.is_success:
        return
    await reply.aread()
    try:
        error = reply.json()["error"]
        text = f"{error['message']} ({error['param']})" if error["param"] else error["message"]
    except (ValueError, KeyError, TypeError):
        text = reply.text[:500]
    raise AskError(f"{reply.status_code}: {text}")
