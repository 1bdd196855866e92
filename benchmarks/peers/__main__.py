"""Ponder beside its_hub 1.2.0, optillm 0.4.0 and TreeQuest 0.3.3, on the same engines.

`python -m benchmarks.peers [--quick] [--only SYSTEMS] [--methods METHODS] [--alone N] [--rounds N]
[--json PATH]`

One vLLM server for the policy and one for the PRM serve every row but those "in process". All
systems get the same held-out puzzles, the same temperature, token limits and step delimiter, and
no system prompt; a method has 16 samples (beam: width 4) or as many policy tokens. Each of theirs
is compared with the same of ours, and with 8 particles of ours, which spend less. Each system runs
in a process of its own, the peers in virtual environments of their own with exact versions
(`.cache/peers`), with their limits on requests in flight lifted. All are started before any is
measured, and take turns at each method, so that what is compared is measured within the same
minutes. Starting and warming up do not count. A row is the mean over rounds.

Policy and PRM tokens are differences of the servers' own counters. Idle is the share of the time
in which the policy's server had no request that it had not answered, in flight their mean number;
both are counted in the server, before all its own work (`occupancy.py`). In process there is no
server: it is the engine's own count of unfinished requests, looked at a hundred times a second,
and tokens are as the system reports them. A row that would take more than five minutes has
fewer puzzles.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from statistics import fmean, median
from typing import Any

from benchmarks.common import Report, arguments
from benchmarks.peers.environment import ROOT, python_of
from benchmarks.peers.goals import Run, compare, merged
from benchmarks.peers.rows import SYSTEMS, System
from benchmarks.peers.work import Job
from benchmarks.peers.workers import Servers, Worker, WorkerFailed, worker
from benchmarks.puzzles import Puzzle, held_out, question
from benchmarks.search import correct
from server.profiles import Profile, shipped
from tests.integration.servers import POLICY, vllm_server

PUZZLES = 64
QUICK = 8
FEW = 16  # for a slow method, one at a time
WARMUP = 4
TOGETHER = 16
N, WIDTH = 16, 4
TOKENS = 960  # policy tokens that 16 answers take
ENGINE = ("--max-num-seqs=256", f"--kv-cache-memory-bytes={1 << 29}", "--max-model-len=512")
QUIET = ("--uvicorn-log-level=warning",)
SCALE_OUT = ("--enable-scale-out",)  # tokens in, tokens out: as configs/remote.yaml has it
TITLE = "Held-out puzzles of the Game of 24; tokens a puzzle"
COUNTED = ("--middleware=benchmarks.peers.occupancy.Counted",)


def chosen_options() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--only", type=names, help=f"of {', '.join(s.name for s in SYSTEMS)}")
    parser.add_argument("--methods", type=names, help="such as best_of_n,particles-8")
    parser.add_argument("--puzzles", type=int, help=f"{PUZZLES} if not set")
    parser.add_argument("--alone", type=int, help="puzzles one at a time; as many if not set")
    parser.add_argument("--rounds", type=int, default=1, help="of each row, in turns; 1 if unset")
    parser.add_argument("--at-once", type=int, choices=(1, TOGETHER), help="both if not set")
    chosen = parser.parse_args()
    if chosen.rounds < 1:
        parser.error("--rounds: allowed are 1 and more")
    return chosen


def names(text: str) -> set[str]:
    return {plain(name) for name in text.split(",")}


def plain(name: str) -> str:
    """ours-http for "ours, HTTP"."""
    return re.sub(r"[^a-z0-9_]+", "-", name.lower())


@asynccontextmanager
async def servers(profile: Profile) -> AsyncIterator[Servers]:
    """The policy's and the PRM's, as vLLM's own server runs them."""
    token = json.loads((ROOT / "models" / "prm" / "tokenizer.json").read_text())
    step_id = {t["content"]: t["id"] for t in token["added_tokens"]}[profile.prm.step_token]
    pooler = {"task": "token_classify", "tok_pooling_type": "STEP", "step_tag_id": step_id}
    common = (*ENGINE, *QUIET)
    policy = vllm_server(
        str(ROOT / "models" / "policy"),
        "--served-model-name=policy",
        *POLICY,
        *SCALE_OUT,
        *COUNTED,
        *common,
    )
    prm = vllm_server(
        str(ROOT / "models" / "prm"),
        *("--served-model-name=prm", "--runner=pooling", f"--pooler-config={json.dumps(pooler)}"),
        *common,
    )
    async with policy as policy_url, prm as prm_url:
        yield Servers(policy_url, prm_url.removesuffix("/v1"))


