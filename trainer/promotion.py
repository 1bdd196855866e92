"""Versions of weights in a folder that servers follow (`server.published`): made, promoted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from server.published import (
    KINDS,
    MANIFEST,
    STABLE,
    VERSIONS,
    Kind,
    Manifest,
    Promoted,
    contents,
    manifest_of,
    promoted,
    sha256,
    verify,
)
from trainer.errors import DataError, ReloadError

SECONDS = 600.0  # that a server may take to drain its searches and load


def newest(root: Path) -> dict[Kind, Promoted]:
    """What servers that follow `root` serve."""
    found = {kind: promoted(root, kind) for kind in KINDS}
    return {kind: versions[-1] for kind, versions in found.items() if versions}


def install(root: Path, source: Path, kind: Kind, version: str, **told: Any) -> Path:
    """The weights in `source` as a version, whole and durable or not there; `told` are further
    fields of its manifest. One that is there already is left as it is. Raises `DataError`."""
    folder = root / kind / version
    if folder.exists():
        _check(folder)
        return folder
    partial = folder.with_name(f".{version}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns(MANIFEST, STABLE))
        files = {name: sha256(partial / name) for name in contents(partial)}
        manifest = Manifest(
            kind=kind, version=version, created_at=datetime.now(UTC), files=files, **told
        )
        (partial / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
        _sync(partial)
        os.replace(partial, folder)
        _sync_folder(folder.parent)
    except OSError as error:
        raise DataError(f"{folder}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def promote(folder: Path) -> None:
    """From now on servers that follow serve it; also again, which rolls back to it. Raises
    `DataError` if it is not whole."""
    _check(folder)
    temporary = folder.with_name(f".{folder.name}.{STABLE}.{os.getpid()}")
    temporary.write_text(datetime.now(UTC).isoformat() + "\n")
    os.replace(temporary, folder / STABLE)
    _sync_folder(folder)


def find(root: Path, version: str) -> tuple[Kind, Path]:
    """A version by its name or an unambiguous beginning of it. Raises `DataError`."""
    every = [(k, f) for k in KINDS for f in sorted((root / k).glob(VERSIONS)) if f.is_dir()]
    found = [(k, f) for k, f in every if f.name.startswith(version)]
    if len(found) != 1:
        there = ", ".join(f"{k} {f.name}" for k, f in every) or "none"
        problem = "no such version" if not found else "several versions begin so"
        raise DataError(f"{root}: {version}: {problem}; there are {there}")
    return found[0]


def tell(url: str, key: str | None, versions: Mapping[Kind, Path]) -> dict[str, Any]:
    """Have a server go over to these, if it does not follow by itself; what it serves then.
    Raises `ReloadError`."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    address = f"{url.rstrip('/').removesuffix('/v1')}/v1/weights"
    try:
        body = {kind: str(folder.resolve()) for kind, folder in versions.items()}
        reply = httpx.post(address, json=body, headers=headers, timeout=SECONDS)
        said = reply.json()
    except (httpx.HTTPError, ValueError) as error:
        raise ReloadError(f"{address}: {type(error).__name__}: {error}") from error
    if reply.is_error:
        message = (said.get("error") or {}).get("message", reply.text[:500])
        raise ReloadError(f"{address}: HTTP {reply.status_code}: {message}")
    serving: dict[str, Any] = said
    return serving


def _check(folder: Path) -> None:
    manifest = manifest_of(folder)
    if manifest is None:
        raise DataError(f"{folder} has no {MANIFEST}: it is no published version")
    verify(folder, manifest)


def _sync(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
