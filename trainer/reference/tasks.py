"""What a loop of the reference pair searches, is measured on, and learns beside: the Game of 24.

None of the puzzles that are measured is trained on (`trainer.held_out`); those that promotions go
by are no part of those whose figures are told.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from random import Random

from benchmarks.puzzles import Puzzle, draw, held_out, question, ranked
from server.engine.tokenizer import HFTokenizer
from server.reward.verifiers import Countdown
from trainer.errors import DataError
from trainer.loop.config import Game24, TaskFiles
from trainer.loop.tasks import Task, Turn, write_tasks
from trainer.reference.demonstrations import Mixture, conversation, example
from trainer.reference.puzzles import training
from trainer.reference.tokenizer import prompt
from trainer.rows import Header, TokenRow, write_rows

EVERY = 10_000  # puzzles: more than there are


def write(settings: Game24, folder: Path, policy: str, seed: int) -> TaskFiles:
    """The files of a loop; what is there is left as it is. `policy` is a folder or a hub name,
    whose tokenizer demonstrations are in. Raises `DataError`: it is another than the pair's."""
    folder.mkdir(parents=True, exist_ok=True)
    files = TaskFiles(
        train=folder / "train.jsonl",
        held_out=folder / "held_out.jsonl",
        gate=folder / "gate.jsonl",
        demonstrations=folder / "demonstrations.parquet" if settings.demonstrations else None,
    )
    assert files.gate is not None
    measured = held_out(settings.held_out)
    rng, learned = Random(seed), training(settings.largest)
    learned = rng.sample(learned, min(len(learned), settings.train or EVERY))
    for file, puzzles in (
        (files.train, learned),
        (files.held_out, measured),
        (files.gate, set_aside(measured)[: settings.gate]),
    ):
        if not file.exists():
            write_tasks(file, map(task, puzzles))
    if files.demonstrations and not files.demonstrations.exists():
        demonstrate(files.demonstrations, settings.demonstrations, policy, rng)
    return files


def set_aside(measured: Iterable[Puzzle]) -> list[Puzzle]:
    """Held out, but not measured, in an order by hash; the test set of Tree of Thoughts too."""
    rest = {*held_out(EVERY), *ranked(901, 1000)} - set(measured)
    return sorted(rest, key=lambda p: (draw(p), p))


def task(puzzle: Puzzle) -> Task:
    name = " ".join(map(str, puzzle))
    return Task(
        id=f"game24 {name}",
        messages=(Turn(role="user", content=question(puzzle)),),
        verify=Countdown(kind="countdown"),
    )


def demonstrate(file: Path, count: int, policy: str, rng: Random) -> None:
    """Conversations with the recipe's demonstrator, on puzzles that may be learned from."""
    tokenizer, puzzles, rows = HFTokenizer(policy), training(), []
    some = task(puzzles[0]).prompt.messages
    if tokenizer.render(some) != tuple(prompt([m.content for m in some])):
        raise DataError(f"{policy}: its tokenizer is not the reference pair's: no demonstrations")
    for number in range(count):
        puzzle = rng.choice(puzzles)
        made = example(conversation(puzzle, Mixture(), rng))
        ids = tuple(made.ids)
        if max(ids) < len(tokenizer):
            rows.append(TokenRow(f"demonstration-{number}", str(puzzle), ids, ce=made.weight))
    header = Header(
        kind="tokens",
        objective={"kind": "demonstrations"},
        model_id="demonstrator",
        tokenizer_sha=tokenizer.sha,
        versions=(),
        report={"conversations": count, "rows": len(rows)},
    )
    write_rows(file, header, rows)
