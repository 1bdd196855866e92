"""An earlier version serves again. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.announce import announce
from trainer.promotion import find, promote, tell


def command(
    to: Annotated[str, typer.Option(metavar="VERSION", help="Or the beginning of it.")],
    weights: Annotated[Path, typer.Option(help="The folder that servers follow.", file_okay=False)],
    redis: Annotated[
        str | None,
        typer.Option(envvar="PONDER_REDIS__URL", help="Where servers follow announcements."),
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="The URL of a server that is to go over.")
    ] = None,
    admin_key: Annotated[str | None, typer.Option(envvar="PONDER_ADMIN_KEY")] = None,
) -> None:
    """Promote a version again: it is the one that serves."""
    kind, folder = find(weights, to)
    promote(folder)
    typer.echo(f"{kind} {folder.name} is promoted in {weights}")
    if redis is not None:
        announce(redis, kind, folder)
    if server is not None:
        tell(server, admin_key, {kind: folder})
        typer.echo(f"{server} serves it")
