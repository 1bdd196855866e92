"""What a settings file, the environment and flags say, as one list of keys and values each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, SecretStr

PREFIX = "PONDER_"
# Read by the set-up and the command line, not settings of the server.
OTHER_VARIABLES = frozenset(
    {"PONDER_EXTRA", "PONDER_CONFIG", "PONDER_URL", "PONDER_API_KEY", "PONDER_ADMIN_KEY"}
)

Key = tuple[str, ...]
Schema = dict[Key, list[Any]]  # the annotations of each key: one for each kind of engine


class SettingsError(Exception):
    """Settings that cannot be used; `problems` names each field, its source, what is allowed."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as one source gave it."""

    key: Key
    value: Any
    source: str

    def problem(self, text: str) -> str:
        return f"{'.'.join(self.key)} ({self.source}): {text}"


def variable(key: Key) -> str:
    return PREFIX + "__".join(key).upper()


def from_env(env: Mapping[str, str]) -> list[Entry]:
    """Every `PONDER_A__B` as the key `a.b`; values are still text."""
    return [
        Entry(tuple(name.removeprefix(PREFIX).lower().split("__")), value, f"environment, {name}")
        for name, value in sorted(env.items())
        if name.startswith(PREFIX) and name not in OTHER_VARIABLES
    ]


def from_flags(flags: Mapping[str, Any]) -> list[Entry]:
    return [Entry(tuple(k.split(".")), value, f"flag, {k}") for k, value in flags.items()]


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping that says a key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands there twice", key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep=deep)


def from_file(file: Path) -> list[Entry]:
    """Raises `SettingsError` for what is not a YAML mapping with unique keys."""
    try:
        # A SafeLoader: it builds plain data only.
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError([f"{file}: {error}"]) from error
    if not isinstance(content, dict | None):
        raise SettingsError([f"{file}: must be a mapping, not a {type(content).__name__}"])
    return [Entry(key, _path(file, value), str(file)) for key, value in _leaves(content or {})]


def _path(file: Path, value: Any) -> Any:
    if isinstance(value, str) and value.startswith(("./", "../")):
        return str((file.parent / value).resolve())
    return value


def _leaves(tree: Mapping[Any, Any], above: Key = ()) -> Iterator[tuple[Key, Any]]:
    for name, value in tree.items():
        key = (*above, str(name))
        if isinstance(value, dict) and value:
            yield from _leaves(value, key)
        else:
            yield key, value


def schema_of(model: type[BaseModel], above: Key = ()) -> Schema:
    """Every key that can be set, at every depth."""
    schema: Schema = {}
    for name, info in model.model_fields.items():
        key = (*above, name)
        schema.setdefault(key, []).append(info.annotation)
        for inner in models_of(info.annotation):
            for below, kinds in schema_of(inner, key).items():
                schema.setdefault(below, []).extend(kinds)
    return schema


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in models_of(inner)]


def _is_text(annotation: Any) -> bool:
    origin: Any = get_origin(annotation)
    if origin in (Union, UnionType, Annotated):
        return any(_is_text(inner) for inner in get_args(annotation))
    return annotation in (str, Path, SecretStr) or origin is Literal


def _takes_null(annotation: Any) -> bool:
    return annotation is type(None) or any(_takes_null(inner) for inner in get_args(annotation))


def parsed(entry: Entry, schema: Schema) -> Entry:
    """`entry` with its text as a value: as it is where the setting is text, else from JSON."""
    if not isinstance(entry.value, str):
        return entry
    annotations = schema.get(entry.key, [])
    if any(map(_is_text, annotations)):
        null = entry.value == "null" and any(map(_takes_null, annotations))
        return Entry(entry.key, None if null else entry.value, entry.source)
    try:
        return Entry(entry.key, json.loads(entry.value), entry.source)
    except ValueError as error:
        text = f'must be JSON, such as 1, true, null, "text", [] or {{}}: {error}'
        raise SettingsError([entry.problem(text)]) from error
