"""Process reward models side by side, each guiding the shipped policy.

`python -m benchmarks.guides [--prm NAME=FOLDER ...] [--quick] [--json PATH]`

The shipped PRM, and others: of another round of a loop, of an older release. Best-of-16 has the
same seeds for all, so that they judge the same samples; AUC is of a step's verdict against the
outcome of the answer it leads to, by the step's depth. Beam search goes where each PRM leads it.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.common import Report, arguments
from benchmarks.puzzles import Puzzle, held_out, messages
from benchmarks.search import correct
from benchmarks.stack import reference
from server.search import Beam, BestOfN, Strategy
from server.service import Service
from server.traces.schema import Trace
from trainer.reference.scores import auc

SHIPPED = Path(__file__).parent.parent / "models" / "prm"
SAMPLES, BEAM = BestOfN(n=16), Beam(width=4, branch=4)
PUZZLES, QUICK = 200, 16
AT_ONCE = 8  # puzzles
DEPTHS = (1, 2, 3)


def named(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not name or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: allowed: NAME=FOLDER of a PRM")
    return name, Path(folder)


def read_options() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--prm", type=named, action="append", default=[], metavar="NAME=FOLDER")
    return parser.parse_args()


async def searched(
    service: Service, strategy: Strategy, puzzles: list[Puzzle], advance: Any
) -> list[tuple[bool, Trace]]:
    """For each puzzle: whether the chosen answer is right, and the search."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(seed: int, puzzle: Puzzle) -> tuple[bool, Trace]:
        async with slots:
            ask = service.prepare(messages=messages(puzzle), strategy=strategy, seed=seed)
            outcome = await service.reason(ask)
            advance()
            return correct(puzzle, outcome.answers[0].final or ""), outcome.trace

    return list(await asyncio.gather(*(one(n, p) for n, p in enumerate(puzzles))))


def verdicts(trace: Trace, puzzle: Puzzle) -> Iterator[tuple[str, float, bool]]:
    """(depth, the PRM's word, whether the answer is right) of each step of each finished answer."""
    for end in trace.nodes:
        if end.status != "terminal":
            continue
        right = correct(puzzle, end.text.rpartition("Answer: ")[2])
        for _ in range(end.multiplicity):
            at = end
            while at.parent is not None:
                if at.prm_raw is not None and at.depth in DEPTHS:
                    yield str(at.depth), at.prm_raw, right
                if at is end and at.prm_raw is not None:
                    yield "last", at.prm_raw, right
                at = trace.nodes[at.parent]


async def row(name: str, folder: Path, puzzles: list[Puzzle], advance: Any) -> dict[str, Any]:
    async with reference(**{"prm.engine.model": str(folder)}) as service:
        samples = await searched(service, SAMPLES, puzzles, advance)
        beam = await searched(service, BEAM, puzzles, advance)
    by_depth: defaultdict[str, list[tuple[float, bool]]] = defaultdict(list)
    for (_, trace), puzzle in zip(samples, puzzles, strict=True):
        for depth, score, right in verdicts(trace, puzzle):
            by_depth[depth].append((score, right))
    known = {
        f"AUC, {'step ' if depth != 'last' else ''}{depth}": auc(
            [score for score, _ in found], [right for _, right in found]
        )
        for depth, found in sorted(by_depth.items())
    }
    return {
        "prm": name,
        **known,
        "best-of-16": fmean(right for right, _ in samples),
        "beam 4x4": fmean(right for right, _ in beam),
        "beam tokens": fmean(trace.usage.policy for _, trace in beam),
    }


async def main() -> None:
    chosen = read_options()
    puzzles = held_out(QUICK if chosen.quick else PUZZLES)
    report = Report("guides", quick=chosen.quick, puzzles=len(puzzles))
    prms = [("shipped", SHIPPED), *chosen.prm]
    with report.progress(2 * len(prms) * len(puzzles)) as advance:
        rows = [await row(name, folder, puzzles, advance) for name, folder in prms]
    report.table(f"{len(puzzles)} held-out puzzles, the shipped policy", rows)
    report.write(chosen.json)


if __name__ == "__main__":
    asyncio.run(main())
