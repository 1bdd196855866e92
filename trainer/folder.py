"""A run's folder: what is in it, and which run it belongs to. No torch.

`settings.json` and `began.json` are of the run that it is; then come the prepared rows, whole
checkpoints and `tensorboard/`, and last `report.json`, `adapter/` where there is one, and `model/`.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from server.published import sha256
from trainer.config import TrainConfig
from trainer.errors import ConfigError, DataError

SETTINGS, BEGAN = "settings.json", "began.json"
REPORT, MODEL, ADAPTER = "report.json", "model", "adapter"
PARTIAL = ".partial"  # a checkpoint that is being saved


def claim(config: TrainConfig) -> None:
    """Makes the output folder this run's. Raises `ConfigError`: it is another's."""
    config.output.mkdir(parents=True, exist_ok=True)
    # What a run that was killed while saving has left.
    shutil.rmtree(config.output / PARTIAL, ignore_errors=True)
    file = config.output / SETTINGS
    own = json.loads(config.model_dump_json())
    if not file.exists():
        write_json(file, own)
        return
    theirs = json.loads(file.read_text())
    # A folder may be moved, and a run may go on at another place.
    differ = [key for key in own if own[key] != theirs.get(key) and key != "output"]
    if differ:
        said = ", ".join(f"{key} was {theirs.get(key)!r}, is {own[key]!r}" for key in differ)
        raise ConfigError(f"output: {config.output} is of a run with other settings: {said}")


def check_rows(config: TrainConfig) -> None:
    """Raises `DataError`: they are not those that the run began with, some of which are learned."""
    try:
        now = {str(file): sha256(file) for file in config.rows}
    except OSError as error:
        raise DataError(f"rows: {error.filename}: {error.strerror}") from error
    file = config.output / BEGAN
    if not file.exists():
        write_json(file, now)
        return
    before = json.loads(file.read_text())
    if other := [name for name, sha in now.items() if before.get(name) != sha]:
        raise DataError(
            f"{other[0]}: not the rows that the run in {config.output} began with: its sha256 "
            "differs; give the run another output"
        )


def write_json(file: Path, data: object) -> None:
    """Whole and durable, or not at all."""
    partial = file.with_name(f".{file.name}.tmp")
    with partial.open("w") as stream:
        stream.write(json.dumps(data, indent=2, default=str) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, file)
