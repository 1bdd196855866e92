"""How near to the engine's own speed the searches come: 32 puzzles at once.

`python -m benchmarks.limit [--quick] [--json PATH]`

The raw engine generates the same prompts with n=16 in the same process, without log-probabilities
and without anything of ours; rounds of all rows take turns, so that a noisy machine hits all.
Tokens that a search threw away count as made by the engine; their share is its waste.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

from benchmarks.common import Report, options
from benchmarks.overhead import AT_ONCE, Clock, raw
from benchmarks.puzzles import held_out, messages
from benchmarks.stack import reference
from server.search import MCTS, Beam, BestOfN, Particles, Strategy
from server.service import Service

ROUNDS = 5
QUICK = 2
LOOKAHEADS = (0, 16)  # tokens that an open branch may run ahead: `speculation`
Row = Callable[[Service], Awaitable[tuple[int, int]]]  # -> policy tokens, of them discarded

STRATEGIES: dict[str, Strategy] = {
    "best-of-16": BestOfN(n=16),
    "beam 4x4": Beam(width=4, branch=4),
    "mcts-32, 4 at a time": MCTS(simulations=32),
    "particles-16": Particles(n=16),
}


async def raw_row(service: Service) -> tuple[int, int]:
    return await raw(service), 0


def searched(strategy: Strategy) -> Row:
    async def run(service: Service) -> tuple[int, int]:
        asks = [service.prepare(messages=messages(p), strategy=strategy) for p in held_out(AT_ONCE)]
        outcomes = await asyncio.gather(*map(service.reason, asks))
        policy = sum(outcome.usage.policy for outcome in outcomes)
        return policy, sum(outcome.usage.discarded for outcome in outcomes)

    return run


async def measure(service: Service, run: Row) -> dict[str, float]:
    clock = Clock()
    tokens, discarded = await run(service)
    seconds, cpu = clock.read()
    return {
        "tokens": tokens,
        "discarded_share": discarded / tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "server_us_per_token": cpu[0] / tokens * 1e6,
        "engines_us_per_token": sum(cpu[1:]) / tokens * 1e6,
    }


async def measured(lookahead: int, count: int, advance: Callable[[], None]) -> list[dict[str, Any]]:
    rows: dict[str, Row] = {"raw engine, n=16": raw_row}
    rows |= {name: searched(strategy) for name, strategy in STRATEGIES.items()}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
    async with reference(speculation=lookahead) as service:
        for run in rows.values():  # warm up
            await run(service)
        for _ in range(count):
            for name, run in rows.items():
                rounds[name].append(await measure(service, run))
                advance()
    base = next(iter(rounds.values()))
    return [_summary(lookahead, name, found, base) for name, found in rounds.items()]


def _summary(
    lookahead: int, name: str, found: list[dict[str, float]], base: list[dict[str, float]]
) -> dict[str, Any]:
    ratios = [
        ours["tokens_per_second"] / raws["tokens_per_second"]
        for ours, raws in zip(found, base, strict=True)
    ]
    middle = {key: median(r[key] for r in found) for key in found[0]}
    return {"speculation": lookahead, "method": name, **middle, "ratio": median(ratios)}


async def main() -> None:
    chosen = options(__doc__)
    count = QUICK if chosen.quick else ROUNDS
    report = Report("limit", quick=chosen.quick, rounds=count, at_once=AT_ONCE)
    rows: list[dict[str, Any]] = []
    with report.progress(count * len(LOOKAHEADS) * (1 + len(STRATEGIES))) as advance:
        for lookahead in LOOKAHEADS:
            rows += await measured(lookahead, count, advance)
    report.table("Medians over rounds; ratio to the raw engine of the same round", rows)
    for name in STRATEGIES:
        best = max((r for r in rows if r["method"] == name), key=lambda r: float(r["ratio"]))
        label = f"{name}, speculation {best['speculation']}"
        least = 0.90 if name.startswith("best-of") else 0.75
        report.goal(f"{label}: tokens/s to raw", best["ratio"], ">=", least)
        report.goal(f"{label}: discarded", best["discarded_share"], "<=", 0.15)
    report.write(chosen.json)


if __name__ == "__main__":
    asyncio.run(main())
