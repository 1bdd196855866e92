"""Regular expressions and JSON schemas: either may take for ever on the right text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import SchemaError
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from server.sandbox.child import serve_jobs
from server.sandbox.lockdown import Limits

REFERENCES = ("$ref", "$dynamicRef")


def serve(source: int, sink: int, limits: Limits) -> None:
    serve_jobs(work, source, sink, limits)


def work(job: dict[str, Any]) -> Any:
    """Whether the answer fits; of a schema without an answer, what is wrong with it (or None)."""
    if "pattern" in job:
        return fits(job["pattern"], job["mode"], job["answer"])
    if "answer" in job:
        return valid(job["schema"], job["answer"])
    return problem(job["schema"])


def fits(pattern: str, mode: str, text: str) -> bool:
    found = re.fullmatch(pattern, text) if mode == "fullmatch" else re.search(pattern, text)
    return found is not None


def valid(schema: Any, text: str) -> bool:
    """Whether `text` is JSON (by the standard: no NaN) that the schema allows."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return bool(Draft202012Validator(schema, registry=Registry()).is_valid(value))


def problem(schema: Any) -> str | None:
    """Why this is no JSON Schema (draft 2020-12) that stands by itself; None if it is one."""
    try:
        Draft202012Validator.check_schema(schema, format_checker=FormatChecker(["regex"]))
    except SchemaError as error:
        return f"{error.json_path}: {error.message}"[:500]
    resource: Resource[Any] = Resource.from_contents(schema, default_specification=DRAFT202012)
    resolver = Registry().with_resource("", resource).resolver()
    for reference in references(schema):
        if not reference.startswith("#"):
            return f"a reference must point into the schema itself (#...): {reference[:100]}"
        try:
            resolver.lookup(reference)
        except Unresolvable:
            return f"a reference points nowhere: {reference[:100]}"
    return None


def references(schema: Any) -> Iterator[str]:
    """Every reference in it. Iterative, as a schema may be nested as deep as its text is long."""
    left = [schema]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            yield from (part[name] for name in REFERENCES if isinstance(part.get(name), str))
            left += part.values()
        elif isinstance(part, list):
            left += part


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
