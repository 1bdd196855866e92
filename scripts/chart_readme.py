"""The table of values in helm/ponder/README.md, from the `# --` comments of values.yaml.

    python scripts/chart_readme.py    writes it anew

A value with a comment is a row, and what lies below it is its default. Every value has a comment,
or all that lie below it have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[1] / "helm" / "ponder"
BEGIN, END = "<!-- values -->", "<!-- end of values -->"
KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z][\w.-]*):( |$)")
MARK = "# -- "


@dataclass(frozen=True, slots=True)
class Row:
    path: tuple[str, ...]
    default: Any
    comment: str

    def line(self) -> str:
        default = json.dumps(self.default, separators=(", ", ": "), ensure_ascii=False)
        cells = (f"`{'.'.join(self.path)}`", f"`{default}`", self.comment)
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def rows(text: str) -> list[Row]:
    """Every commented value, in the order of the file."""
    values = yaml.safe_load(text)
    return [Row(path, at(values, path), comment) for path, comment in comments(text)]


def comments(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    above: list[tuple[int, str]] = []
    comment: str | None = None
    for line in text.splitlines():
        if line.strip().startswith(MARK):
            comment = line.strip().removeprefix(MARK)
        elif found := KEY.match(line):
            indent = len(found["indent"])
            above = [(i, k) for i, k in above if i < indent] + [(indent, found["key"])]
            if comment is not None:
                yield tuple(key for _, key in above), comment
            comment = None


def at(values: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


def uncommented(values: Any, known: set[tuple[str, ...]], above: tuple[str, ...] = ()) -> list[str]:
    """The values that no comment speaks of."""
    if above in known:
        return []
    if not isinstance(values, dict) or not values:
        return [".".join(above)]
    return [name for key in values for name in uncommented(values[key], known, (*above, key))]


def table(text: str) -> str:
    head = ["| value | default | |", "|---|---|---|"]
    return "\n".join([BEGIN, *head, *(row.line() for row in rows(text)), END])


def readme(old: str, values: str) -> str:
    before, _, rest = old.partition(BEGIN)
    return before + table(values) + rest.partition(END)[2]


def main() -> None:
    path = CHART / "README.md"
    path.write_text(readme(path.read_text(), (CHART / "values.yaml").read_text()))


if __name__ == "__main__":
    main()
