"""Weights are looked over before an engine is given any of them."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from server.engine.checkpoint import BadWeights, look_over, shapes_of
from server.engine.tokenizer import HFTokenizer
from server.engine.weights import fingerprint
from server.published import MANIFEST, Manifest, contents, sha256

POLICY = Path(__file__).parents[1] / "models" / "policy"
WEIGHTS = "model.safetensors"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def tokenizer() -> HFTokenizer:
    return HFTokenizer(str(POLICY))


def copied(folder: Path, change: Callable[[Tensors], Any] | None = None) -> Path:
    shutil.copytree(POLICY, folder)
    tensors = load_file(folder / WEIGHTS)
    if change is not None:
        change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def manifested(folder: Path, kind: Any = "policy") -> Path:
    """Under the name of its version."""
    version = fingerprint(str(folder))
    folder = folder.rename(folder.parent / version)
    files = {name: sha256(folder / name) for name in contents(folder)}
    made = Manifest(kind=kind, version=version, created_at=datetime.now(UTC), files=files)
    (folder / MANIFEST).write_text(made.model_dump_json())
    return folder


def config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def halve(tensors: Tensors) -> None:
    for tensor in tensors.values():
        tensor *= 0.5


def test_other_weights_of_the_same_kind_are_taken(tmp_path: Path, tokenizer: HFTokenizer) -> None:
    folder = copied(tmp_path / "new", halve)
    config(folder, transformers_version="9.9", dtype="float32", use_cache=False)
    found = look_over(folder, "policy", str(POLICY), tokenizer)
    assert found.version == fingerprint(str(folder)) != fingerprint(str(POLICY))
    assert found.rank is None and found.tensors == shapes_of(POLICY)
    published = manifested(folder)
    assert look_over(published, "policy", str(POLICY), tokenizer).version == published.name


def test_what_transformers_saved_is_taken(tmp_path: Path, tokenizer: HFTokenizer) -> None:
    folder = copied(tmp_path / "new")
    model = AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    found = look_over(folder, "policy", str(POLICY), tokenizer)
    assert found.tensors == shapes_of(POLICY)


def missing(tensors: Tensors) -> None:
    tensors.pop("model.norm.weight")


def extra(tensors: Tensors) -> None:
    tensors["model.more.weight"] = torch.zeros(2)


def other_shape(tensors: Tensors) -> None:
    tensors["model.norm.weight"] = torch.zeros(7)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (missing, r"lacks the tensor model\.norm\.weight"),
        (extra, r"has a tensor model\.more\.weight"),
        (other_shape, r"model\.norm\.weight has shape \[7\], and \[\d+\]"),
    ],
)
def test_other_tensors(
    tmp_path: Path, tokenizer: HFTokenizer, change: Callable[[Tensors], None], what: str
) -> None:
    with pytest.raises(BadWeights, match=what):
        look_over(copied(tmp_path / "new", change), "policy", str(POLICY), tokenizer)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, "architectures is"),
        ({"num_attention_heads": 6, "head_dim": 32}, "head_dim is 32"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05"),
        ({"model_type": "qwen2"}, "model_type is 'qwen2'"),
    ],
)
def test_another_architecture(
    tmp_path: Path, tokenizer: HFTokenizer, changes: dict[str, Any], what: str
) -> None:
    folder = copied(tmp_path / "new")
    config(folder, **changes)
    with pytest.raises(BadWeights, match=what):
        look_over(folder, "policy", str(POLICY), tokenizer)


def test_another_vocabulary(tmp_path: Path, tokenizer: HFTokenizer) -> None:
    folder = copied(tmp_path / "new")
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text())
    data["added_tokens"][0]["content"] = "<other>"
    file.write_text(json.dumps(data))
    with pytest.raises(BadWeights, match="vocabulary is not"):
        look_over(folder, "policy", str(POLICY), tokenizer)
    file.unlink()
    with pytest.raises(BadWeights, match=r"has no tokenizer\.json"):
        look_over(folder, "policy", str(POLICY), tokenizer)


def test_another_chat_template(tmp_path: Path, tokenizer: HFTokenizer) -> None:
    folder = copied(tmp_path / "new")
    with (folder / "chat_template.jinja").open("a") as file:
        file.write("more")
    with pytest.raises(BadWeights, match="chat template is not"):
        look_over(folder, "policy", str(POLICY), tokenizer)


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_torn_weights(tmp_path: Path, tokenizer: HFTokenizer, keep: int) -> None:
    folder = copied(tmp_path / "new")
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(BadWeights, match=f"{WEIGHTS} is torn"):
        look_over(folder, "policy", str(POLICY), tokenizer)


@pytest.mark.parametrize("header", [b"[1, 2]", b'{"a": 1}', b'{"a": {"shape": [1]}}', b"{not"])
def test_a_header_that_is_none(tmp_path: Path, header: bytes) -> None:
    (tmp_path / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(BadWeights, match="header cannot be read"):
        shapes_of(tmp_path)


def test_what_its_manifest_does_not_speak_of(tmp_path: Path, tokenizer: HFTokenizer) -> None:
    folder = manifested(copied(tmp_path / "new", halve))
    save_file(load_file(POLICY / WEIGHTS), folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(Exception, match="sha256") as error:
        look_over(folder, "policy", str(POLICY), tokenizer)
    assert getattr(error.value, "code", None) == "bad_weights"


def test_the_other_kind(tmp_path: Path, tokenizer: HFTokenizer) -> None:
    folder = manifested(copied(tmp_path / "new"), "prm")
    with pytest.raises(BadWeights, match="holds a prm, not a policy"):
        look_over(folder, "policy", str(POLICY), tokenizer)


def test_no_weights_at_all(tmp_path: Path, tokenizer: HFTokenizer) -> None:
    with pytest.raises(BadWeights, match="is not a folder"):
        look_over(tmp_path / "none", "policy", str(POLICY), tokenizer)
    with pytest.raises(BadWeights, match=r"holds no \.safetensors"):
        look_over(tmp_path, "policy", str(POLICY), tokenizer)


def test_an_adapter(tmp_path: Path, tokenizer: HFTokenizer) -> None:
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    weights = tmp_path / "adapter_model.safetensors"
    save_file({"a": torch.zeros(8, 4)}, weights)
    found = look_over(tmp_path, "policy", str(POLICY), tokenizer)
    assert (found.rank, found.base) == (8, None)
    file.write_text(json.dumps({"peft_type": "LORA", "r": 16}))
    assert look_over(tmp_path, "policy", str(POLICY), tokenizer).version != found.version
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BadWeights, match="torn"):
        look_over(tmp_path, "policy", str(POLICY), tokenizer)
    file.write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(BadWeights, match="not a LoRA adapter"):
        look_over(tmp_path, "policy", str(POLICY), tokenizer)
