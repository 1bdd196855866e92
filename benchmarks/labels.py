"""One engine that labels its own steps, or a reward model in an engine beside it.

`python -m benchmarks.labels [--quick] [--json PATH]`

The shipped pair with its PRM, and its policy alone with the `label` reward. Each is started in a
process of its own, in turns; start-up is from the process's beginning to where a search can begin,
memory is what the process and its engines hold by themselves and their share of what they share
(PSS). Then held-out puzzles by several searches, the same for both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, median
from time import time
from typing import Any

import psutil

from benchmarks.common import FOLDER, Report, arguments
from benchmarks.puzzles import held_out
from benchmarks.search import Method, run_method
from benchmarks.stack import reference
from server.search import MCTS, Beam, BestOfN, Particles, Vote

SETUPS: dict[str, dict[str, Any]] = {"prm": {}, "label": {"prm": None}}
METHODS = (
    Method("best-of-16", BestOfN(n=16)),
    Method("vote-16 weighted", Vote(n=16, choose="weighted")),
    Method("beam 4x4", Beam(width=4, branch=4)),
    Method("particles-16", Particles(n=16)),
    Method("mcts-64", MCTS(simulations=64)),
)
PUZZLES, QUICK = 200, 16
ROUNDS = 2
SHOWN = ("accuracy", "found", "policy_tokens", "prm_computed", "prm_cached", "seconds")


def read_options() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--setup", choices=SETUPS, help=argparse.SUPPRESS)
    return parser.parse_args()


async def one(setup: str, puzzles: int) -> dict[str, Any]:
    """What a process of its own measures."""
    began = psutil.Process().create_time()
    async with reference(**SETUPS[setup]) as service:
        started = time() - began
        tasks = held_out(puzzles)
        await run_method(service, METHODS[0], tasks[:8], lambda: None)  # warm up
        rows = [await run_method(service, method, tasks, lambda: None) for method in METHODS]
        me = psutil.Process()
        memory = sum(p.memory_full_info().pss for p in (me, *me.children(recursive=True)))
    return {"started": started, "memory": memory, "rows": rows}


def in_process(setup: str, *, quick: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.labels", "--setup", setup]
    done = subprocess.run(
        [*command, *(["--quick"] if quick else [])],
        cwd=FOLDER.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def searches(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each search and setup: means over the rounds, the median of the seconds."""
    rows = []
    for n, method in enumerate(METHODS):
        for setup, rounds in found.items():
            each = [one["rows"][n] for one in rounds]
            told = {key: mean(row[key] for row in each) for key in SHOWN}
            told["seconds"] = median(row["seconds"] for row in each)
            rows.append({"search": method.name, "reward": setup} | told)
    return rows


def compare(report: Report, quick: bool) -> None:
    count = 1 if quick else ROUNDS
    found: dict[str, list[dict[str, Any]]] = {setup: [] for setup in SETUPS}
    with report.progress(count * len(SETUPS)) as advance:
        for _ in range(count):
            for setup in SETUPS:
                found[setup].append(in_process(setup, quick=quick))
                advance()
    costs = [
        {
            "reward": setup,
            "start-up, s": median(one["started"] for one in rounds),
            "memory, MiB": median(one["memory"] for one in rounds) / 2**20,
            "accuracy": mean(row["accuracy"] for one in rounds for row in one["rows"]),
            "seconds": median(sum(row["seconds"] for row in one["rows"]) for one in rounds),
        }
        for setup, rounds in found.items()
    ]
    report.table("All searches", costs)
    report.table("By search: accuracy, tokens a puzzle, seconds for all", searches(found))


def main() -> None:
    chosen = read_options()
    puzzles = QUICK if chosen.quick else PUZZLES
    if chosen.setup is not None:
        print(json.dumps(asyncio.run(one(chosen.setup, puzzles))))
        return
    report = Report("labels", quick=chosen.quick, puzzles=puzzles, rounds=ROUNDS)
    compare(report, chosen.quick)
    path: Path | None = chosen.json
    report.write(path)


if __name__ == "__main__":
    main()
