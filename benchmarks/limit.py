"""How near to the engine's own speed the searches come: 96 puzzles, 32 at once.

`python -m benchmarks.limit [--quick] [--json PATH]`

The raw engine generates the same prompts with n=16 in the same process, without log-probabilities
and without drafted tokens and kernels of ours: it is another engine, which waits meanwhile. `raw
engine, ours` is the searches' own, and `ratio to ours` is to that. Rounds of all rows take turns,
so that a noisy machine hits all. Tokens that a search threw away are its waste: they do not count
in its ratio.

`raw engine, a request a step` is what step-wise searches could have at most: the same answers with
a new request for each step, and neither search nor reward.

One at a time it is the latency that counts: seconds a puzzle, with branches that run ahead and
without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from statistics import median
from typing import Any, TypeVar

from benchmarks.common import Report, options
from benchmarks.overhead import AT_ONCE, Clock, raw
from benchmarks.puzzles import held_out, messages
from benchmarks.stack import reference
from server.search import MCTS, Beam, BestOfN, Particles, Strategy
from server.service import Service
from server.types import Sampling, Stop

PUZZLES = 96
ROUNDS = 3
QUICK = 1
LOOKAHEADS = (0, 16)  # tokens that an open branch may run ahead: `speculation`
ALONE = 32  # puzzles, one after the other
RAW = "raw engine, n=16"
OURS = "raw engine, ours"
BARE = {  # vLLM as it is
    "policy.draft_tokens": 0,
    "policy.extra": {"worker_extension_cls": "server.engine.repack.Repack"},
}
LATENCY = ", one at a time"
T = TypeVar("T")
Row = Callable[[Service], Awaitable[tuple[int, int]]]  # -> policy tokens, of them discarded

STRATEGIES: dict[str, Strategy] = {
    "best-of-16": BestOfN(n=16),
    "beam 4x4": Beam(width=4, branch=4),
    "mcts-32, 8 in flight": MCTS(simulations=32, parallel=8),
    "particles-16": Particles(n=16),
}


async def raw_row(service: Service) -> tuple[int, int]:
    return await raw(service, PUZZLES), 0


async def stepwise_row(service: Service) -> tuple[int, int]:
    """16 answers a puzzle, a request for each step."""
    policy = service.models.policy
    cut = service.profile.cut(halt=True)
    prompts = [policy.tokenizer.render(messages(p)) for p in held_out(PUZZLES)]
    made = 0

    async def answer(ids: tuple[int, ...]) -> None:
        nonlocal made
        stop, most = Stop.STEP, len(ids) + service.profile.max_tokens
        while stop is Stop.STEP and len(ids) < most:
            stream = policy.stream(
                ids, max_tokens=cut.max_step_tokens, seed=None, sampling=Sampling(), cut=cut
            )
            step = await anext(stream)
            await stream.aclose()
            ids, stop, made = ids + step.token_ids, step.stop, made + step.count

    async def answers(ids: tuple[int, ...]) -> None:
        await asyncio.gather(*(answer(ids) for _ in range(16)))

    await limited(answers(ids) for ids in prompts)
    return made, 0


async def limited(jobs: Iterable[Awaitable[T]]) -> list[T]:
    """So many puzzles at once."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(job: Awaitable[T]) -> T:
        async with slots:
            return await job

    return await asyncio.gather(*map(one, jobs))


def searched(strategy: Strategy) -> Row:
    async def run(service: Service) -> tuple[int, int]:
        asks = [service.prepare(messages=messages(p), strategy=strategy) for p in held_out(PUZZLES)]
        outcomes = await limited(map(service.reason, asks))
        policy = sum(outcome.usage.policy for outcome in outcomes)
        return policy, sum(outcome.usage.discarded for outcome in outcomes)

    return run


