"""Accuracy against tokens, for every strategy, as its budget grows from 60 to 4,000 policy tokens.

`python -m benchmarks.scaling [--quick] [--seeds N] [--book PATH] [--json PATH]`

Two sets of puzzles: 200 held-out ones, and ranks 901-1000 of the list of Tree of Thoughts
(arXiv 2305.10601; its test set, held out of training, too). A row is one size of one
strategy: the single chosen answer, means over seeds, the standard error over puzzles of the means
over seeds. `gated` rows have the rules of the game as a verifier (`verify`).

A seed takes about half an hour; with `--book` it can be broken off and goes on with the next call.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from benchmarks.common import Report, arguments
from benchmarks.puzzles import Puzzle, held_out, messages, question, ranked
from benchmarks.replay import replaying, tape
from benchmarks.search import correct
from benchmarks.stack import reference
from server.reward.verifiers import Countdown
from server.search import (
    DVTS,
    MCTS,
    Auto,
    Beam,
    BestOfN,
    Particles,
    Rebase,
    Revise,
    Strategy,
    Vote,
)
from server.service import Service

AT_ONCE = 32  # puzzles
SEEDS = 3
SIZES = (1, 4, 16, 64)  # answers, of about 60 tokens each
Grow = Callable[[int], Strategy]

STRATEGIES: Mapping[str, Grow] = {
    "best_of_n": lambda n: BestOfN(n=n),
    "vote, majority": lambda n: Vote(n=n),
    "vote, weighted": lambda n: Vote(n=n, choose="weighted"),
    "beam": lambda n: Beam(width=max(1, n // 4), branch=min(n, 4)),
    "dvts": lambda n: DVTS(trees=max(1, n // 4), branch=min(n, 4)),
    "particles": lambda n: Particles(n=n),
    "rebase": lambda n: Rebase(n=n),
    "mcts": lambda n: MCTS(simulations=2 * n),
    "mcts, wide": lambda n: MCTS(
        simulations=2 * n, branch=min(2 * n, 8), backup="max", c=1.0, stop_at=1.0
    ),
    "revise": lambda n: Revise(chains=max(1, n // 4), revisions=min(n, 4) - 1, history="last"),
    "auto": lambda n: Auto(probe=min(n, 2), answers=n),
}
GATED, GATE = ("vote, weighted", "mcts", "auto"), ", gated"


class Line(NamedTuple):
    """One strategy, as its budget grows."""

    name: str
    grow: Grow
    gated: bool

    @property
    def title(self) -> str:
        return self.name + (GATE if self.gated else "")


LINES = [
    *(Line(name, grow, False) for name, grow in STRATEGIES.items()),
    *(Line(name, STRATEGIES[name], True) for name in GATED),
]
Runs = dict[tuple[str, int], dict[str, float]]  # by line and size


class Plan(NamedTuple):
    seeds: int
    sizes: tuple[int, ...]


async def solve(
    service: Service, strategy: Strategy, puzzle: Puzzle, seed: int, gated: bool
) -> dict[str, float]:
    ask = service.prepare(
        messages=messages(puzzle),
        strategy=strategy,
        seed=seed,
        verify=Countdown() if gated else None,
    )
    outcome = await service.reason(ask)
    # The PRM reads each scored step once, and its step token (its verdicts are remembered between
    # the strategies, so its own count would be too low).
    read = sum(len(n.token_ids) + 1 for n in outcome.trace.nodes if n.prm_raw is not None)
    return {
        "right": float(correct(puzzle, outcome.answers[0].final or "")),
        "policy": outcome.usage.policy,
        "scorer": read,
    }


async def runs_of(service: Service, puzzle: Puzzle, seed: int, sizes: Sequence[int]) -> Runs:
    """Everything of one puzzle and seed; what strategies have in common is sampled once."""
    runs: Runs = {}
    with tape():
        for line in LINES:
            for size in sizes:
                runs[line.title, size] = await solve(
                    service, line.grow(size), puzzle, seed, line.gated
                )
    return runs


class Book:
    """The runs so far, on disk line by line, so that a long benchmark can be broken off."""

    def __init__(self, path: Path | None):
        self._path = path
        self._runs: dict[str, Runs] = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                self._runs[entry["key"]] = {(t, n): found for t, n, found in entry["runs"]}

    def get(self, key: str) -> Runs | None:
        return self._runs.get(key)

    def put(self, key: str, runs: Runs) -> None:
        self._runs[key] = runs
        if self._path is not None:
            rows = [[title, size, found] for (title, size), found in runs.items()]
            with self._path.open("a") as file:
                file.write(json.dumps({"key": key, "runs": rows}) + "\n")


async def fill(
    book: Book,
    service: Service,
    sets: Mapping[str, list[Puzzle]],
    plan: Plan,
    advance: Callable[[], None],
) -> None:
    """Run what the book lacks; all puzzles of one seed before the next."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(key: str, puzzle: Puzzle, seed: int) -> None:
        async with slots:
            if book.get(key) is None:
                book.put(key, await runs_of(service, puzzle, seed, plan.sizes))
            advance()

    await asyncio.gather(
        *(
            one(key_of(title, puzzle, seed), puzzle, seed)
            for seed in range(plan.seeds)
            for title, puzzles in sets.items()
            for puzzle in puzzles
        )
    )


