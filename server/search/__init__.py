"""The strategies the server offers. To add one: a file here, its class in this union."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from server.search.auto import Auto
from server.search.beam import Beam
from server.search.best_of_n import BestOfN
from server.search.dvts import DVTS
from server.search.mcts import MCTS
from server.search.particles import Particles
from server.search.rebase import Rebase
from server.search.revise import Revise
from server.search.vote import Vote

Strategy = Annotated[
    Auto | Beam | BestOfN | DVTS | MCTS | Particles | Rebase | Revise | Vote,
    Field(discriminator="kind"),
]

__all__ = [
    "DVTS",
    "MCTS",
    "Auto",
    "Beam",
    "BestOfN",
    "Particles",
    "Rebase",
    "Revise",
    "Strategy",
    "Vote",
]
