"""`python -m trainer reference`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.reference.recipe import Recipe, make
from trainer.reference.recipe import quick as quickly


def command(
    out: Annotated[Path, typer.Option(help="Folder for policy/, prm/ and manifest.json.")] = Path(
        "models"
    ),
    quick: Annotated[
        bool, typer.Option(help="Tiny: minutes, and models that know little.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=10_000)] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Of each process.")] = 1,
    processes: Annotated[int, typer.Option(min=1, max=64)] = 2,
) -> None:
    """Make the shipped policy and PRM of the Game of 24 from nothing. A killed run goes on where
    it was when it is started again with the same settings."""
    recipe = Recipe(seed=seed, threads=threads, processes=processes)
    make(quickly(recipe) if quick else recipe, out)
