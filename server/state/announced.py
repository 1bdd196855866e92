"""Which version of a part is to serve, as it was announced: every replica follows it.

A hash, PREFIXweights: by part the version that was promoted last, and when. It is read every few
seconds rather than listened to, so that nobody misses one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, StringConstraints, ValidationError

from server.errors import StateError
from server.published import KINDS, Kind
from server.state.connection import Connection

KEY = "weights"


class Announcement(BaseModel):
    """A version was promoted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Annotated[str, StringConstraints(pattern=r"^[\w.-]{1,128}$")]
    at: AwareDatetime


class Announced:
    """What is announced in Redis. Raises `StateError`."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._key = connection.key(KEY)

    async def announce(self, part: Kind, announcement: Announcement) -> None:
        with self._connection.asking("announcing weights") as redis:
            await redis.hset(self._key, part, announcement.model_dump_json())

    async def all(self) -> Mapping[Kind, Announcement]:
        with self._connection.asking("reading announced weights") as redis:
            found = await redis.hmget(self._key, list(KINDS))
        return {
            part: self._read(part, text)
            for part, text in zip(KINDS, found, strict=True)
            if text is not None
        }

    def _read(self, part: Kind, text: bytes | str) -> Announcement:
        try:
            return Announcement.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise StateError(f"{self._key}, field {part}: {place}: {first['msg']}") from None
