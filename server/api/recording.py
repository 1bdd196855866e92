"""A reply that is made apart from any connection, so that who asks for it again gets it, too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from server.api.errors import ClientGone, error_response
from server.api.sse import PING, STALL_SECONDS, EventStream, unless_gone
from server.errors import NoAnswer, PonderError, StateError

Make = Callable[[Receive], Awaitable[Response]]
REPEATED = (b"idempotent-replayed", b"true")


async def never() -> Message:
    """A client that neither sends nor leaves."""
    await asyncio.Event().wait()
    raise AssertionError


class Recording:
    """A reply while it is made, and those who read it."""

    def __init__(self, make: Make, scope: Scope):
        self.left: Callable[[], None] = self.stop  # when its last reader has gone before its end
        self.messages: list[Message] = []
        self.readers = 0
        self._failure: PonderError | None = None  # told by a stream that had begun
        self._moved = asyncio.Event()
        self.task = asyncio.create_task(self._made(make, scope))
        self.task.add_done_callback(self._ended)

    def stop(self) -> None:
        self.task.cancel()

    @property
    def begun(self) -> bool:
        return bool(self.messages)

    async def _made(self, make: Make, scope: Scope) -> None:
        response = await make(never)
        await response(scope, never, self._take)
        if isinstance(response, EventStream):
            self._failure = response.failure

    async def _take(self, message: Message) -> None:
        self.messages.append(message)
        self._tell()

    def _tell(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # its readers raise it, if there are any
        self._tell()

    async def read(self) -> AsyncIterator[Message]:
        """The reply from its beginning. Raises what making it did."""
        n = 0
        while True:
            moved = self._moved
            while n < len(self.messages):
                yield self.messages[n]
                n += 1
            if self.task.done():
                break
            await moved.wait()
        if self.task.cancelled():
            raise StateError("the search was stopped")
        self.task.result()

    @contextmanager
    def reader(self) -> Iterator[None]:
        self.readers += 1
        try:
            yield
        finally:
            self.readers -= 1
            if not self.readers and not self.task.done():
                self.left()

    def kept(self) -> bytes | None:
        """As it is stored, now that it has ended; None for a failure, which may be tried again."""
        if self.task.cancelled():
            return None
        error = self.task.exception()
        if isinstance(error, NoAnswer):  # a search, too, and paid for
            reply = error_response(error)
            return stored(reply.status_code, reply.raw_headers, [bytes(reply.body)])
        if error is not None or not isinstance(self._failure, NoAnswer | None):
            return None
        start, *rest = self.messages
        bodies = [message["body"] for message in rest if message["body"] != PING]
        return stored(start["status"], start["headers"], bodies)


def stored(status: int, headers: list[tuple[bytes, bytes]], bodies: list[bytes]) -> bytes:
    """One line of JSON, then the body."""
    plain = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in headers]
    return json.dumps([status, plain]).encode() + b"\n" + b"".join(bodies)


def restored(reply: bytes) -> Response:
    head, _, body = reply.partition(b"\n")
    status, headers = json.loads(head)
    response = Response(body, status)
    length = [(name, value) for name, value in response.raw_headers if name == b"content-length"]
    told = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    kept = [(name, value) for name, value in told if name != b"content-length"]
    response.raw_headers = [*kept, *length, REPEATED]
    return response


class Recorded(Response):
    """Sends a recording, as far as it is made and then as it goes on."""

    def __init__(self, recording: Recording, *, repeated: bool):
        super().__init__()
        self._recording, self._repeated = recording, repeated

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = False

        async def copy() -> None:
            nonlocal began
            async for message in self._recording.read():
                began = True
                await self._sent(send, message)

        with self._recording.reader():
            try:
                await unless_gone(receive, copy())
            except ClientGone:
                if not began:
                    raise

    async def _sent(self, send: Send, message: Message) -> None:
        if message["type"] == "http.response.start" and self._repeated:
            message = {**message, "headers": [*message["headers"], REPEATED]}
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await send(_own(message))
        except TimeoutError:
            raise ClientGone("the client does not read") from None


def _own(message: Message) -> Message:
    """What goes out may be changed on its way, such as by a request's id."""
    return {**message, "headers": list(message["headers"])} if "headers" in message else message
