"""Accuracy of the single chosen answer against tokens, for every search, on held-out puzzles.

`python -m benchmarks.search [--quick] [--json PATH]`
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from statistics import mean
from time import perf_counter
from typing import Any

from benchmarks.common import Report, options
from benchmarks.puzzles import Puzzle, held_out, messages, question
from benchmarks.stack import reference
from server.reward.verifiers.countdown import puzzle as read
from server.search import MCTS, Beam, BestOfN, Strategy, Vote
from server.service import Outcome, Service

AT_ONCE = 8  # puzzles
QUICK = 24  # puzzles


@dataclass(frozen=True)
class Method:
    name: str
    strategy: Strategy
    sampling: dict[str, Any] = field(default_factory=dict)


METHODS = (
    Method("greedy", Vote(n=1), {"temperature": 0.0}),
    Method("pass@1", Vote(n=1)),
    Method("best-of-4", BestOfN(n=4)),
    Method("best-of-16", BestOfN(n=16)),
    Method("best-of-64", BestOfN(n=64)),
    Method("vote-16 majority", Vote(n=16)),
    Method("vote-16 weighted", Vote(n=16, choose="weighted")),
    Method("vote-64 weighted", Vote(n=64, choose="weighted")),
    Method("beam 4x4", Beam(width=4, branch=4)),
    Method("mcts-16", MCTS(simulations=16)),
    Method("mcts-32", MCTS(simulations=32)),
)


@dataclass(frozen=True)
class Solved:
    right: bool  # the chosen answer
    found: bool  # some finished path
    outcome: Outcome


async def solve(service: Service, method: Method, puzzle: Puzzle) -> Solved:
    ask = service.prepare(
        messages=messages(puzzle), strategy=method.strategy, sampling=method.sampling
    )
    outcome = await service.reason(ask)
    texts = [n.text for n in outcome.trace.nodes if n.status == "terminal"]
    return Solved(
        right=correct(puzzle, outcome.answers[0].final or ""),
        found=any(correct(puzzle, t.rpartition("Answer: ")[2]) for t in texts),
        outcome=outcome,
    )


def correct(puzzle: Puzzle, answer: str) -> bool:
    asked = read(question(puzzle))
    return asked is not None and asked.solved_by(answer)


async def run_method(
    service: Service, method: Method, puzzles: list[Puzzle], advance: Any
) -> dict[str, Any]:
    """One row of the table: means over the puzzles; seconds for all of them."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(puzzle: Puzzle) -> Solved:
        async with slots:
            solved = await solve(service, method, puzzle)
            advance()
            return solved

    start = perf_counter()
    done = await asyncio.gather(*map(one, puzzles))
    seconds = perf_counter() - start
    usage = [s.outcome.usage for s in done]
    accuracy = mean(s.right for s in done)
    return {
        "method": method.name,
        "accuracy": accuracy,
        "standard_error": (accuracy * (1 - accuracy) / len(done)) ** 0.5,
        "found": mean(s.found for s in done),
        "policy_tokens": mean(u.policy for u in usage),
        "discarded": mean(u.discarded for u in usage),
        "prm_computed": mean(u.scorer_computed for u in usage),
        "prm_cached": mean(u.scorer_cached for u in usage),
        "seconds": seconds,
        "puzzle_seconds": mean(u.seconds for u in usage),
    }


async def main() -> None:
    chosen = options(__doc__)
    puzzles = held_out(QUICK if chosen.quick else 200)
    report = Report("search", quick=chosen.quick, puzzles=len(puzzles), at_once=AT_ONCE)
    async with reference() as service:
        with report.progress(len(METHODS) * len(puzzles)) as advance:
            rows = [await run_method(service, m, puzzles, advance) for m in METHODS]
    report.table("Game of 24, held out", rows)
    by_name = {row["method"]: row for row in rows}
    report.goal("mcts-32 accuracy", by_name["mcts-32"]["accuracy"], ">=", 0.75)
    report.goal("mcts-32 policy tokens", by_name["mcts-32"]["policy_tokens"], "<=", 750)
    report.goal("best-of-16 accuracy", by_name["best-of-16"]["accuracy"], ">=", 0.70)
    report.write(chosen.json)


if __name__ == "__main__":
    asyncio.run(main())
