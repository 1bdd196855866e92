"""The layout of published weights."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.errors import BadRequest
from server.published import (
    MANIFEST,
    STABLE,
    Kind,
    Manifest,
    contents,
    manifest_of,
    promoted,
    seen,
    sha256,
    verify,
)

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def publish(root: Path, version: str, kind: Kind = "policy", at: datetime | None = NOON) -> Path:
    """A version with one file; promoted if it has a time."""
    folder = root / kind / version
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(version.encode())
    files = {name: sha256(folder / name) for name in contents(folder)}
    made = Manifest(kind=kind, version=version, created_at=NOON, files=files)
    (folder / MANIFEST).write_text(made.model_dump_json())
    if at is not None:
        promote(folder, at)
    return folder


def test_what_is_being_copied_is_no_version(tmp_path: Path) -> None:
    publish(tmp_path, "a")
    publish(tmp_path, ".b.77.partial", at=NOON + timedelta(hours=1))
    assert [p.version for p in promoted(tmp_path, "policy")] == ["a"]
    assert len(seen(tmp_path)) == 1


def promote(folder: Path, at: datetime) -> None:
    (folder / STABLE).write_text(at.isoformat())
    os.utime(folder / STABLE, (at.timestamp(), at.timestamp()))


def test_the_version_promoted_last_comes_last(tmp_path: Path) -> None:
    first = publish(tmp_path, "a")
    publish(tmp_path, "b", at=NOON + timedelta(hours=1))
    publish(tmp_path, "c", at=None)
    publish(tmp_path, "d", "prm", NOON + timedelta(hours=2))
    assert [p.version for p in promoted(tmp_path, "policy")] == ["a", "b"]
    promote(first, NOON + timedelta(hours=3))
    assert [p.version for p in promoted(tmp_path, "policy")] == ["b", "a"]
    assert [p.version for p in promoted(tmp_path, "prm")] == ["d"]


def test_a_promotion_is_seen(tmp_path: Path) -> None:
    before = seen(tmp_path)
    folder = publish(tmp_path, "a", at=None)
    assert seen(tmp_path) == before == []
    promote(folder, NOON)
    once = seen(tmp_path)
    promote(folder, NOON + timedelta(seconds=1))
    assert len(once) == 1 and seen(tmp_path) != once


@pytest.mark.parametrize("text", ["", "yesterday", "2026-01-31T12:00:00"])
def test_a_marker_without_a_time_promotes_nothing(tmp_path: Path, text: str) -> None:
    (publish(tmp_path, "a", at=None) / STABLE).write_text(text)
    assert promoted(tmp_path, "policy") == []


def test_a_whole_version_is_verified(tmp_path: Path) -> None:
    folder = publish(tmp_path, "a")
    manifest = manifest_of(folder)
    assert manifest is not None and manifest.files.keys() == {"model.safetensors"}
    verify(folder, manifest)


def test_what_is_not_as_its_manifest_says_is_refused_by_name(tmp_path: Path) -> None:
    def refused(folder: Path, what: str) -> None:
        manifest = manifest_of(folder)
        assert manifest is not None
        with pytest.raises(BadRequest, match=what) as error:
            verify(folder, manifest)
        assert error.value.code == "bad_weights"

    for version in "abcd":
        publish(tmp_path, version)
    of = {version: tmp_path / "policy" / version for version in "abcd"}
    (of["a"] / "model.safetensors").write_bytes(b"other")
    refused(of["a"], "a/model.safetensors is not the file .* sha256")
    (of["b"] / "model.safetensors").unlink()
    refused(of["b"], "b/model.safetensors is missing")
    (of["c"] / "model-2.safetensors").write_bytes(b"more")
    refused(of["c"], "c/model-2.safetensors is not in manifest.json")
    refused(of["d"].rename(tmp_path / "policy" / "e"), "is that of version d")


@pytest.mark.parametrize(
    ("text", "what"),
    [("{", "Invalid JSON"), ("{}", ": kind: "), ('{"kind": "policy"}', ": version: ")],
)
def test_an_unreadable_manifest_is_refused(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BadRequest, match=f"{MANIFEST}.*{what}"):
        manifest_of(tmp_path)


def test_without_a_manifest_there_is_none(tmp_path: Path) -> None:
    assert manifest_of(tmp_path) is None
