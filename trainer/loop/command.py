"""`python -m trainer loop --config FILE`"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from trainer.loop import figures
from trainer.loop.children import Children
from trainer.loop.config import Loop
from trainer.loop.rounds import Rounds
from trainer.loop.search import Progress as Told
from trainer.loop.server import Server
from trainer.loop.state import State, alone
from trainer.loop.tasks import Grading
from trainer.profiles import named
from trainer.settings import load


def command(
    config: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="a YAML file")],
    words: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="such as rounds=5")
    ] = None,
    admin_key: Annotated[str | None, typer.Option(envvar="PONDER_ADMIN_KEY")] = None,
) -> None:
    """Serve, search, compile, train, gate, publish, reload: so many rounds. A loop that was killed
    goes on where it was when it is started again with the same settings."""
    settings = load(Loop, config, words or ())
    try:
        asyncio.run(run(settings, admin_key))
    except asyncio.CancelledError:
        raise typer.Exit(143) from None
    typer.echo(f"{settings.out / figures.JSON} has the figures of {settings.rounds} rounds")


async def run(settings: Loop, key: str | None = None) -> None:
    """Raises `TrainerError`; what was done until then stays done."""
    # Ended as by Ctrl-C: what was started is ended, too.
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    out = settings.out.resolve()
    with alone(out), progress() as bar:
        state = State.load(out, json.loads(settings.model_dump_json()))
        children = Children(out)
        if left := children.reap():
            bar.console.print(f"ended {left} processes that an earlier run had left")
        server = Server(settings.serve, out, children, key)
        profile = named(settings.profile, "profile") if settings.profile else None
        grading = Grading(profile)
        rounds = Rounds(settings, server, children, state, grading, bars(bar), bar.console.print)
        try:
            await rounds.run()
        finally:
            await server.close()
            await grading.close()


def progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True, soft_wrap=True))


def bars(bar: Progress) -> Callable[[str], Told]:
    """Makes the bar of a stage."""

    def bar_of(name: str) -> Told:
        task = bar.add_task(name, total=None)

        def told(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=done < total)

        return told

    return bar_of
