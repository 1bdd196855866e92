"""The strategies the server offers. To add one: a file here, its class in this union."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from server.search.auto import Auto
from server.search.beam import Beam
from server.search.best_of_n import BestOfN
from server.search.mcts import MCTS
from server.search.vote import Vote

Strategy = Annotated[Auto | BestOfN | Beam | MCTS | Vote, Field(discriminator="kind")]

__all__ = ["MCTS", "Auto", "Beam", "BestOfN", "Strategy", "Vote"]
