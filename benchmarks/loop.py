"""The closed loop from the shipped pair: what each round of search and training comes to.

`python -m benchmarks.loop [--quick] [--rounds N] [--out FOLDER] [--json PATH]`

Rounds of `configs/train/loop.yaml`: searches on training puzzles, expert iteration from the base
(and preferences, once a round no longer helps much), the PRM refreshed on what the new policy
writes, a gate on puzzles of its own, and figures on 200 held-out puzzles that neither training nor
the gate saw. A row is a round; round 0 is the shipped pair. The plot stands beside the JSON.

It can be broken off at any point, and goes on with the same `--out`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common import FOLDER, Report, arguments
from server.published import KINDS
from trainer.errors import TrainerError
from trainer.loop import figures
from trainer.loop.command import run
from trainer.loop.config import Loop
from trainer.settings import load

CONFIG = FOLDER.parent / "configs" / "train" / "loop.yaml"
OUT = FOLDER.parent / "runs" / "benchmark-loop"
QUICK = (
    "rounds=1",
    "per_round=12",
    "tasks={kind: game24, held_out: 12, gate: 8, demonstrations: 100}",
    "policy=[{objective: {kind: expert_iteration}, demonstrations: 30,"
    " train: {steps: 4, batch: 16, micro_batch: 16, off_policy: null,"
    " optimizer: {learning_rate: 5e-4}}}]",
    "prm.train={steps: 4, batch: 16, micro_batch: 16}",
    "evaluate.samples=4",
)


def read_options() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, help="as the settings say if unset; with --quick 1")
    parser.add_argument("--out", type=Path, help="folder of the loop, to go on with it")
    parser.add_argument("--config", type=Path, default=CONFIG, help="settings of another loop")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser.parse_args()


def settings_of(chosen: argparse.Namespace) -> Loop:
    out = chosen.out or OUT.with_name(f"{OUT.name}-quick" if chosen.quick else OUT.name)
    words = [f"out={out}", *(QUICK if chosen.quick else ()), *chosen.set]
    if chosen.rounds is not None:
        words.append(f"rounds={chosen.rounds}")
    return load(Loop, chosen.config, words)


def row_of(told: dict[str, Any], samples: int) -> dict[str, Any]:
    """A round as a line of the table."""
    evaluation, search = told["evaluation"], told.get("search", {})
    trained = told.get("train-policy", {})
    accepted = [kind for kind in KINDS if kind in told.get("publish", {})]
    stages = [record for record in told.values() if isinstance(record, dict)]
    return {
        "round": told["round"],
        "learned by": trained.get("objective", "-"),
        "promoted": ", ".join(accepted) or "-",
        "greedy": evaluation["greedy"],
        "pass@1": evaluation["pass_at_1"],
        f"pass@{samples}": evaluation[f"pass_at_{samples}"],
        "search": evaluation["search"],
        "standard_error": evaluation["standard_error"]["pass_at_1"],
        "search tokens": evaluation["search_tokens"],
        "solved": search.get("solved", float("nan")),
        "trained tokens": trained.get("tokens", 0),
        "seconds": sum(record["seconds"] for record in stages),
    }


def judge(report: Report, rows: list[dict[str, Any]]) -> None:
    first, last = rows[0], rows[-1]
    for name in ("pass@1", "greedy"):
        report.goal(f"{name}, points over the base", 100 * (last[name] - first[name]), ">=", 25)
    worst = min(100 * (b["pass@1"] - a["pass@1"]) for a, b in pairwise(rows))
    report.goal("pass@1, least gain of a round in points", worst, ">=", 0)
    report.goal("search with 16 simulations", last["search"], ">=", 0.85)


def main() -> None:
    chosen = read_options()
    settings = settings_of(chosen)
    report = Report("loop", quick=chosen.quick, settings=json.loads(settings.model_dump_json()))
    try:
        asyncio.run(run(settings))
    except TrainerError as error:
        raise SystemExit(f"loop: {error}") from error
    told = json.loads((settings.out / figures.JSON).read_text())["rounds"]
    rounds = [one for one in told if "evaluation" in one and one["round"] <= settings.rounds]
    rows = [row_of(one, settings.evaluate.samples) for one in rounds]
    report.table(f"{rounds[0]['evaluation']['problems']} held-out puzzles", rows)
    judge(report, rows)
    if chosen.json:
        report.tables["rounds"] = rounds
        if problem := figures.plot(rounds, chosen.json):
            print(problem)
    report.write(chosen.json)


if __name__ == "__main__":
    main()
