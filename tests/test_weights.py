"""A model's version changes with its weights and config, and with nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.engine import weights
from server.engine.weights import fingerprint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 64)
    return tmp_path


def test_it_follows_the_weights(model: Path) -> None:
    before = fingerprint(str(model))
    (model / "README.md").write_text("words")
    assert fingerprint(str(model)) == before
    (model / "config.json").write_text('{"a": 1}')
    changed = fingerprint(str(model))
    (model / "model.safetensors").write_bytes(bytes(range(256)) * 63 + bytes(256))
    assert len({before, changed, fingerprint(str(model))}) == 3


def test_a_large_model_is_read_at_its_ends(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "WHOLE", 1024)
    monkeypatch.setattr(weights, "END", 256)
    before = fingerprint(str(model))
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (model / "model.safetensors").write_bytes(data)
    assert fingerprint(str(model)) != before
