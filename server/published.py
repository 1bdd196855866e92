"""Published weights: a folder of immutable versions, of which some are promoted.

    FOLDER/policy/VERSION/   safetensors, config, tokenizer; or an adapter
        manifest.json        what it is, what it came from, sha256 of every other file
        STABLE               when it was promoted; without it nobody serves it
    FOLDER/prm/VERSION/

A version is named by its content (`server.engine.weights.fingerprint`). Of those promoted the one
promoted last is served, so that promoting an older one again rolls back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, TypeAdapter, ValidationError

from server.errors import BadRequest

Kind = Literal["policy", "prm"]
KINDS: tuple[Kind, ...] = ("policy", "prm")
MANIFEST = "manifest.json"
STABLE = "STABLE"
VERSIONS = "[!.]*"  # what begins with a dot is being made
CHUNK = 1 << 20  # bytes
MOMENT: TypeAdapter[datetime] = TypeAdapter(AwareDatetime)


class Manifest(BaseModel):
    """What a version is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal["1"] = "1"
    kind: Kind
    version: str
    parent: str | None = None  # the version it was trained from
    base: str | None = None  # of an adapter: the full weights that it belongs to
    created_at: AwareDatetime
    files: dict[str, str]  # name below the folder -> sha256
    rows: dict[str, Any] | None = None  # what it was trained on
    config: dict[str, Any] | None = None  # how
    report: dict[str, Any] | None = None  # how it did


@dataclass(frozen=True, slots=True, order=True)
class Promoted:
    """A version that may be served. The greatest is the one promoted last."""

    at: datetime
    version: str
    folder: Path


def promoted(root: Path, kind: Kind) -> list[Promoted]:
    """The versions below `root`, the one promoted first first. What has no readable `STABLE` is
    none."""
    found = []
    for marker in (root / kind).glob(f"{VERSIONS}/{STABLE}"):
        try:
            at = MOMENT.validate_python(marker.read_text().strip())
        except (OSError, ValueError):
            continue
        found.append(Promoted(at, marker.parent.name, marker.parent))
    return sorted(found)


def seen(root: Path) -> Sequence[tuple[str, int]]:
    """What changes when a version is promoted; costs no more than a look at the markers."""
    markers = (marker for kind in KINDS for marker in (root / kind).glob(f"{VERSIONS}/{STABLE}"))
    return sorted((str(marker), _changed(marker)) for marker in markers)


def _changed(marker: Path) -> int:
    try:
        return marker.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def manifest_of(folder: Path) -> Manifest | None:
    """None if the folder has none. Raises `BadRequest`."""
    file = folder / MANIFEST
    if not file.is_file():
        return None
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise BadRequest(f"{file}: {place}: {first['msg']}", code="bad_weights") from None


def verify(folder: Path, manifest: Manifest) -> None:
    """Raises `BadRequest` if the folder's files are not those of its manifest."""
    if manifest.version != folder.name:
        message = f"{folder / MANIFEST} is that of version {manifest.version}"
        raise BadRequest(message, code="bad_weights")
    there = set(contents(folder))
    for name in sorted(there | manifest.files.keys()):
        problem = None
        if name not in there:
            problem = "is missing"
        elif name not in manifest.files:
            problem = f"is not in {MANIFEST}"
        elif sha256(folder / name) != manifest.files[name]:
            problem = f"is not the file that {MANIFEST} speaks of: its sha256 differs"
        if problem:
            raise BadRequest(f"{folder / name} {problem}", code="bad_weights")


def contents(folder: Path) -> list[str]:
    """Every file that a manifest lists."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    names = (file.relative_to(folder).as_posix() for file in files)
    return [name for name in names if name not in (MANIFEST, STABLE)]


def sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
