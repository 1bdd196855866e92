"""The code of a Markdown page, as one program a language."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(r"^(#+) ([^\n]+)$|^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"  # of the server in all of our documents
END = "=== the end of a snippet ==="


@dataclass(frozen=True, slots=True)
class Snippet:
    title: str  # of the section it is in
    code: str


def snippets(page: Path, language: str) -> list[Snippet]:
    """In their order."""
    found, title = [], ""
    for match in BLOCK.finditer(page.read_text()):
        _, heading, kind, code = match.groups()
        title = heading or title
        if kind == language:
            found.append(Snippet(title, code))
    return found


def program(parts: list[Snippet], url: str, say: str) -> str:
    """All of them, against the server at `url`; `say`, a format, prints a line after each."""
    code = "\n".join(f"{part.code}\n{say.format(END)}" for part in parts)
    assert ADDRESS in code
    return code.replace(ADDRESS, url)


def outputs(printed: str) -> list[str]:
    """What each of a program's snippets printed."""
    *said, rest = printed.split(f"{END}\n")
    assert rest == ""
    return said
