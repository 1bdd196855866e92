"""Publishes the shipped pair, a little changed, to the claim of weights; by Redis at a URL."""

import shutil
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

MODELS = Path("/opt/ponder/models")


def changed(part: str) -> Path:
    """A copy of it under /tmp whose last tensor differs by a hundredth."""
    copy = Path(shutil.copytree(MODELS / part, Path("/tmp", part)))
    file = copy / "model.safetensors"
    tensors = load_file(file)
    last = sorted(tensors)[-1]
    tensors[last] = tensors[last] * 1.01
    save_file(tensors, file, metadata={"format": "pt"})
    return copy


if __name__ == "__main__":
    models = [f"--{part}={changed(part)}" for part in ("policy", "prm")]
    to = ("--to=/weights", f"--redis={sys.argv[1]}", "--ungated")
    command = [sys.executable, "-m", "trainer", "publish", *to, *models]
    sys.exit(subprocess.run(command, check=False).returncode)
