"""Versions: whole or not there, promoted, rolled back."""

from __future__ import annotations

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from server.engine.checkpoint import look_over
from server.engine.tokenizer import HFTokenizer
from server.engine.weights import fingerprint
from server.errors import PonderError
from server.published import STABLE, manifest_of, promoted, verify
from trainer import publish
from trainer.__main__ import app
from trainer.errors import ConfigError, DataError, ReloadError, TrainerError
from trainer.promotion import find, newest, promote, tell

WEIGHTS = "model.safetensors"


def changed(model: Path, folder: Path, factor: float = 0.5) -> Path:
    shutil.copytree(model, folder)
    tensors = {n: t * factor for n, t in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def run(*words: str) -> Any:
    return CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=True)


def published(root: Path, model: Path, *more: str) -> str:
    """By the command; the version."""
    ran = run("publish", "--policy", str(model), "--to", str(root), "--ungated", *more)
    assert ran.exit_code == 0, ran.output + str(ran.exception)
    return newest(root)["policy"].version


def test_a_model_becomes_a_version_that_a_server_takes(model: Path, tmp_path: Path) -> None:
    root, new = tmp_path / "weights", changed(model, tmp_path / "new")
    first = published(root, model)
    second = published(root, new)
    assert (first, second) == (fingerprint(str(model)), fingerprint(str(new)))
    folder = root / "policy" / second
    manifest = manifest_of(folder)
    assert manifest is not None
    assert (manifest.version, manifest.parent, manifest.kind) == (second, first, "policy")
    verify(folder, manifest)
    assert look_over(folder, "policy", str(model), HFTokenizer(str(model))).version == second
    assert sorted(p.name for p in (root / "policy").iterdir()) == sorted([first, second])


def test_a_policy_and_the_prm_for_it_are_published_together(model: Path, tmp_path: Path) -> None:
    root, prm = tmp_path / "weights", changed(model, tmp_path / "prm")
    published(root, model, "--prm", str(prm))
    now = {kind: found.version for kind, found in newest(root).items()}
    assert now == {"policy": fingerprint(str(model)), "prm": fingerprint(str(prm))}


def test_publishing_the_same_again_promotes_it_again(model: Path, tmp_path: Path) -> None:
    root, new = tmp_path / "weights", changed(model, tmp_path / "new")
    first = published(root, model)
    published(root, new)
    assert published(root, model) == first
    assert len(promoted(root, "policy")) == 2


def test_rollback(model: Path, tmp_path: Path) -> None:
    root, new = tmp_path / "weights", changed(model, tmp_path / "new")
    first, second = published(root, model), published(root, new)
    assert newest(root)["policy"].version == second
    ran = run("rollback", "--to", first[:6], "--weights", str(root))
    assert ran.exit_code == 0 and first in ran.output
    assert newest(root)["policy"].version == first
    with pytest.raises(DataError, match=f"no such version; there are policy .*{first}"):
        find(root, "nothing")
    with pytest.raises(DataError, match="several versions"):
        find(root, "")


def test_what_was_changed_is_not_promoted(model: Path, tmp_path: Path) -> None:
    root = tmp_path / "weights"
    folder = root / "policy" / published(root, model)
    (folder / STABLE).unlink()
    (folder / WEIGHTS).write_bytes(b"other")
    with pytest.raises(PonderError, match="sha256"):
        promote(folder)
    assert not (folder / STABLE).exists()


def finished(folder: Path, model: Path) -> Path:
    """A run's folder as `train` leaves it."""
    shutil.copytree(model, folder / "model")
    (folder / "settings.json").write_text(json.dumps({"model": str(model), "seed": 3}))
    facts = {"kind": "tokens", "rows": 7, "log": [1, 2]}
    (folder / "report.json").write_text(json.dumps(facts))
    return folder


def test_a_run_tells_what_it_was_trained_on(model: Path, tmp_path: Path) -> None:
    root = tmp_path / "weights"
    version = published(root, finished(tmp_path / "run", model))
    manifest = manifest_of(root / "policy" / version)
    assert manifest is not None
    assert manifest.rows == {"kind": "tokens", "rows": 7}
    assert manifest.config == {"model": str(model), "seed": 3}
    assert version == fingerprint(str(model))


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda f: (f / "report.json").unlink(), "not finished"),
        (lambda f: shutil.rmtree(f / "model"), "neither a model nor an adapter"),
        (lambda f: (f / "report.json").write_text("["), "report.json"),
        (lambda f: (f / "model" / WEIGHTS).unlink(), "no .safetensors"),
        (lambda f: (f / "model" / WEIGHTS).write_bytes(b"torn"), WEIGHTS),
    ],
)
def test_what_cannot_be_published(model: Path, tmp_path: Path, spoil: Any, what: str) -> None:
    folder, root = finished(tmp_path / "run", model), tmp_path / "weights"
    spoil(folder)
    ran = run("publish", "--policy", str(folder), "--to", str(root), "--ungated")
    assert isinstance(ran.exception, DataError) and what in str(ran.exception)
    assert not root.exists()


def test_a_weight_that_is_no_number(model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "new")
    tensors = load_file(folder / WEIGHTS)
    name = sorted(tensors)[-1]
    tensors[name].flatten()[0] = torch.nan
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(DataError, match=f"{name} has weights that are NaN"):
        publish.check_finite(folder)


@pytest.mark.parametrize(
    "words",
    [
        ("--ungated",),
        ("--policy", "."),
        ("--policy", ".", "--config", "x.yaml", "--ungated"),
    ],
)
def test_what_is_asked_must_be_clear(tmp_path: Path, words: tuple[str, ...]) -> None:
    ran = run("publish", "--to", str(tmp_path), *words)
    assert isinstance(ran.exception, ConfigError)


def test_what_cannot_be_copied_leaves_nothing(model: Path, tmp_path: Path) -> None:
    root = tmp_path / "weights"
    (root / "policy").mkdir(parents=True)
    folder = changed(model, tmp_path / "new")
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="No such file"):
        publish.publish(root, folder, "policy", None, {})
    assert list((root / "policy").iterdir()) == []


class Answers(BaseHTTPRequestHandler):
    seen: list[Any]
    status = 200

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        type(self).seen.append((self.path, self.headers["authorization"], body))
        said = {"policy": {"version": "x"}} if self.status == 200 else {"error": {"message": "no"}}
        data = json.dumps(said).encode()
        self.send_response(self.status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None: ...


@pytest.mark.parametrize("status", [200, 400])
def test_a_server_is_told(tmp_path: Path, status: int) -> None:
    handler: Any = type("Handler", (Answers,), {"seen": [], "status": status})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        if status == 200:
            assert tell(url, "key", {"policy": tmp_path}) == {"policy": {"version": "x"}}
        else:
            with pytest.raises(ReloadError, match="HTTP 400: no"):
                tell(url, "key", {"policy": tmp_path})
        thread.join()
        assert handler.seen == [("/v1/weights", "Bearer key", {"policy": str(tmp_path)})]
    with pytest.raises(TrainerError, match="/v1/weights"):
        tell(url, None, {"policy": tmp_path})