def key_of(title: str, puzzle: Puzzle, seed: int) -> str:
    return f"{title} | {question(puzzle)} | {seed}"


def table_of(book: Book, title: str, puzzles: list[Puzzle], plan: Plan) -> list[dict[str, Any]]:
    runs = [book.get(key_of(title, p, seed)) or {} for p in puzzles for seed in range(plan.seeds)]
    return [summary(line.title, size, runs, plan.seeds) for line in LINES for size in plan.sizes]


def summary(title: str, size: int, runs: Sequence[Runs], seeds: int) -> dict[str, Any]:
    """`runs` has the seeds of a puzzle next to each other."""
    found = [run[title, size] for run in runs]
    rights = [mean(r["right"] for r in found[i : i + seeds]) for i in range(0, len(found), seeds)]
    policy, scorer = mean(r["policy"] for r in found), mean(r["scorer"] for r in found)
    return {
        "strategy": title,
        "size": size,
        "accuracy": mean(rights),
        "standard_error": stdev(rights) / len(rights) ** 0.5,
        "policy_tokens": policy,
        "all_tokens": policy + scorer,
    }


def falls(rows: list[dict[str, Any]]) -> float:
    """The largest fall from one size to the next, in standard errors of the difference."""
    worst = 0.0
    for before, after in pairwise(rows):
        error = (before["standard_error"] ** 2 + after["standard_error"] ** 2) ** 0.5
        worst = max(worst, (before["accuracy"] - after["accuracy"]) / max(error, 1e-9))
    return worst


def plot(tables: Mapping[str, list[dict[str, Any]]], into: Path) -> None:
    """One panel a set; PNG and SVG beside `into`."""
    figure = Figure(figsize=(7 * len(tables), 6), layout="constrained")
    for axes, (title, rows) in zip(
        figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True
    ):
        for name in dict.fromkeys(r["strategy"] for r in rows):
            line = [r for r in rows if r["strategy"] == name]
            place = list(STRATEGIES).index(name.removesuffix(GATE))
            axes.errorbar(
                [r["policy_tokens"] for r in line],
                [r["accuracy"] for r in line],
                [r["standard_error"] for r in line],
                color=f"C{place % 10}",
                marker="os"[place // 10],
                linestyle="--" if name.endswith(GATE) else "-",
                capsize=2,
                label=name,
            )
        axes.set(xscale="log", xlabel="policy tokens a puzzle", ylabel="accuracy", title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    into.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".png", ".svg"):
        figure.savefig(into.with_suffix(suffix), dpi=120)


def judge(report: Report, title: str, rows: list[dict[str, Any]]) -> None:
    lines = {n: [r for r in rows if r["strategy"] == n] for n in {r["strategy"] for r in rows}}
    for name, line in sorted(lines.items()):
        report.goal(f"{title}: {name} falls, in standard errors", falls(line), "<=", 2.0)
    best = max(lines["best_of_n"], key=lambda r: int(r["size"]))
    # A standard error below counts as reached: best-of-64 itself is not known better.
    level = best["accuracy"] - best["standard_error"]
    reached = [r["policy_tokens"] for r in lines["auto"] if r["accuracy"] >= level]
    share = min(reached, default=float("inf")) / best["policy_tokens"]
    report.goal(f"{title}: auto at best-of-64's accuracy, share of its tokens", share, "<=", 0.25)
    top = max(r["accuracy"] for r in rows)
    report.goal(f"{title}: the best single chosen answer", top, ">=", 0.90)


def read_options() -> argparse.Namespace:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--book", type=Path, help="file of single runs: what it has is not rerun")
    return parser.parse_args()


async def main() -> None:
    chosen = read_options()
    sets = {"200 held-out puzzles": held_out(200), "ranks 901-1000": ranked(901, 1000)}
    plan = Plan(chosen.seeds, SIZES)
    if chosen.quick:
        sets, plan = {title: p[:16] for title, p in sets.items()}, Plan(1, SIZES[:3])
    report = Report("scaling", quick=chosen.quick, seeds=plan.seeds, sizes=plan.sizes)
    book = Book(chosen.book)
    async with reference(**{"limits.searches": AT_ONCE}) as service:
        with report.progress(sum(map(len, sets.values())) * plan.seeds) as advance:
            await fill(book, replaying(service), sets, plan, advance)
    tables = {title: table_of(book, title, puzzles, plan) for title, puzzles in sets.items()}
    for title, rows in tables.items():
        report.table(title, rows)
        judge(report, title, rows)
    if chosen.json:
        plot(tables, chosen.json)
    report.write(chosen.json)


if __name__ == "__main__":
    asyncio.run(main())
