"""What each objective makes of the policy: the same traces, the same compute, held-out puzzles.

`python -m benchmarks.objectives [--quick] [--model FOLDER] [--book PATH] [--json PATH]`

Every objective learns from the policy's own searches (`benchmarks.training`), graded by the rules
of the game, for the same number of tokens; each run is one of `configs/train`, without packing, so
that tokens mean the same for all. Then the staged recipe: behaviour cloning (expert iteration),
then preferences or a policy gradient, on the same traces or on the cloned policy's own answers to
other puzzles (`fresh`); beside it behaviour cloning for the tokens of both stages, and on those
answers.

pass@1 is the mean of 16 samples at temperature 1; errors are standard errors over the puzzles, and
a gain is over the base, puzzle by puzzle. `kl` is KL(policy || base) of an answer, in nats,
estimated from two samples a puzzle. Trained policies are kept under `.cache/`; with `--book`,
measurements are, too, and a benchmark that was broken off goes on with the next call.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Callable, Sequence
from math import expm1, isnan, sqrt
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import torch
from matplotlib.figure import Figure
from transformers.utils.logging import disable_progress_bar

from benchmarks.common import Report, arguments
from benchmarks.puzzles import Puzzle, held_out, messages
from benchmarks.recipes import ALONE, BASE, BATCH, RECIPES, Plan, Recipe, Stage, Workshop
from benchmarks.search import correct
from benchmarks.stack import reference
from benchmarks.training import POLICY, others, search, stored
from server.search import Vote
from server.service import Outcome, Service
from server.traces.schema import Trace
from trainer.rows import Header, RowWriter, TokenRow, read_rows
from trainer.score import Scoring
from trainer.sequences import logged
from trainer.tree import Tree

SAMPLES = 16
TOLD = 2  # samples of a puzzle that the divergence is estimated from
AT_ONCE = 32  # puzzles
FULL = {"puzzles": 400, "tokens": 300_000, "measured": 200}
QUICK = {"puzzles": 24, "tokens": 6_400, "measured": 16}
ASKED = Vote(n=SAMPLES)  # of whom fresh traces are


class Book:
    """What was measured so far, on disk line by line."""

    def __init__(self, path: Path | None):
        self._path, self._found = path, dict[str, dict[str, Any]]()
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                self._found[entry["key"]] = entry["found"]

    def get(self, key: str) -> dict[str, Any] | None:
        return self._found.get(key)

    def put(self, key: str, found: dict[str, Any]) -> None:
        self._found[key] = found
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps({"key": key, "found": found}) + "\n")


async def measure(
    service: Service, folder: Path, base: Path, puzzles: Sequence[Puzzle], done: Callable[[], None]
) -> dict[str, Any]:
    """Of one policy, by puzzle: the share of right samples, and whether the likeliest is right."""
    await service.weights.load({"policy": str(folder)})
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, puzzle: Puzzle) -> tuple[float, float, Trace]:
        async with slots:
            sampled = await asked(service, puzzle, Vote(n=SAMPLES), number, 1.0)
            greedy = await asked(service, puzzle, Vote(n=1), number, 0.0)
            done()
            likeliest = correct(puzzle, greedy.answers[0].final or "")
            return share(puzzle, sampled.trace), float(likeliest), sampled.trace

    found = await asyncio.gather(*(one(n, puzzle) for n, puzzle in enumerate(puzzles)))
    return {
        "samples": [sampled for sampled, _, _ in found],
        "greedy": [greedy for _, greedy, _ in found],
        "kl": await asyncio.to_thread(divergence, [trace for _, _, trace in found], base),
    }


async def asked(
    service: Service, puzzle: Puzzle, strategy: Vote, seed: int, temperature: float
) -> Outcome:
    ask = service.prepare(
        messages=messages(puzzle),
        strategy=strategy,
        sampling={"temperature": temperature},
        seed=seed,
    )
    return await service.reason(ask)


def share(puzzle: Puzzle, trace: Trace) -> float:
    """Of right answers among all that were sampled; one without an end is wrong."""
    ends = Tree(trace, "a benchmark").ends
    right = [
        end.record.multiplicity
        for end in ends
        if end.ended and correct(puzzle, end.text().rpartition("Answer: ")[2].strip())
    ]
    return sum(right) / sum(end.record.multiplicity for end in ends) if ends else 0.0


def divergence(traces: Sequence[Trace], base: Path) -> float:
    """KL(policy || base) of an answer, in nats, from what the policy logged of its samples and what
    the base thinks of the same tokens."""
    header = Header(
        kind="tokens", objective={}, model_id="", tokenizer_sha=None, versions=(), report={}
    )
    with TemporaryDirectory() as folder:
        rows, scored = Path(folder) / "rows.parquet", Path(folder) / "scored.parquet"
        with RowWriter(rows, header) as writer:
            for trace in traces:
                tree = Tree(trace, "sampled")
                for end in tree.ends[:TOLD]:
                    turn = tree.turns(end)[0]
                    logp, _ = logged(trace, turn)
                    writer.add(TokenRow(trace.trace_id, "", turn.ids, logp=logp))
            writer.close()
        Scoring(str(base), str(base), batch=64).run(rows, scored)
        return fmean(drift(row) for row in read_rows(scored) if isinstance(row, TokenRow))


def drift(row: TokenRow) -> float:
    """Schulman's estimate, summed over tokens: r - 1 - log r, r = base / policy."""
    pairs = zip(row.logp, row.logp_ref, strict=True)
    log_ratios = [float(base - own) for own, base in pairs if not isnan(own)]
    return sum((expm1(log_ratio) - log_ratio for log_ratio in log_ratios), 0.0)


