"""Server-sent events, as a client reads them (WHATWG HTML, 9.2.6)."""

from __future__ import annotations

import re

# A CR that ends the buffer may be half of a CRLF: it waits for the next byte.
LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")


class EventDecoder:
    """Bytes in, the data of whole events out. Comments, names, ids and retries are passed over.

    It works on bytes, because text split at Unicode's line ends would be cut inside an answer.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that `chunk` completes."""
        *lines, self._rest = LINE_END.split(self._rest + chunk)
        return [event for line in lines if (event := self._line(line)) is not None]

    def _line(self, line: bytes) -> bytes | None:
        if not line:
            data, self._data = self._data, []
            return b"\n".join(data) if data else None
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        return None
