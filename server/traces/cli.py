"""`ponder traces`: list, show, export, compact."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from server.config import TraceSettings
from server.errors import PonderError
from server.traces.codec import LineWriter, encode
from server.traces.compact import compact, read
from server.traces.index import Index
from server.traces.summary import Summary, Wanted
from server.traces.table import TableWriter
from server.traces.tree import render

app = typer.Typer(help="Look at recorded searches, export and compact them.", no_args_is_help=True)


class Format(StrEnum):
    parquet = "parquet"
    jsonl = "jsonl"


def moment(text: str) -> datetime:
    """ISO 8601; UTC unless it says otherwise."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        message = f"{text!r} is not a date such as 2026-01-31 or 2026-01-31T12:00"
        raise typer.BadParameter(message) from error
    return when if when.tzinfo else when.replace(tzinfo=UTC)


FolderOption = Annotated[
    Path,
    typer.Option(
        "--folder", envvar="PONDER_TRACES__FOLDER", help="The server's traces.folder.",
        file_okay=False,
    ),
]  # fmt: skip
SinceOption = Annotated[
    datetime | None, typer.Option("--since", parser=moment, help="Date or time, ISO 8601; UTC.")
]
StrategyOption = Annotated[str | None, typer.Option("--strategy", help="Only this kind.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
FOLDER = TraceSettings().folder


@contextmanager
def complaints() -> Iterator[None]:
    """Our errors as one line on stderr and status 1."""
    try:
        yield
    except (PonderError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of traces at {folder}")
    return folder


@app.command("list")
def list_(
    folder: FolderOption = FOLDER,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    since: SinceOption = None,
    strategy: StrategyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List traces, the newest first."""
    with complaints():
        index = Index(existing(folder))
        found = index.list(Wanted(since, strategy), limit=limit)
    if as_json:
        typer.echo(TypeAdapter(tuple[Summary, ...]).dump_json(found, indent=2))
    else:
        Console().print(_table(found))
    if index.broken:  # each was logged by name
        raise typer.Exit(1)


def _table(found: tuple[Summary, ...]) -> Table:
    table = Table("id", "created", "strategy", "question", "answer", "end", box=None)
    for name in ("nodes", "tokens", "seconds"):
        table.add_column(name, justify="right")
    for s in found:
        cells = (s.question, s.answer or "", s.error or s.finish_reason or "")
        table.add_row(
            Text(s.trace_id),
            f"{s.created_at:%Y-%m-%d %H:%M:%S}",
            Text(s.strategy),
            *(_short(cell) for cell in cells),
            *(str(s.nodes), str(s.tokens), f"{s.seconds:.2f}"),
        )
    return table


def _short(text: str, most: int = 40) -> Text:
    line = " ".join(text.split())
    return Text(line if len(line) <= most else line[: most - 1] + "…")


@app.command()
def show(
    trace_id: Annotated[str, typer.Argument(metavar="ID")],
    folder: FolderOption = FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Show the tree of one search; the chosen path is highlighted."""
    with complaints():
        trace = Index(existing(folder)).get(trace_id)
        if trace is None:
            raise FileNotFoundError(f"no trace {trace_id!r} in {folder}")
    if as_json:
        typer.echo(encode(trace), nl=False)
    else:
        Console().print(*render(trace), sep="\n")


@app.command()
def export(
    dest: Annotated[Path, typer.Argument(help="The file to write.", dir_okay=False)],
    folder: FolderOption = FOLDER,
    form: Annotated[Format, typer.Option("--format")] = Format.parquet,
    since: SinceOption = None,
    strategy: StrategyOption = None,
) -> None:
    """Write traces to one file, the oldest segment first."""
    with complaints():
        if dest.exists():
            raise FileExistsError(f"{dest} exists already")
        count = _export(existing(folder), dest, form, Wanted(since, strategy))
    typer.echo(f"{count} traces in {dest}", err=True)


def _export(folder: Path, dest: Path, form: Format, wanted: Wanted) -> int:
    count = 0
    temporary = dest.with_name(f"{dest.name}.tmp")
    try:
        with TableWriter(temporary) if form is Format.parquet else LineWriter(temporary) as out:
            for trace in read(folder):
                if Summary.of(trace) in wanted:
                    out.add(trace)
                    count += 1
        temporary.rename(dest)
    finally:
        temporary.unlink(missing_ok=True)
    return count


@app.command("compact")
def compact_(
    folder: FolderOption = FOLDER,
    nice: Annotated[int, typer.Option(min=0, max=19, help="Lower the priority.")] = 0,
) -> None:
    """Turn closed segments into Parquet; those being written are left alone."""
    os.nice(nice)
    with complaints():
        for segment in compact(existing(folder)):
            typer.echo(f"compacted {segment.name}")


if __name__ == "__main__":
    app(prog_name="ponder traces")
