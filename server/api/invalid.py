"""pydantic's validation errors as one sentence that names the parameter and what is allowed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from server.errors import BadRequest

Location = Sequence[int | str]
Schema = dict[str, Any]


def explain(error: ValidationError, model: type[BaseModel], value: Any) -> BadRequest:
    """One problem of `value`, which is no `model`: the deepest, so that of a union's members
    it is told of the one it came closest to."""
    places = defaultdict(list)
    for detail in error.errors(include_url=False, include_input=False):
        places[path(detail["loc"], value, detail["type"])].append(detail)
    place, details = max(places.items(), key=lambda found: len(found[0]))
    if details[0]["type"].startswith("union_tag"):
        place = (*place, "kind")
    param = ".".join(place)
    return BadRequest(_message(details, param, model), param=param or None)


def path(location: Location, value: Any, kind: str) -> tuple[str, ...]:
    """Where in `value` the problem is: pydantic's location less the names of union members."""
    parts: tuple[str, ...] = ()
    for i, part in enumerate(location):
        if isinstance(value, dict) and part in value:
            value = value[str(part)]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        elif kind != "missing" or i < len(location) - 1:
            continue
        parts = (*parts, str(part))
    return parts


def _message(details: list[ErrorDetails], param: str, model: type[BaseModel]) -> str:
    kind, location = details[0]["type"], details[0]["loc"]
    if kind == "missing":
        return f"Missing required parameter: '{param}'."
    if kind == "extra_forbidden":
        allowed = ", ".join(sorted(fields(model, location[:-1])))
        return f"Unknown parameter: '{param}'. Allowed here: {allowed}."
    if kind.startswith("union_tag"):
        return f"'{param}' must be one of: {', '.join(sorted(_tags(model, location)))}."
    text = " or ".join(dict.fromkeys(_text(detail) for detail in details))
    return f"Invalid value for '{param}': {text}." if param else f"Invalid body: {text}."


def _text(detail: ErrorDetails) -> str:
    """pydantic's own words, as part of a sentence."""
    text = detail["msg"].removeprefix("Value error, ")
    if text.startswith("Input "):
        return f"it {text.removeprefix('Input ')}"
    return text[0].lower() + text[1:]


@cache
def _schema(model: type[BaseModel]) -> Schema:
    """It takes 20 ms to make."""
    return model.model_json_schema()


def fields(model: type[BaseModel], location: Location) -> set[str]:
    """The parameters that the model takes at `location`."""
    return {name for found in _at(_schema(model), location) for name in found.get("properties", {})}


def _tags(model: type[BaseModel], location: Location) -> set[str]:
    found = _at(_schema(model), location)
    return {tag for s in found for tag in s.get("discriminator", {}).get("mapping", {})}


def _at(root: Schema, location: Location) -> list[Schema]:
    """The subschemas at `location`, in which a union's members may be named by their tag."""
    here = list(_members(root, root))
    for part in location:
        here = [s for schema in here for down in _down(schema, part) for s in _members(down, root)]
    return here


def _members(schema: Schema, root: Schema) -> Iterator[Schema]:
    """The schema itself, or, for a reference or a plain union, what it stands for."""
    if "$ref" in schema:
        yield from _members(root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    elif "discriminator" in schema:
        yield schema
    elif "anyOf" in schema:
        for member in schema["anyOf"]:
            yield from _members(member, root)
    else:
        yield schema


def _down(schema: Schema, part: int | str) -> Iterator[Schema]:
    mapping = schema.get("discriminator", {}).get("mapping", {})
    if part in mapping:
        yield {"$ref": mapping[part]}
    elif part in schema.get("properties", {}):
        yield schema["properties"][part]
    elif isinstance(part, int) and "items" in schema:
        yield schema["items"]
    elif isinstance(part, str) and "properties" in schema:
        yield schema  # a union member's own name: the same place
