"""A folder of weights, looked over before a running engine is given any of them.

What an engine that runs can take is what it has the shape of: weights of the same architecture,
for the same tokenizer, whole, and those that their manifest speaks of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from server.engine.tokenizer import HFTokenizer
from server.engine.weights import fingerprint
from server.errors import BadRequest
from server.published import manifest_of, verify

ADAPTER = "adapter_config.json"
# What a config says that changes nothing of what a running engine computes.
IDLE = frozenset(
    {
        *("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"),
        *("initializer_range", "attention_dropout", "hidden_dropout", "classifier_dropout"),
        *("id2label", "label2id", "return_dict", "output_hidden_states"),
    }
)

Shapes = Mapping[str, tuple[int, ...]]  # of the tensors, by name


class BadWeights(BadRequest):
    """Weights that are not what they should be, or that this server cannot take."""

    code = "bad_weights"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights that can be loaded."""

    folder: Path
    version: str
    architecture: str
    tensors: Shapes
    quantized: bool = False
    rank: int | None = None  # of a LoRA adapter; None: these are full weights
    base: str | None = None  # version of the weights that an adapter was made for, if it says so


def look_over(folder: Path, kind: str, serving: str, tokenizer: HFTokenizer) -> Checkpoint:
    """The weights in `folder`, as those that take the place of the `kind` (policy or prm) of the
    model at `serving`. Reads every byte of them if they have a manifest. Raises `BadWeights`."""
    if not folder.is_dir():
        raise BadWeights(f"{folder} is not a folder")
    manifest = manifest_of(folder)
    if manifest is not None:
        if manifest.kind != kind:
            raise BadWeights(f"{folder} holds a {manifest.kind}, not a {kind}")
        verify(folder, manifest)
    version = manifest.version if manifest else fingerprint(str(folder))
    if (folder / ADAPTER).is_file():
        return _adapter(folder, version, manifest.base if manifest else None)
    shapes = shapes_of(folder)
    _same_config(folder, serving)
    _same_shapes(folder, shapes, serving)
    _same_tokenizer(folder, tokenizer)
    config = _config(folder)
    names = config.get("architectures") or ["unknown"]
    quantized = config.get("quantization_config") is not None
    return Checkpoint(folder, version, str(names[0]), shapes, quantized)


def _adapter(folder: Path, version: str, base: str | None) -> Checkpoint:
    config = _json(folder / ADAPTER)
    rank = config.get("r")
    if config.get("peft_type") != "LORA" or not isinstance(rank, int):
        raise BadWeights(f"{folder / ADAPTER}: not a LoRA adapter with a rank r")
    return Checkpoint(folder, version, "adapter", shapes_of(folder), rank=rank, base=base)


def shapes_of(folder: Path) -> Shapes:
    """Of every tensor in the folder's safetensors. Raises `BadWeights` on a file that is torn."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BadWeights(f"{folder} holds no .safetensors")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes |= _shapes(file)
    return shapes


def _shapes(file: Path) -> Shapes:
    """The format: 8 bytes of the header's length, a JSON header, the tensors without gaps."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= size - 8:
            raise BadWeights(f"{file} is torn: its header is not whole")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            shapes = {name: tuple(t["shape"]) for name, t in header.items()}
            end = max((t["data_offsets"][1] for t in header.values()), default=0)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadWeights(f"{file}: its header cannot be read: {error}") from None
    if size != 8 + length + end:
        raise BadWeights(f"{file} is torn: it has {size} bytes of {8 + length + end}")
    return shapes


def _same_config(folder: Path, serving: str) -> None:
    new, old = _config(folder), _config(Path(serving))
    for name in ("architectures", "model_type", *sorted(new.keys() | old.keys())):
        if name not in IDLE and new.get(name) != old.get(name):
            raise BadWeights(
                f"{folder}/config.json: {name} is {new.get(name)!r}, "
                f"and {old.get(name)!r} in what is served"
            )


def _same_shapes(folder: Path, shapes: Shapes, serving: str) -> None:
    if not list(Path(serving).glob("*.safetensors")):
        return  # a hub name, or another format: the config must do
    served = shapes_of(Path(serving))
    for name in sorted(shapes.keys() | served.keys()):
        if name not in shapes:
            raise BadWeights(f"{folder} lacks the tensor {name}")
        if name not in served:
            raise BadWeights(f"{folder} has a tensor {name}, which what is served lacks")
        if shapes[name] != served[name]:
            raise BadWeights(
                f"{folder}: {name} has shape {list(shapes[name])}, "
                f"and {list(served[name])} in what is served"
            )


def _same_tokenizer(folder: Path, tokenizer: HFTokenizer) -> None:
    if not (folder / "tokenizer.json").is_file():
        raise BadWeights(f"{folder} has no tokenizer.json")
    new = HFTokenizer(str(folder))
    for what in ("sha", "template_sha", "eos_ids"):
        if getattr(new, what) != getattr(tokenizer, what):
            names = {"sha": "vocabulary", "template_sha": "chat template", "eos_ids": "end tokens"}
            raise BadWeights(f"{folder}: its {names[what]} is not that of what is served")


def _config(folder: Path) -> dict[str, Any]:
    """With what transformers takes where it says nothing."""
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BadWeights(f"{folder}/config.json: {error}") from None
    found: dict[str, Any] = config.to_dict()
    return found


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise BadWeights(f"{file}: {error}") from None
    if not isinstance(value, dict):
        raise BadWeights(f"{file}: not a JSON object")
    return value
