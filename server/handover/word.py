"""What is said between a gateway and a server of ours that follows announcements.

GET  /v1/weights         -> Word
POST /v1/weights/holds   Hold -> Word    holds what it serves for so many seconds; 0: lets go
any other POST with PIN  409 if it serves other weights than those
"""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from server.published import Kind

ROUTE = "/v1/weights"
HOLDS = "/v1/weights/holds"
PIN = "x-ponder-weights"  # the header that names the version that a search is pinned to
LONGEST = 300.0  # seconds of a hold that is not renewed


class Hold(BaseModel):
    """A gateway's searches need these weights here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    holder: str = Field(min_length=1, max_length=64)
    version: str = Field(min_length=1, max_length=256)
    seconds: float = Field(ge=0, le=LONGEST)


class Word(BaseModel):
    """What a server says of its weights. A newer one may say more."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    object: Literal["weights"] = "weights"
    part: Kind
    version: str  # that it serves
    folder: str
    coming: str | None = None  # that it will serve as soon as nobody holds what it serves
    at: AwareDatetime | None = None  # when what is coming was promoted, or else what it serves
    refused: dict[str, str] = {}  # versions that it will not serve, and why
    holders: int = 0
    held: bool = False  # by who asked

    @property
    def goal(self) -> str:
        return self.coming or self.version
