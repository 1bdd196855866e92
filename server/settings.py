"""Settings from a YAML file, the environment and flags; a later source wins, key by key.

A key is set by `a: {b: 1}` in the file, `PONDER_A__B=1` in the environment, `a.b=1` as a flag.
In the environment and in flags a value is text where the setting is text, and JSON where it is
not; an object takes the place of everything below its key. A path that starts with `./` or `../`
in the file is relative to the file; any other relative path, to the working directory.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError

from server.config import Settings
from server.sources import (
    Entry,
    Key,
    Schema,
    SettingsError,
    from_env,
    from_file,
    from_flags,
    models_of,
    parsed,
    schema_of,
    variable,
)

Model = TypeVar("Model", bound=BaseModel)


def load_settings(
    file: Path | None, env: Mapping[str, str], flags: Mapping[str, Any] | None = None
) -> Settings:
    """The server's."""
    return load(Settings, file, env, flags)


def load(
    model: type[Model],
    file: Path | None,
    env: Mapping[str, str],
    flags: Mapping[str, Any] | None = None,
) -> Model:
    """The settings of `file`, then `PONDER_*` of `env`, then `flags` by dotted key.

    Values of `flags` that are not text are taken as they are. Raises `SettingsError`.
    """
    schema = schema_of(model)
    given = from_file(file) if file else []
    later = [*from_env(env), *from_flags(flags or {})]
    _collect(lambda entry: _known(entry, schema), [*given, *later])
    entries = given + _collect(lambda entry: parsed(entry, schema), later)
    _refuse_switched_kinds(entries)
    return _validated(model, entries, schema)


def _collect(check: Callable[[Entry], Entry], entries: Iterable[Entry]) -> list[Entry]:
    """`check` of every entry; all of its problems in one error."""
    kept, problems = [], []
    for entry in entries:
        try:
            kept.append(check(entry))
        except SettingsError as error:
            problems += error.problems
    if problems:
        raise SettingsError(problems)
    return kept


def _known(entry: Entry, schema: Schema) -> Entry:
    key = entry.key
    parents = [key[:n] for n in range(1, len(key)) if key[:n] in schema]
    origins: list[Any] = [get_origin(kind) for parent in parents for kind in schema[parent]]
    takes_anything = dict in origins
    if key in schema or takes_anything:
        return entry
    near = difflib.get_close_matches(".".join(key), [".".join(k) for k in schema], n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    above = parents[-1] if parents else ()
    raise SettingsError([entry.problem(f"no such setting; {hint}{_allowed(above, schema)}")])


def _allowed(above: Key, schema: Schema) -> str:
    names = sorted(k[-1] for k in schema if k[:-1] == above)
    where = ".".join(above) or "the top"
    return f"allowed at {where}: {', '.join(names)}" if names else f"{where} has no parts"


def _refuse_switched_kinds(entries: list[Entry]) -> None:
    """A `kind` that two sources set differently would leave the first one's other keys behind."""
    kinds: dict[Key, Entry] = {}
    for entry in entries:
        if entry.key[-1] != "kind":
            # An object given as a whole takes the place of what stood there.
            kinds = {k: e for k, e in kinds.items() if k[: len(entry.key)] != entry.key}
            continue
        first = kinds.setdefault(entry.key, entry)
        if first.value != entry.value:
            raise SettingsError([_switched(first, entry)])


def _switched(first: Entry, second: Entry) -> str:
    whole = variable(second.key[:-1])
    return second.problem(
        f"{second.value!r}, but {first.source} says {first.value!r}, and its other keys belong "
        f"to that kind; change it there, or replace all of it, as in "
        f"""{whole}='{{"kind": "{second.value}", ...}}'"""
    )


def _merged(entries: Iterable[Entry]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for entry in entries:
        branch = tree
        for name in entry.key[:-1]:
            if not isinstance(branch.get(name), dict):
                branch[name] = {}
            branch = branch[name]
        branch[entry.key[-1]] = entry.value
    return tree


def _validated(model: type[Model], entries: list[Entry], schema: Schema) -> Model:
    # Strict JSON rules: no text for numbers, no numbers for booleans, but lists for tuples.
    text = json.dumps(_merged(entries), default=str)
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        raise SettingsError(
            [_told(d["type"], d["loc"], d["msg"], entries, schema) for d in details]
        ) from None


def _told(
    kind: str, loc: tuple[int | str, ...], text: str, entries: list[Entry], schema: Schema
) -> str:
    key = _without_tags(loc, schema)
    if kind == "extra_forbidden":
        above = tuple(part for part in key[:-1] if not part.isdecimal())
        text = f"no such setting; {_allowed(above, schema)}"
        if len(loc) > len(key):
            text = (
                f"not a setting of kind {loc[-2]!r}; {_allowed_of(str(loc[-2]), key[:-1], schema)}"
            )
    return Entry(key, None, _source(key, entries)).problem(text)


def _allowed_of(kind: str, above: Key, schema: Schema) -> str:
    models = (model for annotation in schema[above] for model in models_of(annotation))
    fields = next(m.model_fields for m in models if m.model_fields["kind"].default == kind)
    return f"allowed: {', '.join(sorted(fields))}"


def _without_tags(loc: tuple[int | str, ...], schema: Schema) -> Key:
    """The key of an error's place, in which pydantic also names the kind of a union's member."""
    key: Key = ()
    parts = iter(loc)
    for part in parts:
        key = (*key, str(part))
        kinds = {model for annotation in schema.get(key, []) for model in models_of(annotation)}
        if len(kinds) > 1:
            next(parts, None)
    return key


def _source(key: Key, entries: list[Entry]) -> str:
    """Who last set the key, or what it is a part of."""
    for n in range(len(key), 0, -1):
        for entry in reversed(entries):
            if entry.key == key[:n]:
                return entry.source
    return f"set nowhere; in the environment it is {variable(key)}"
