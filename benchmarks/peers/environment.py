"""A peer's own virtual environment, so that ours stays as it is: made once, with exact versions."""

from __future__ import annotations

import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from shutil import rmtree

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "peers"
REQUIREMENTS = Path(__file__).parent / "requirements"


def python_of(peer: str) -> Path:
    """The interpreter of an environment with what `requirements/PEER.txt` lists and no more.

    Raises `CalledProcessError` if it cannot be installed.
    """
    wanted = REQUIREMENTS / f"{peer}.txt"
    told = f"{sys.version_info[:2]} {wanted.read_text()}"
    folder = CACHE / f"{peer}-{sha256(told.encode()).hexdigest()[:8]}"
    python = folder / "bin" / "python"
    complete = folder / "complete"
    if not complete.exists():
        rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        # The lists are complete; optillm also asks for packages that it does not need here.
        pip = [str(python), "-m", "pip", "install", "-qq", "--no-deps", "-r", str(wanted)]
        subprocess.run(pip, check=True)
        complete.touch()
    return python
