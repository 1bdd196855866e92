"""What a loop came to: every figure of every round as JSON, and accuracy against rounds."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from trainer.folder import write_json
from trainer.loop.state import State

JSON, PLOT = "figures.json", "accuracy"
SUFFIXES = (".png", ".svg")
COLOURS = {"greedy": "C0", "pass_at_1": "C1", "search": "C2"}


def collected(state: State) -> list[dict[str, Any]]:
    """A row a round, the base being round 0; of the last one, what is known so far."""
    rounds: dict[int, dict[str, Any]] = {}
    for name, record in state.stages.items():
        number, _, stage = name.partition("/")
        if number.isdigit():
            rounds.setdefault(int(number), {})[stage] = record
    return [{"round": number, **rounds[number]} for number in sorted(rounds)]


def write(state: State) -> None:
    told = {"settings": state.settings, "rounds": collected(state)}
    write_json(state.folder / JSON, told)


def plot(rounds: Sequence[dict[str, Any]], into: Path) -> str | None:
    """`into`.png and .svg; a sentence instead where that cannot be."""
    measured = [row for row in rounds if "evaluation" in row]
    if not measured:
        return "no plot: no round was measured yet"
    try:
        figure_of = import_module("matplotlib.figure").Figure  # of no use to a server
    except ImportError:
        return "no plot: matplotlib is not installed: pip install matplotlib"
    figure = figure_of(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for name in measured[0]["evaluation"]["standard_error"]:
        axes.errorbar(
            [row["round"] for row in measured],
            [row["evaluation"][name] for row in measured],
            [row["evaluation"]["standard_error"][name] for row in measured],
            color=COLOURS.get(name, "C3"),
            marker="o",
            capsize=3,
            label=titled(name),
        )
    axes.set_xticks([row["round"] for row in measured])
    axes.set(xlabel="round", ylabel="accuracy", ylim=(0, 1))
    axes.set_title(f"{measured[0]['evaluation']['problems']} held-out problems")
    axes.grid(alpha=0.3)
    axes.legend()
    for suffix in SUFFIXES:
        figure.savefig(into.with_suffix(suffix), dpi=120)
    return None


def titled(name: str) -> str:
    return f"pass@{name.removeprefix('pass_at_')}" if name.startswith("pass_at_") else name
