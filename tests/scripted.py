"""A real HTTP server on a free port whose replies are scripted, to fail as real ones do."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

Reply = Callable[[Receive, Send], Awaitable[None]]
CARD = {"id": "remote", "root": "/weights/step-7", "max_model_len": 512}


class Scripted:
    """GET /v1/models, /health and what `pages` holds; any POST takes the next of `replies`."""

    def __init__(self) -> None:
        self.url = ""
        self.reset()

    def reset(self) -> None:
        self.replies: deque[Reply] = deque()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.peers: list[tuple[str, int]] = []  # whence each POST came: equal on one connection
        self.dropped = asyncio.Event()  # a client went away in the middle of a reply
        self.waiting = asyncio.Event()  # a reply waits for its client to go away
        self.pages: dict[str, Reply] = {
            "/v1/models": document({"object": "list", "data": [CARD]}),
            "/health": document({}),
        }

    def will(self, *replies: Reply) -> None:
        self.replies.extend(replies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] == "GET":
            await self.pages.get(scope["path"], refusal(404, "no such page"))(receive, send)
            return
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        self.requests.append({"path": scope["path"]} | json.loads(body))
        self.headers.append({k.decode(): v.decode() for k, v in scope["headers"]})
        self.peers.append(scope["client"])
        await self.replies.popleft()(receive, send)

    def hanging(self, *chunks: bytes) -> Reply:
        """Sends `chunks`, then nothing until the client goes away."""

        async def reply(receive: Receive, send: Send) -> None:
            await head(send)
            for chunk in chunks:
                await part(send, chunk)
            self.waiting.set()
            while (await receive())["type"] != "http.disconnect":
                pass
            self.dropped.set()

        return reply


async def head(send: Send, status: int = 200, **headers: str) -> None:
    pairs = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def part(send: Send, chunk: bytes, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": chunk, "more_body": more})


def document(content: Any, status: int = 200, **headers: str) -> Reply:
    async def reply(receive: Receive, send: Send) -> None:
        await head(send, status, **headers)
        await part(send, json.dumps(content).encode(), more=False)

    return reply


def refusal(status: int, message: str, **headers: str) -> Reply:
    return document({"error": {"message": message, "type": "x"}}, status, **headers)


def events(*frames: bytes) -> Reply:
    """A whole event stream."""

    async def reply(receive: Receive, send: Send) -> None:
        await head(send, content_type="text/event-stream")
        for frame in frames:
            await part(send, frame)
        await part(send, b"", more=False)

    return reply


def truncated(*frames: bytes) -> Reply:
    """An event stream whose connection breaks: uvicorn drops it when more is sent than promised."""

    async def reply(receive: Receive, send: Send) -> None:
        await head(send, content_length="1000000")
        for frame in frames:
            await part(send, frame)
        await part(send, b"", more=False)

    return reply


def frame(event: Any) -> bytes:
    data = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
    return f"data: {data}\n\n".encode()


DONE = frame("[DONE]")


def delta(
    text: str,
    finish: str | None = None,
    *,
    logprobs: Iterable[tuple[str, float]] = (),
    **more: Any,
) -> bytes:
    """A chunk of a streamed chat completion."""
    choice: dict[str, Any] = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    if entries := [{"token": t, "logprob": p} for t, p in logprobs]:
        choice["logprobs"] = {"content": entries}
    return frame({"choices": [choice | more]})


def tokens(
    ids: list[int],
    finish: str | None = None,
    reason: Any = None,
    *,
    tops: list[dict[str, float]] | None = None,
) -> bytes:
    """A chunk of a streamed completion of vLLM's."""
    choice = {
        "index": 0,
        "text": "",
        "token_ids": ids,
        "logprobs": {"token_logprobs": [-0.5] * len(ids), "top_logprobs": tops},
        "finish_reason": finish,
        "stop_reason": reason,
    }
    return frame({"choices": [choice]})


def usage(prompt: int, completion: int, cached: int = 0) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion}
    details = {"prompt_tokens_details": {"cached_tokens": cached}}
    return frame({"choices": [], "usage": counts | details})


@asynccontextmanager
async def serving(app: Any, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """`app` on a free port of this machine, in this loop: its address."""
    with socket.create_server((host, port)) as listener:
        config = uvicorn.Config(app, log_level="critical", lifespan="off", ws="none")
        config.timeout_graceful_shutdown = 1
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://{host}:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            await task


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert isinstance(port, int)
        return port
