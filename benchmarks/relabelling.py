"""What training does to the policy's label tokens, and what learning them anew gives back.

`python -m benchmarks.relabelling (--loop FOLDER | --policy FOLDER...) [--quick] [--json PATH]`

Of a loop with `labels` on the reference pair: what served first, and of each round the policy as
its objective left it and as its labels were learned anew; or of any policies of that shape. Each
samples the held-out puzzles; AUC is of its own labels at its own answers (the first line, the
third, the last), against their outcomes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Report, arguments
from benchmarks.puzzles import held_out, question
from trainer.loop.state import FILE
from trainer.reference.checkpoint import WEIGHTS, load_policy
from trainer.reference.evaluate import by_depth, chosen, pass_at
from trainer.reference.model import Shape
from trainer.reference.rollouts import attempts
from trainer.reference.scores import by_labels
from trainer.reference.tokenizer import VOCABULARY, prompt

DEPTHS = ("1", "3", "last")


def read_options() -> argparse.Namespace:
    parser = arguments(__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--loop", type=Path, help="folder of a loop")
    which.add_argument("--policy", type=Path, nargs="+", help="folders of policies")
    parser.add_argument("--samples", type=int, default=16, help="answers a puzzle")
    return parser.parse_args()


def of_loop(loop: Path) -> Iterator[tuple[str, Path]]:
    """Policies by their names, in the order that they were made."""
    stages: dict[str, Any] = json.loads((loop / FILE).read_text())["stages"]
    yield "what served first", Path(stages["0/base"]["policy"]["folder"])
    for name, record in stages.items():
        number, _, stage = name.partition("/")
        if stage in ("train-policy", "train-labels"):
            yield f"round {number}: {record['objective']}", Path(record["folder"]) / "model"


def row_of(name: str, folder: Path, puzzles: int, samples: int) -> dict[str, Any]:
    policy = load_policy(Shape(VOCABULARY), folder / WEIGHTS)
    asked = [(p, prompt([question(p)])) for p in held_out(puzzles) for _ in range(samples)]
    found = attempts(policy, asked, torch.Generator().manual_seed(0), 192)
    verdicts = by_labels(policy, found)
    auc, best = by_depth(found, verdicts), chosen(found, verdicts, samples)
    return {
        "policy": name,
        "pass@1": pass_at(found, 1),
        **{f"AUC, line {depth}": auc[depth]["outcome"] for depth in DEPTHS},
        **{f"{k.replace('_', ' of ')} by labels": v for k, v in best.items()},
    }


def main() -> None:
    options = read_options()
    puzzles, samples = (20, 8) if options.quick else (200, options.samples)
    report = Report("relabelling", quick=options.quick, samples=samples)
    every = list(of_loop(options.loop)) if options.loop else [(str(p), p) for p in options.policy]
    rows = []
    with report.progress(len(every)) as done:
        for name, folder in every:
            rows.append(row_of(name, folder, puzzles, samples))
            done()
    report.table(f"{puzzles} held-out puzzles, {samples} answers each", rows)
    report.write(options.json)


if __name__ == "__main__":
    main()
