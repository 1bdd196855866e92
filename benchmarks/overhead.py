"""What the search costs on top of the engine: best-of-16 on 32 puzzles at once.

`python -m benchmarks.overhead [--quick] [--json PATH]`

The raw engine generates the same prompts with n=16 in the same process, without log-probabilities
and without anything of ours; rounds of both take turns, so that a noisy machine hits both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from statistics import median
from time import perf_counter
from typing import Any

import psutil
from vllm import SamplingParams
from vllm.inputs import tokens_input
from vllm.sampling_params import RequestOutputKind

from benchmarks.common import Report, options
from benchmarks.puzzles import held_out, messages
from benchmarks.stack import reference
from server.engine.vllm import VllmEngine
from server.reward import Confidence, Prm, Reward
from server.search import BestOfN
from server.service import Service

N = 16  # answers a puzzle
AT_ONCE = 32  # puzzles
ROUNDS = 9
QUICK = 3
Round = Callable[[Service], Awaitable[int]]  # -> policy tokens


async def raw(service: Service, puzzles: int = AT_ONCE) -> int:
    """vLLM alone: one request a puzzle, n=16, the final output only."""
    policy = service.models.policy
    assert isinstance(policy, VllmEngine)
    params = SamplingParams(
        n=N,
        temperature=1.0,
        max_tokens=service.profile.max_tokens,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )

    slots = asyncio.Semaphore(AT_ONCE)

    async def one(i: int, ids: tuple[int, ...]) -> int:
        engine = policy._llm.engine  # the very engine that the searches use
        async with slots:
            stream = engine.generate(tokens_input(list(ids)), params, f"raw-{i}-{id(params)}")
            async for output in stream:
                return sum(len(o.token_ids) for o in output.outputs)
        raise AssertionError("vLLM ended without an output")

    prompts = [policy.tokenizer.render(messages(p)) for p in held_out(puzzles)]
    return sum(await asyncio.gather(*(one(i, ids) for i, ids in enumerate(prompts))))


def searched(reward: Reward) -> Round:
    async def run(service: Service) -> int:
        asks = [
            service.prepare(messages=messages(p), strategy=BestOfN(n=N), reward=reward)
            for p in held_out(AT_ONCE)
        ]
        outcomes = await asyncio.gather(*map(service.reason, asks))
        return sum(outcome.usage.policy for outcome in outcomes)

    return run


ROWS: dict[str, Round] = {
    "raw engine, n=16": raw,
    "best-of-16, confidence": searched(Confidence()),
    "best-of-16, PRM": searched(Prm()),
}


class Clock:
    """Wall and CPU seconds since it was made, of this process and of each engine's."""

    def __init__(self) -> None:
        me = psutil.Process()
        self.processes = [me, *me.children(recursive=True)]
        self.cpu = [self._cpu(p) for p in self.processes]
        self.wall = perf_counter()

    @staticmethod
    def _cpu(process: psutil.Process) -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    def read(self) -> tuple[float, list[float]]:
        spent = [self._cpu(p) - was for p, was in zip(self.processes, self.cpu, strict=True)]
        return perf_counter() - self.wall, spent


async def measure(service: Service, run: Round) -> dict[str, float]:
    clock = Clock()
    tokens = await run(service)
    seconds, cpu = clock.read()
    busiest = sorted(cpu[1:], reverse=True)
    return {
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "server_us_per_token": cpu[0] / tokens * 1e6,
        "engines_us_per_token": sum(busiest) / tokens * 1e6,
    }


def summary(name: str, rounds: list[dict[str, float]], base: list[dict[str, float]]) -> Any:
    ratios = [
        ours["tokens_per_second"] / raws["tokens_per_second"]
        for ours, raws in zip(rounds, base, strict=True)
    ]
    middle = {key: median(r[key] for r in rounds) for key in rounds[0]}
    return {"method": name, **middle, "ratio": median(ratios)}


async def main() -> None:
    chosen = options(__doc__)
    count = QUICK if chosen.quick else ROUNDS
    report = Report("overhead", quick=chosen.quick, rounds=count, n=N, at_once=AT_ONCE)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ROWS}
    async with reference() as service:
        for run in ROWS.values():  # warm up
            await run(service)
        with report.progress(count * len(ROWS)) as advance:
            for _ in range(count):
                for name, run in ROWS.items():
                    rounds[name].append(await measure(service, run))
                    advance()
    base = next(iter(rounds.values()))
    rows = [summary(name, found, base) for name, found in rounds.items()]
    report.table("Medians over rounds; ratio to the raw engine of the same round", rows)
    report.goal("confidence tokens/s to raw", rows[1]["ratio"], ">=", 0.85)
    report.write(chosen.json)


if __name__ == "__main__":
    asyncio.run(main())