def alone(strategy: Strategy) -> Row:
    async def run(service: Service) -> tuple[int, int]:
        policy = discarded = 0
        for puzzle in held_out(ALONE):
            ask = service.prepare(messages=messages(puzzle), strategy=strategy)
            usage = (await service.reason(ask)).usage
            policy, discarded = policy + usage.policy, discarded + usage.discarded
        return policy, discarded

    return run


async def measure(service: Service, run: Row) -> dict[str, float]:
    clock, before = Clock(), service.models.policy.load()
    tokens, discarded = await run(service)
    (seconds, cpu), after = clock.read(), service.models.policy.load()
    return {
        "tokens": tokens,
        "discarded_share": discarded / tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "drafted_share": (after.drafted - before.drafted) / tokens,
        "accepted_share": (after.accepted - before.accepted) / tokens,
        "server_us_per_token": cpu[0] / tokens * 1e6,
        "engines_us_per_token": sum(cpu[1:]) / tokens * 1e6,
    }


async def measured(lookahead: int, count: int, advance: Callable[[], None]) -> list[dict[str, Any]]:
    rows: dict[str, Row] = {
        RAW: raw_row,
        OURS: raw_row,
        "raw engine, a request a step": stepwise_row,
    }
    rows |= {name: searched(strategy) for name, strategy in STRATEGIES.items()}
    rows |= {name + LATENCY: alone(strategy) for name, strategy in STRATEGIES.items()}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
    async with AsyncExitStack() as stack:
        bare = await stack.enter_async_context(reference(**BARE))
        ours = await stack.enter_async_context(reference(speculation=lookahead))
        services = {name: bare if name == RAW else ours for name in rows}
        for name, run in rows.items():  # warm up
            await run(services[name])
        for _ in range(count):
            for name, run in rows.items():
                rounds[name].append(await measure(services[name], run))
                advance()
    return [_summary(lookahead, name, rounds) for name in rounds]


def _summary(
    lookahead: int, name: str, rounds: dict[str, list[dict[str, float]]]
) -> dict[str, Any]:
    """Ratios are of the tokens that were kept."""
    found = rounds[name]
    middle = {key: median(r[key] for r in found) for key in found[0]}
    ratios = {
        key: median(
            ours["tokens_per_second"] * (1 - ours["discarded_share"]) / raws["tokens_per_second"]
            for ours, raws in zip(found, rounds[base], strict=True)
        )
        for key, base in (("ratio", RAW), ("ratio to ours", OURS))
    }
    return {"speculation": lookahead, "method": name, **middle, **ratios}


def latency(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "speculation": row["speculation"],
        "method": row["method"],
        "seconds a puzzle": row["seconds"] / ALONE,
        "policy tokens a puzzle": row["tokens"] / ALONE,
        "discarded_share": row["discarded_share"],
    }


async def main() -> None:
    chosen = options(__doc__)
    count = QUICK if chosen.quick else ROUNDS
    report = Report("limit", quick=chosen.quick, rounds=count, puzzles=PUZZLES, at_once=AT_ONCE)
    rows: list[dict[str, Any]] = []
    with report.progress(count * len(LOOKAHEADS) * (3 + 2 * len(STRATEGIES))) as advance:
        for lookahead in LOOKAHEADS:
            rows += await measured(lookahead, count, advance)
    slow = [r for r in rows if r["method"].endswith(LATENCY)]
    rows = [r for r in rows if r not in slow]
    report.table("Medians over rounds; ratio to the raw engine of the same round", rows)
    report.table("One puzzle at a time", [latency(r) for r in slow])
    for name in STRATEGIES:
        best = max((r for r in rows if r["method"] == name), key=lambda r: float(r["ratio"]))
        label = f"{name}, speculation {best['speculation']}"
        least = 0.90 if name.startswith("best-of") else 0.75
        report.goal(f"{label}: tokens/s to raw", best["ratio"], ">=", least)
        report.goal(f"{label}: discarded", best["discarded_share"], "<=", 0.15)
    report.write(chosen.json)


if __name__ == "__main__":
    asyncio.run(main())
