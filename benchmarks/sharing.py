"""Two tenants on one policy whose KV cache holds some sixty answers: one sends a flood of searches,
the other one at a time. Requests thrown out of the cache, tokens a second, and how long the
second tenant waits, with the policy shared between searches and without, in turns.

`python -m benchmarks.sharing [--quick] [--json PATH]`

Work is in tokens a second: the second tenant goes on until the flood is over, so that a run in
which it waits less has more to do. Its mean is over all the time that it waited, the search that
the end of the flood broke off among it: where it starves, few of its searches end at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import quantiles
from time import perf_counter
from typing import Any

from benchmarks.common import Report, options
from benchmarks.puzzles import Puzzle, held_out, messages
from benchmarks.stack import reference
from server.config import Scheduling
from server.search import Beam, BestOfN, Strategy
from server.service import Service

KV_BYTES = 16 << 20  # 3 KiB a token, blocks of 32 tokens: 170 blocks
FLOOD = 28  # searches at once
SEARCHES = 112  # of the flood
ROUNDS = 3
METHODS: dict[str, Strategy] = {"best-of-32": BestOfN(n=32), "beam 4x4": Beam(width=4, branch=4)}


@dataclass
class Seen:
    """What one run showed."""

    seconds: float = 0.0
    tokens: int = 0  # of the policy
    preempted: int = 0
    kv: list[float] = field(default_factory=list)  # share of the cache in use, sampled
    waits: list[float] = field(default_factory=list)  # seconds of the second tenant's searches

    def add(self, other: Seen) -> None:
        """One more run."""
        self.seconds += other.seconds
        self.tokens += other.tokens
        self.preempted += other.preempted
        self.kv += other.kv
        self.waits += other.waits


async def ask(service: Service, strategy: Strategy, puzzle: Puzzle, tenant: str) -> int:
    """One search; its policy tokens."""
    asked = service.prepare(messages=messages(puzzle), strategy=strategy, tenant=tenant)
    outcome = await service.reason(asked)
    return outcome.usage.policy


async def flood(service: Service, strategy: Strategy, puzzles: list[Puzzle]) -> int:
    """All puzzles, `FLOOD` at once; policy tokens."""
    slots = asyncio.Semaphore(FLOOD)

    async def one(puzzle: Puzzle) -> int:
        async with slots:
            return await ask(service, strategy, puzzle, "flood")

    return sum(await asyncio.gather(*map(one, puzzles)))


async def second(service: Service, strategy: Strategy, puzzles: list[Puzzle], seen: Seen) -> None:
    """One puzzle after the other, until cancelled."""
    while True:
        for puzzle in puzzles:
            began = perf_counter()
            tokens = await ask(service, strategy, puzzle, "second")
            seen.waits.append(perf_counter() - began)
            seen.tokens += tokens


async def watch(service: Service, seen: Seen) -> None:
    while True:
        seen.kv.append(service.models.policy.load().kv)
        await asyncio.sleep(0.02)


@asynccontextmanager
async def alongside(*work: Any) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(w) for w in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if not isinstance(result, asyncio.CancelledError):
            raise RuntimeError("a search failed") from result


async def measured(service: Service, strategy: Strategy, puzzles: list[Puzzle]) -> Seen:
    seen, policy = Seen(), service.models.policy
    before, began = policy.load().preempted, perf_counter()
    light = second(service, strategy, puzzles[:8], seen)
    async with alongside(light, watch(service, seen)):
        seen.tokens += await flood(service, strategy, puzzles)
        seen.seconds = perf_counter() - began
    seen.preempted = policy.load().preempted - before
    return seen


def row(name: str, seen: Seen, shared: bool) -> dict[str, Any]:
    cuts = (
        quantiles(seen.waits, n=20, method="inclusive")
        if len(seen.waits) > 1
        else [*seen.waits * 19]
    )
    return {
        "search": name,
        "shared": "yes" if shared else "no",
        "seconds": seen.seconds,
        "tokens_per_second": seen.tokens / seen.seconds,
        "preempted": seen.preempted,
        "kv_mean": sum(seen.kv) / len(seen.kv),
        "second_searches": len(seen.waits),
        "second_mean_s": seen.seconds / max(1, len(seen.waits)),
        "second_p50_s": cuts[9],
        "second_p95_s": cuts[18],
    }


async def main() -> None:
    chosen = options(__doc__)
    rounds = 1 if chosen.quick else ROUNDS
    puzzles = held_out(FLOOD if chosen.quick else SEARCHES)
    report = Report("sharing", quick=chosen.quick, kv_bytes=KV_BYTES, flood=FLOOD, rounds=rounds)
    runs = {(name, enabled): Seen() for name in METHODS for enabled in (False, True)}
    async with reference(**{"policy.kv_cache_bytes": KV_BYTES}) as service:
        await flood(service, METHODS["best-of-32"], puzzles[:FLOOD])  # warm up
        with report.progress(rounds * len(runs)) as advance:
            for _ in range(rounds):
                for (name, enabled), seen in runs.items():
                    scheduling = Scheduling(enabled=enabled)
                    settings = service.settings.model_copy(update={"scheduling": scheduling})
                    anew = Service(settings, service.models)
                    seen.add(await measured(anew, METHODS[name], puzzles))
                    advance()
    rows = [row(name, seen, enabled) for (name, enabled), seen in runs.items()]
    report.table("A flood of searches, and a second tenant that sends one at a time", rows)
    for without, shared in zip(rows[::2], rows[1::2], strict=True):
        name, speed, wait = shared["search"], "tokens_per_second", "second_mean_s"
        report.goal(f"{name}: preempted", shared["preempted"], "<=", without["preempted"] / 10)
        report.goal(f"{name}: second's mean", shared[wait], "<=", without[wait])
        report.goal(f"{name}: tokens a second", shared[speed], ">=", 0.9 * without[speed])
    report.write(chosen.json)


if __name__ == "__main__":
    asyncio.run(main())
