"""Two policy servers with small KV caches, many searches at once: what the prefix cache gives, by
how a request's server is chosen; what a gateway costs; how a KV cache is best split.

`python -m benchmarks.routing [--quick] [--json PATH] [--only ways,gateway,split]`

- ways: hit rate and tokens are by vLLM's own counters, of both servers together. `computed` are
  prompt tokens that were not found in the cache. Every way gets other prompts of the same kind, in
  rounds that take turns.
- gateway: `ponder serve` before the same servers; its CPU by the process's own count.
- split: both engines in this process, one KV cache's worth of memory for the two of them.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from time import perf_counter, process_time
from typing import Any

from benchmarks.common import Report, arguments
from benchmarks.routing.gateway import ROOT, cost, gateway
from benchmarks.routing.prompts import conversations
from benchmarks.routing.split import SHARES, TOTAL, split
from benchmarks.routing.ways import BY_SEARCH, LEAST, NEVER, PINNED, RANDOM, WAYS
from server.config import HttpSettings, Limits, Settings
from server.engine.http import HttpEngine
from server.profiles import shipped
from server.reward import Models
from server.search import Beam, BestOfN, Strategy
from server.service import Service
from server.types import Message
from tests.integration.servers import POLICY, metric, vllm_server

MODEL = str(ROOT / "models" / "policy")
KV_BYTES = 24 << 20  # each: 3 KiB a token, 8,000 tokens
AT_ONCE = 24  # searches
SEARCHES, QUICK = 96, 24  # of a round
ROUNDS = 3
FACTOR = 1.5  # the default
FLOOR = 64  # requests: what one of these servers has to do when it is not hot
METHODS: dict[str, Strategy] = {"beam 4x4": Beam(width=4, branch=4), "best-of-16": BestOfN(n=16)}
COUNTERS = {
    "queries": "vllm:prefix_cache_queries_total",
    "hits": "vllm:prefix_cache_hits_total",
    "generated": "vllm:generation_tokens_total",
    "preempted": "vllm:num_preemptions_total",
}
SERVER = (
    *POLICY,
    "--enable-scale-out",
    f"--kv-cache-memory-bytes={KV_BYTES}",
    "--max-num-seqs=128",
    "--uvicorn-log-level=warning",
)
PARTS = ("ways", "gateway", "split")


def chosen_options() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    chosen = parser.parse_args()
    chosen.only = set(chosen.only.split(","))
    if unknown := chosen.only - set(PARTS):
        parser.error(f"--only: no {', '.join(sorted(unknown))}; allowed: {', '.join(PARTS)}")
    return chosen


@dataclass(frozen=True)
class Round:
    """One way, once."""

    seconds: float
    cpu: float  # seconds of this process
    tokens: int  # of the policy, by ours
    counted: dict[str, float]  # by the servers
    spilled: int
    most: float  # the busier server's share of the requests


@asynccontextmanager
async def two_servers() -> AsyncIterator[list[str]]:
    async with vllm_server(MODEL, *SERVER) as first, vllm_server(MODEL, *SERVER) as second:
        yield [first, second]


def settings_of(urls: list[str], factor: float) -> HttpSettings:
    routing = {"floor": FLOOR, "factor": factor}
    known = {"url": urls[0], "urls": urls[1:], "model": MODEL, "priority": True}
    return HttpSettings.model_validate(known | {"routing": routing})


async def counters(urls: list[str]) -> dict[str, float]:
    return {k: sum([await metric(url, name) for url in urls]) for k, name in COUNTERS.items()}


async def measured(
    way: str, urls: list[str], strategy: Strategy, asked: list[list[Message]]
) -> Round:
    http = settings_of(urls, NEVER if way == PINNED else FACTOR)
    engine = HttpEngine(http)
    await engine.start()
    limits = Limits(searches=AT_ONCE, queue=len(asked))
    settings = Settings(policy=http, limits=limits)
    service = Service(settings, Models(WAYS[way](engine), shipped()["reference"]))
    asks = [service.prepare(messages=m, strategy=strategy) for m in asked]
    before, cpu, began = await counters(urls), process_time(), perf_counter()
    outcomes = await asyncio.gather(*map(service.reason, asks))
    seconds, cpu = perf_counter() - began, process_time() - cpu
    after, replicas = await counters(urls), engine.replicas()
    await service.weights.close()
    requests = [r.requests for r in replicas]
    return Round(
        seconds,
        cpu,
        sum(o.usage.policy for o in outcomes),
        {name: after[name] - before[name] for name in after},
        sum(r.spilled for r in replicas),
        max(requests) / sum(requests),
    )


def row(method: str, way: str, rounds: list[Round]) -> dict[str, Any]:
    total = {name: sum(r.counted[name] for r in rounds) for name in COUNTERS}
    tokens = sum(r.tokens for r in rounds)
    return {
        "search": method,
        "server": way,
        "hit_rate": total["hits"] / total["queries"],
        "computed": total["queries"] - total["hits"],
        "tokens": total["generated"],
        "preempted": total["preempted"],
        "seconds": fmean(r.seconds for r in rounds),
        "tokens_per_second": tokens / sum(r.seconds for r in rounds),
        "spilled": sum(r.spilled for r in rounds),
        "busier_share": fmean(r.most for r in rounds),
        "cpu_us_per_token": 1e6 * sum(r.cpu for r in rounds) / tokens,
    }


async def compare_ways(report: Report, urls: list[str], quick: bool) -> None:
    rounds, size = (1, QUICK) if quick else (ROUNDS, SEARCHES)
    found: defaultdict[tuple[str, str], list[Round]] = defaultdict(list)
    seed = 0
    with report.progress(rounds * len(METHODS) * len(WAYS)) as advance:
        for _ in range(rounds):
            for method, strategy in METHODS.items():
                for way in WAYS:
                    seed += 1
                    asked = list(islice(conversations(seed), size))
                    found[method, way].append(await measured(way, urls, strategy, asked))
                    advance()
    rows = {key: row(*key, rounds) for key, rounds in found.items()}
    report.table("Two servers, a search's requests", list(rows.values()))
    for method in METHODS:
        ours = rows[method, BY_SEARCH]
        for other in (RANDOM, LEAST):
            them = rows[method, other]
            report.goal(f"{method}: hits, {other}", ours["hit_rate"], ">=", them["hit_rate"])
            report.goal(f"{method}: computed, {other}", ours["computed"], "<=", them["computed"])
            report.goal(f"{method}: seconds, {other}", ours["seconds"], "<=", them["seconds"])
        pinned = rows[method, PINNED]["seconds"]
        report.goal(f"{method}: seconds, never spilling", ours["seconds"], "<=", 1.05 * pinned)


async def size_gateway(report: Report, urls: list[str], quick: bool) -> None:
    settings = {
        "profile": "reference",
        "policy.url": urls[0],
        "policy.urls": urls[1:],
        "policy.model": MODEL,
        "policy.tokenizer": MODEL,
        "policy.routing": {"floor": FLOOR},
        "limits.searches": AT_ONCE,
        "traces.enabled": False,
    }
    rows = []
    async with gateway(settings) as (url, process):
        for seed, (method, strategy) in enumerate(METHODS.items(), 1000):
            asked = list(islice(conversations(seed), QUICK if quick else SEARCHES))
            found = await cost(url, process, strategy.model_dump(mode="json"), asked)
            rate = 1e6 / found["cpu_us_per_token"]
            busy = found["cpu_us_per_token"] * found["tokens"] / found["seconds"] / 1e6
            here = {"gateway_busy": busy, "tokens_per_second_of_a_core": rate}
            rows.append({"search": method} | found | here)
    report.table("One gateway, whole requests and replies, by its own CPU", rows)


async def split_cache(report: Report, quick: bool) -> None:
    count = 8 if quick else 48
    rows = []
    for seed, share in enumerate(SHARES, 2000):
        asked = list(islice(conversations(seed), count))
        rows.append(await split(share, METHODS["beam 4x4"], asked, AT_ONCE))
    report.table(f"{TOTAL >> 20} MiB of KV cache for both, beam 4x4", rows)


async def main() -> None:
    chosen = chosen_options()
    report = Report("routing", quick=chosen.quick, kv_bytes=KV_BYTES, at_once=AT_ONCE, floor=FLOOR)
    if chosen.only & {"ways", "gateway"}:
        async with two_servers() as urls:
            if "ways" in chosen.only:
                await compare_ways(report, urls, chosen.quick)
                report.write(chosen.json)
            if "gateway" in chosen.only:
                await size_gateway(report, urls, chosen.quick)
                report.write(chosen.json)
    if "split" in chosen.only:
        await split_cache(report, chosen.quick)
    report.write(chosen.json)


if __name__ == "__main__":
    asyncio.run(main())
