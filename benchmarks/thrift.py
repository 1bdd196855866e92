"""Two ways to spend less on a question: to end at a good answer, and to choose better among fewer.

`python -m benchmarks.thrift [--quick] [--rounds N] [--json PATH]`

The shipped pair, 16 puzzles at a time, in turns. First every search with the early exits of
`stop_at`, on 200 puzzles that settings are chosen by. Then its_hub's three algorithms with 16
paths, as its presets are here (multinomial resampling, the best score chosen), beside ours with
fewer, which resample systematically and choose by a weighted vote: on those puzzles, and on 200
held-out ones. Accuracy is of the single chosen answer; differences have a standard error over
puzzles, of the same seeds. What the PRM remembers is thrown away before each turn.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from time import perf_counter
from typing import Any, NamedTuple

from benchmarks.common import Report, arguments
from benchmarks.puzzles import Puzzle, further, held_out, messages
from benchmarks.search import correct
from benchmarks.stack import forget, reference
from server.presets import shipped
from server.search import DVTS, MCTS, Beam, BestOfN, Particles, Rebase, Strategy, Vote
from server.service import Service
from trainer.passing import standard_error

AT_ONCE = 16  # puzzles
PUZZLES, QUICK = 200, 16
ROUNDS = 2
LEVELS = (1.0, 0.97, 0.9)  # of `stop_at`; at the first no score ends a search
EXITS: Mapping[str, Strategy] = {
    "best of 16": BestOfN(n=16),
    "beam 4x4": Beam(width=4, branch=4),
    "dvts 4x4": DVTS(trees=4, branch=4),
    "particles 16": Particles(n=16),
    "rebase 16": Rebase(n=16),
    "mcts 32": MCTS(simulations=32),
}
THEIRS = {name: shipped()[name].strategy for name in shipped() if name.startswith("its-hub-")}
FEWER = "particles 8"
CHOICES: Mapping[str, Strategy] = {
    **THEIRS,
    FEWER: Particles(n=8),
    "particles 16": Particles(n=16),
    "vote 10, weighted": Vote(n=10, choose="weighted"),
    "vote 16, weighted": Vote(n=16, choose="weighted"),
    "rebase 12": Rebase(n=12),
    "beam 3x4": Beam(width=3, branch=4),
    "mcts 32": MCTS(simulations=32),
}


class Turn(NamedTuple):
    """All puzzles once."""

    right: list[bool]
    tokens: list[int]  # of the policy
    seconds: float


Turns = Mapping[str, Sequence[Turn]]  # by search, a round each


async def turn(
    service: Service, strategy: Strategy, puzzles: Sequence[Puzzle], number: int
) -> Turn:
    forget(service)
    slots, first = asyncio.Semaphore(AT_ONCE), number * len(puzzles)

    async def one(place: int, puzzle: Puzzle) -> tuple[bool, int]:
        async with slots:
            ask = service.prepare(messages=messages(puzzle), strategy=strategy, seed=first + place)
            outcome = await service.reason(ask)
            return correct(puzzle, outcome.answers[0].final or ""), outcome.usage.policy

    began = perf_counter()
    found = await asyncio.gather(*(one(n, p) for n, p in enumerate(puzzles)))
    seconds = perf_counter() - began
    return Turn([right for right, _ in found], [tokens for _, tokens in found], seconds)


async def turns(
    service: Service,
    searches: Mapping[str, Strategy],
    puzzles: Sequence[Puzzle],
    rounds: int,
    advance: Callable[[], None],
) -> Turns:
    found: defaultdict[str, list[Turn]] = defaultdict(list)
    for number in range(rounds):
        # The other way round each time: what drifts in the machine falls on all alike.
        for name in list(searches)[:: -1 if number % 2 else 1]:
            found[name].append(await turn(service, searches[name], puzzles, number))
            advance()
    return found


def difference(own: Sequence[Turn], other: Sequence[Turn]) -> tuple[float, float]:
    """Of accuracies, and its standard error. A puzzle's rounds are one observation."""
    gains = [
        fmean(a.right[n] - b.right[n] for a, b in zip(own, other, strict=True))
        for n in range(len(own[0].right))
    ]
    return fmean(gains), standard_error(gains)


def row(own: Sequence[Turn], other: Sequence[Turn]) -> dict[str, Any]:
    """What a search comes to, and beside another."""
    gain, error = difference(own, other)
    count = sum(len(one.right) for one in own)
    return {
        "accuracy": sum(sum(one.right) for one in own) / count,
        "difference": gain,
        "its error": error,
        "policy tokens": sum(sum(one.tokens) for one in own) / count,
        "s/puzzle": sum(one.seconds for one in own) / count,
        "times as fast": sum(o.seconds for o in other) / sum(o.seconds for o in own),
    }


async def exits(
    service: Service, puzzles: Sequence[Puzzle], rounds: int, advance: Callable[[], None]
) -> list[dict[str, Any]]:
    table = []
    for name, strategy in EXITS.items():
        levels = {f"{x:g}": strategy.model_copy(update={"stop_at": x}) for x in LEVELS}
        found = await turns(service, levels, puzzles, rounds, advance)
        whole = next(iter(found.values()))
        table += [{"search": name, "stop_at": x, **row(found[x], whole)} for x in levels]
    return table


def judge(report: Report, title: str, found: Turns) -> None:
    for name in THEIRS:
        gain, error = difference(found[FEWER], found[name])
        report.goal(f"{title}: {FEWER} less {name}, within a standard error", gain, ">=", -error)


def read_options() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, help=f"{ROUNDS} if unset, quick: 1")
    return parser.parse_args()


async def main() -> None:
    chosen = read_options()
    count = QUICK if chosen.quick else PUZZLES
    rounds = chosen.rounds or (1 if chosen.quick else ROUNDS)
    report = Report("thrift", quick=chosen.quick, rounds=rounds, at_once=AT_ONCE)
    sets = {
        f"{count} puzzles to choose by": further(count),
        f"{count} held-out puzzles": held_out(count),
    }
    total = rounds * (len(EXITS) * len(LEVELS) + len(sets) * len(CHOICES))
    async with reference(**{"limits.searches": AT_ONCE}) as service:
        await turn(service, BestOfN(n=16), held_out(AT_ONCE), 0)  # warms up
        with report.progress(total) as advance:
            early = await exits(service, further(count), rounds, advance)
            found = {
                title: await turns(service, CHOICES, puzzles, rounds, advance)
                for title, puzzles in sets.items()
            }
    report.table("An answer scored `stop_at` ends the search, on the puzzles to choose by", early)
    for title, by_name in found.items():
        first = by_name[next(iter(THEIRS))]
        rows = [{"search": name, **row(own, first)} for name, own in by_name.items()]
        report.table(f"Beside its_hub's algorithms, on {title}", rows)
        judge(report, title, by_name)
    report.write(chosen.json)


if __name__ == "__main__":
    asyncio.run(main())
