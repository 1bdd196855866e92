"""From a round's traces to a model: compiled, mixed with demonstrations, trained in a process of
its own, whose memory is free afterwards and which goes on where it was killed."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.compile import Compile, Compiler
from trainer.errors import ConfigError, DataError, TrainingError
from trainer.folder import MODEL, REPORT, write_json
from trainer.held_out import HeldOut
from trainer.loop.children import Children, size, tail
from trainer.loop.config import Learning, Run
from trainer.loop.schedule import portion
from trainer.rows import read_header, read_rows, write_rows
from trainer.weights import config_of

SHOWN = 2000  # characters of a log
ROWS, BESIDE, CONFIG, LOG = "rows.parquet", "demonstrations.parquet", "train.json", "train.log"


@dataclass(frozen=True, slots=True)
class Learner:
    """One model of one round, in a folder of its own."""

    folder: Path
    how: Run
    children: Children
    seed: int

    async def compile(
        self, traces: Sequence[str], held_out: Sequence[HeldOut], profile: str | None
    ) -> dict[str, Any]:
        """Raises `DataError`: there is nothing to learn from, or traces cannot be used."""
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = Compile(
            objective=self.how.objective,
            traces=tuple(traces),
            out=self.folder / ROWS,
            profile=profile,
            held_out=tuple(held_out),
        )
        report = await asyncio.to_thread(Compiler(settings).run)
        return report.as_dict()

    async def mix(self, demonstrations: Path | None, turn: int) -> dict[str, Any]:
        """Others of the demonstrations than the turn before had."""
        wanted = self.how.demonstrations if isinstance(self.how, Learning) else 0
        if not wanted:
            return {"rows": 0}
        if demonstrations is None:
            raise DataError("demonstrations: the tasks come with none; set tasks.demonstrations")
        await asyncio.to_thread(self._mix, demonstrations, wanted, turn)
        return {"rows": wanted}

    def _mix(self, demonstrations: Path, wanted: int, turn: int) -> None:
        header = read_header(demonstrations)
        if header.kind != "tokens":
            raise DataError(f"{demonstrations}: rows of {header.kind}; demonstrations are tokens")
        size = sum(1 for _ in read_rows(demonstrations))
        if wanted > size:
            raise ConfigError(f"demonstrations: {wanted}; {demonstrations} has {size} rows")
        places = set(portion(size, wanted, turn, self.seed))
        rows = (row for n, row in enumerate(read_rows(demonstrations)) if n in places)
        write_rows(self.folder / BESIDE, header, rows)

    async def train(self, begin: str, like: str) -> dict[str, Any]:
        """From the model `begin`; a reward model gets the head that `like` has, unless the settings
        ask for another. Raises `TrainingError` with what the process said last."""
        files = [f for f in (self.folder / ROWS, self.folder / BESIDE) if f.exists()]
        output = self.folder / "run"
        settings = {
            "seed": self.seed,
            **({"head": head_of(like)} if self.how.objective.makes == "scores" else {}),
            **self.how.train,
            "model": begin,
            "rows": [str(file) for file in files],
            "output": str(output),
        }
        config = self.folder / CONFIG
        write_json(config, settings)  # JSON is YAML
        head = self.how.launch or (sys.executable,)
        log = self.folder / LOG
        begun = size(log)
        words = (*head, "-m", "trainer", "train", "--config", str(config))
        async with self.children.started(*words, log=log) as process:
            code = await process.wait()
        if code or not (output / MODEL).is_dir():
            raise TrainingError(f"training ended with {code}: {log}:\n{tail(log, begun)[-SHOWN:]}")
        return {"folder": str(output), "begin": begin, **_report(output / REPORT)}


def head_of(model: str) -> dict[str, Any]:
    """The settings of the head that a reward model has. Raises `DataError`."""
    config = config_of(model)
    (name,) = list(config.architectures or ()) or ("",)
    if name.endswith("ForProcessRewardModel"):
        return {"kind": "process"}
    if name.endswith("ForTokenClassification"):
        return {"kind": "token", "labels": config.num_labels}
    if name.endswith("ForSequenceClassification"):
        return {"kind": "sequence"}
    raise DataError(f"model {model}: architectures: {name or 'none'}: its head is not known")


def _report(file: Path) -> dict[str, Any]:
    told = json.loads(file.read_text())
    losses = [entry["loss"] for entry in told["log"] if "loss" in entry]
    return {
        **{name: told[name] for name in ("kind", "steps", "tokens", "rows") if name in told},
        "loss": {"first": losses[0], "last": losses[-1]} if losses else None,
    }