async def measure_all(
    report: Report, book: Book, shop: Workshop, recipes: Sequence[Recipe]
) -> None:
    """What the book lacks of these, and the fresh traces of stages still to come."""
    plan, puzzles = shop.plan, held_out(shop.plan.measured)
    missing = [r for r in recipes if book.get(key_of(shop, r)) is None]
    sources = shop.sources()
    if not missing and not sources:
        return
    settings = {"limits.searches": AT_ONCE, "policy.model": str(plan.model), "prm": None}
    async with reference(**settings) as service:
        total = len(missing) * len(puzzles) + len(sources) * plan.puzzles
        with report.progress(total) as advance:
            for recipe in missing:
                folder = shop.of(recipe.stages)
                found = await measure(service, folder, plan.model, puzzles, advance)
                book.put(key_of(shop, recipe), found)
            for stages in sources:
                await service.weights.load({"policy": str(shop.of(stages))})
                await search(service, others(plan.puzzles), [ASKED], shop.fresh(stages), advance)


def key_of(shop: Workshop, recipe: Recipe) -> str:
    return f"{shop.key} | {shop.plan.measured} | {recipe.name}"


def row_of(
    recipe: Recipe, found: dict[str, Any], base: dict[str, Any], run: Path
) -> dict[str, Any]:
    gains = [a - b for a, b in zip(found["samples"], base["samples"], strict=True)]
    trained = json.loads((run / "report.json").read_text()) if recipe.stages else {}
    rows = trained.get("rows", {}).get("kept", 0)
    log = trained.get("log", [{}])[-1]
    return {
        "recipe": recipe.name,
        "pass_at_1": fmean(found["samples"]),
        "error": error(found["samples"]),
        "gain": fmean(gains),
        "gain_error": error(gains),
        "greedy": fmean(found["greedy"]),
        "greedy_error": error(found["greedy"]),
        "kl": found["kl"],
        "rows": rows,
        "steps": trained.get("steps", 0),
        "seconds": float(log.get("train_runtime", 0.0)),
    }


def error(values: Sequence[float]) -> float:
    return stdev(values) / sqrt(len(values))


def judge(report: Report, found: dict[str, dict[str, Any]]) -> None:
    """The staged recipes against behaviour cloning alone: for the tokens of its first stage, for
    those of both, and with the fresh answers. The best of them is chosen by what it is judged by:
    the table has all."""
    rows = [
        compared(recipe.name, alone, found)
        for recipe in RECIPES
        if len(recipe.stages) > 1 and recipe.name not in ALONE
        for alone in ALONE
    ]
    report.table("Staged recipes, less behaviour cloning alone", rows)
    for alone in ALONE:
        best = max((r for r in rows if r["less"] == alone), key=lambda r: float(r["pass_at_1"]))
        report.goal(f"{best['recipe']}, less {alone}: pass@1", best["pass_at_1"], ">", 0.0)


def compared(name: str, alone: str, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"recipe": name, "less": alone}
    for title, values in (("pass_at_1", "samples"), ("greedy", "greedy")):
        pairs = zip(found[name][values], found[alone][values], strict=True)
        more = [a - b for a, b in pairs]
        row |= {title: fmean(more), f"{title}_error": error(more)}
    return row


def plot(rows: Sequence[dict[str, Any]], into: Path) -> None:
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))[::-1]
    for name, error_name, marker in (("pass_at_1", "error", "o"), ("greedy", "greedy_error", "s")):
        values, errors = [r[name] for r in rows], [r[error_name] for r in rows]
        axes.errorbar(values, places, xerr=errors, fmt=marker, capsize=2, label=name)
    axes.set_yticks(places, [r["recipe"] for r in rows])
    axes.set(xlabel="accuracy on held-out puzzles")
    axes.grid(alpha=0.3)
    axes.legend()
    into.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".png", ".svg"):
        figure.savefig(into.with_suffix(suffix), dpi=120)


def read_options() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, default=POLICY, help="folder of the policy")
    parser.add_argument("--tokens", type=int, help=f"of a stage; {FULL['tokens']} if unset")
    parser.add_argument("--book", type=Path, help="file of measurements: what it has is not rerun")
    return parser.parse_args()


def make(report: Report, shop: Workshop, stages: Sequence[tuple[Stage, ...]]) -> None:
    with report.progress(len(stages)) as advance:
        for each in stages:
            shop.make(each)
            advance()


def main() -> None:
    chosen = read_options()
    sizes = QUICK if chosen.quick else FULL
    plan = Plan(
        chosen.model.resolve(), **sizes | ({"tokens": chosen.tokens} if chosen.tokens else {})
    )
    report = Report("objectives", quick=chosen.quick, **plan._asdict(), batch=BATCH)
    disable_progress_bar()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    book = Book(chosen.book)
    shop = Workshop(plan, asyncio.run(stored(report, plan.model, plan.puzzles)))
    base = Recipe(BASE, ())
    now = [r for r in RECIPES if not any(s.fresh for s in r.stages)]
    later = [r for r in RECIPES if r not in now]
    make(report, shop, [r.stages for r in now])
    asyncio.run(measure_all(report, book, shop, [base, *now]))
    make(report, shop, [r.stages for r in later])
    asyncio.run(measure_all(report, book, shop, later))
    found = {r.name: book.get(key_of(shop, r)) or {} for r in (base, *RECIPES)}
    rows = [
        row_of(r, found[r.name], found[BASE], shop.run_of(r.stages) / "run")
        for r in (base, *RECIPES)
    ]
    report.table(f"{plan.measured} held-out puzzles, {plan.tokens} tokens a stage", rows)
    judge(report, found)
    if chosen.json:
        plot(rows, chosen.json)
    report.write(chosen.json)


if __name__ == "__main__":
    main()
