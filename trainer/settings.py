"""A settings class from a YAML file and `key=value` words; the words win. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from trainer.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Reads 1e-5 as the number it is in YAML 1.2, and refuses a key that stands there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands there twice", key.start_mark
                )
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def load(model: type[Model], file: Path | None, words: Sequence[str] = ()) -> Model:
    """Raises `ConfigError`, which names the field and what is allowed."""
    data = _mapping(file) if file else {}
    for word in words:
        _put(data, word)
    return validated(model, data, str(file or "settings"))


def validated(model: type[Model], data: dict[str, Any], where: str) -> Model:
    try:
        # As JSON, strictly: no text for numbers, but text for paths and lists for tuples.
        return model.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        said = [
            ".".join(map(str, e["loc"]))
            + ": " * bool(e["loc"])
            + e["msg"].removeprefix("Value error, ")
            for e in error.errors()
        ]
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in said)) from error


def _mapping(file: Path) -> dict[str, Any]:
    try:
        data = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{file}: must be a mapping, not a {type(data).__name__}")
    return data


def _put(data: dict[str, Any], word: str) -> None:
    key, sign, text = word.partition("=")
    if not sign or not key:
        raise ConfigError(f"--set {word}: must be key=value, such as optimizer.learning_rate=1e-4")
    *above, last = key.split(".")
    for name in above:
        inner = data.get(name)
        data[name] = inner if isinstance(inner, dict) else {}
        data = data[name]
    try:
        data[last] = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {word}: {error}") from error