def job_for(
    method: str, puzzles: list[Puzzle], at_once: int, profile: Profile, at: Servers | None
) -> Job:
    spare = held_out(PUZZLES + WARMUP * TOGETHER)[PUZZLES:]
    return Job(
        method=method,
        questions=[question(p) for p in puzzles],
        warmup=[question(p) for p in spare[: WARMUP if at_once == 1 else TOGETHER]],
        at_once=at_once,
        policy_url=at.policy if at else "",
        prm_url=at.prm if at else "",
        policy_model=at.policy_model if at else "",
        prm_model=at.prm_model if at else "",
        n=N,
        width=WIDTH,
        tokens=TOKENS,
        temperature=profile.sampling.temperature,
        max_tokens=profile.max_tokens,
        max_step_tokens=profile.max_step_tokens,
        delimiter=profile.delimiter,
        ending="Answer:",
    )


def final(text: str, profile: Profile) -> str:
    """The answer, by the profile's pattern; the same for all systems."""
    found = re.findall(profile.answer.pattern or "", text)
    return found[-1] if found else ""


def run_of(system: System, job: Job, puzzles: list[Puzzle], found: dict[str, Any]) -> Run:
    profile, answers, count = shipped()["reference"], found["answers"], len(puzzles)
    right = tuple(
        correct(p, final(a["text"], profile)) for p, a in zip(puzzles, answers, strict=True)
    )
    if "occupancy" in found and not system.served:
        found |= {
            "policy_tokens": sum(a["policy"] for a in answers),
            "prm_tokens": sum(a["prm"] for a in answers),
            "idle": 1 - found["occupancy"]["busy"] / found["wall"],
            "in_flight": found["occupancy"]["area"] / found["wall"],
        }
    return Run(
        {
            "system": system.name,
            "method": job.method,
            "at once": job.at_once,
            "puzzles": count,
            "right": fmean(right),
            "wall s": found["wall"],
            "s/puzzle": found["wall"] / count,
            "p50 s": median(a["seconds"] for a in answers),
            "policy tokens": found["policy_tokens"] / count,
            "PRM tokens": found["prm_tokens"] / count,
            "idle": found["idle"],
            "in flight": found["in_flight"],
            "requests": found.get("requests", 0) / count,
            "connections": int(found.get("connections", 0)),
            "errors": sum(a["error"] is not None for a in answers),
        },
        right,
    )


def started(system: System, at: Servers | None) -> AbstractAsyncContextManager[Worker]:
    python = python_of(system.peer) if system.peer else None
    own = at if system.served else None
    return worker(system.module, *system.arguments, servers=own, python=python)


class Bench:
    def __init__(self, options: argparse.Namespace, report: Report, advance: Callable[[], None]):
        self.runs: list[Run] = []
        self.failed: list[str] = []
        self._options, self._report, self._advance = options, report, advance
        self._profile = shipped()["reference"]
        self._count = options.puzzles or (QUICK if options.quick else PUZZLES)

    async def all(self) -> None:
        chosen = [
            s for s in SYSTEMS if not self._options.only or plain(s.name) in self._options.only
        ]
        methods = dict.fromkeys(method for system in chosen for method in system.methods)
        async with AsyncExitStack() as stack:
            at = None
            if any(s.served for s in chosen):
                at = await stack.enter_async_context(servers(self._profile))
            workers = {s: await stack.enter_async_context(started(s, at)) for s in chosen}
            for at_once in (1, TOGETHER):
                for method in (m for m in methods if self._wanted(m, at_once)):
                    its = [s for s in chosen if method in s.methods]
                    for system in its * self._options.rounds:
                        await self._row(workers[system], system, method, at_once)
                    self._keep()

    def _keep(self) -> None:
        """Write what there is so far: a run takes an hour, and may be cut off."""
        self._report.tables[TITLE] = [run.row for run in merged(self.runs)]
        self._report.write(self._options.json)

    def _wanted(self, method: str, at_once: int) -> bool:
        options = self._options
        chosen = not options.methods or plain(method) in options.methods
        return chosen and options.at_once in (None, at_once)

    async def _row(self, own: Worker, system: System, method: str, at_once: int) -> None:
        """A system that fails has no more of them, and the others go on."""
        if system.name in self.failed:
            return
        few = at_once == 1 and method in system.slow
        count = self._options.alone if at_once == 1 and self._options.alone else self._count
        puzzles = held_out(min(count, FEW) if few else count)
        job = job_for(method, puzzles, at_once, self._profile, own.servers)
        try:
            self.runs.append(run_of(system, job, puzzles, await own.run(job)))
        except WorkerFailed as error:
            self.failed.append(system.name)
            print(error, file=sys.stderr)
        self._advance()


async def main() -> None:
    options = chosen_options()
    setup = {"n": N, "width": WIDTH, "tokens": TOKENS, "rounds": options.rounds}
    report = Report("peers", quick=options.quick, **setup)
    rows = 2 * sum(len(s.methods) for s in SYSTEMS)
    with report.progress(rows * options.rounds) as advance:
        bench = Bench(options, report, advance)
        await bench.all()
    runs = merged(bench.runs)
    report.table(TITLE, [r.row for r in runs])
    compare(report, runs, (s.name for s in SYSTEMS if s.module == "ours_worker"), TOGETHER)
    report.setup["failed"] = bench.failed
    report.write(options.json)


if __name__ == "__main__":
    asyncio.run(main())
