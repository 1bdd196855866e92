"""Who takes part, by which methods, and by how much which of ours is to beat it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """One worker, which does its methods in turn."""

    name: str
    module: str
    methods: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    peer: str | None = None  # whose environment it runs in; None: ours
    served: bool = True  # by the servers that all share
    slow: tuple[str, ...] = ()  # methods of more than five minutes for 64 puzzles one at a time


@dataclass(frozen=True)
class Rival:
    """Ratios of seconds a puzzle, theirs to ours."""

    system: str
    method: str
    ours: tuple[str, ...]  # our methods
    together: float
    alone: float | None = None  # one puzzle at a time


# As often right as its_hub's algorithms with 16 paths, on puzzles that are for choosing
# (`benchmarks.thrift`).
FEWER = "particles, 8"
OURS = ("best_of_n", "beam", "particles", FEWER, "mcts")
SYSTEMS = (
    System("ours, HTTP", "ours_worker", OURS, ("http",)),
    System("ours, server", "ours_worker", ("best_of_n", "mcts"), ("server",)),
    System("its_hub", "its_hub_worker", ("best_of_n", "beam", "particles"), peer="its_hub"),
    System("optillm", "optillm_worker", ("best_of_n", "mcts"), peer="optillm"),
    System("TreeQuest", "treequest_worker", ("mcts", "ab_mcts_a"), peer="treequest"),
    System("ours, in process", "ours_worker", OURS, ("in-process",), served=False),
)
RIVALS = (
    Rival("its_hub", "best_of_n", ("best_of_n", FEWER), together=1.4, alone=2),
    Rival("its_hub", "beam", ("beam", FEWER), together=3, alone=2),
    Rival("its_hub", "particles", ("particles", FEWER), together=3, alone=2),
    Rival("optillm", "best_of_n", ("best_of_n", FEWER), together=5),
    Rival("optillm", "mcts", ("mcts", FEWER), together=5),
    Rival("TreeQuest", "mcts", ("mcts", FEWER), together=5),
    Rival("TreeQuest", "ab_mcts_a", ("mcts", FEWER), together=5),
)
