"""Takes out of a virtual environment what a gateway to remote engines never loads.

    python3 slim.py /opt/venv

Nothing that the server imports or calls: `warm.py` runs after it and fails on what is missing.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

# Patterns below site-packages. What a pattern names need not be there; that a whole package is
# gone, or has another layout, shows in the size of the image, which is tested.
UNUSED = (
    # Tests, sources and headers.
    *("*/tests", "*/*/tests", "*/*/*/tests", "*/*.pyx", "*/*/*.pyx", "*/*.pxd", "*/*/*.pxd"),
    *("*/*.pxi", "*/*.pyi", "*/*/*.pyi", "*/*.[ch]", "pyarrow/include", "pyarrow/src"),
    *("numpy/_core/include", "numpy/_core/lib", "numpy/random/lib", "pyarrow/*_tests.*"),
    # Arrow's network services, file systems and query engine; Parquet needs none of them.
    *("pyarrow/libarrow_flight.*", "pyarrow/libarrow_python_flight.*", "pyarrow/_flight.*"),
    *("pyarrow/libarrow_s3.*", "pyarrow/_s3fs.*", "pyarrow/_gcsfs.*", "pyarrow/_azurefs.*"),
    *("pyarrow/_hdfs.*", "pyarrow/_substrait.*", "pyarrow/_dataset*.so", "pyarrow/_acero.*"),
    *("pyarrow/_orc.*", "pyarrow/_feather.*", "pyarrow/_json.*", "pyarrow/_csv.*"),
    # The same library under three names; the one in use is libarrow_python.so.<version>.
    *("pyarrow/libarrow_python.so", "pyarrow/libarrow_python.so.*.*.*"),
    # The networks of models and what trains them: tokenizers and configurations remain.
    *("transformers/models/*/modeling_*.py", "transformers/models/*/modular_*.py"),
    *("transformers/models/*/image_processing_*.py", "transformers/models/*/convert_*.py"),
    *("transformers/models/*/video_processing_*.py", "transformers/models/*/generation_*.py"),
    *("transformers/models/*/processing_*.py", "transformers/models/*/feature_*.py"),
    *("transformers/models/esm/openfold_utils", "transformers/cli", "transformers/exporters"),
    *("transformers/pipelines", "transformers/trainer*.py", "transformers/generation/continuous_*"),
    # Fortran to Python, what built numpy's kind once, and copies for numpy's own tests.
    *("numpy/f2py", "numpy/distutils", "numpy/_core/_simd.*", "numpy/_core/*_tests.*"),
    # Mechanics, optics, quanta; languages to colour.
    *("sympy/physics/*/", "sympy/*/benchmarks", "sympy/benchmarks", "pygments/lexers/[a-z]*.py"),
)
KEPT = (
    "transformers/models/auto/*",  # looked up by name when other modules are imported
    *("sympy/physics/units", "pygments/lexers/special.py", "pygments/lexers/python.py"),
)
# Linked against by all of pyarrow, called by what is gone.
HOLLOW = ("libarrow_substrait.so.*", "libarrow_dataset.so.*", "libarrow_acero.so.*")
ELF = b"\x7fELF"


def main(venv: Path) -> None:
    (packages,) = venv.glob("lib/python3*/site-packages")
    for path in found(packages, UNUSED) - found(packages, KEPT):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # gone with its folder
    for library in found(packages / "pyarrow", HOLLOW):
        empty = ("-shared", "-nostdlib", "-x", "c", "/dev/null")
        subprocess.run(["cc", *empty, f"-Wl,-soname,{library.name}", "-o", library], check=True)
    for library in libraries(packages):
        subprocess.run(["strip", "--strip-unneeded", library], check=True)


def found(folder: Path, patterns: Iterable[str]) -> set[Path]:
    return {path for pattern in patterns for path in folder.glob(pattern)}


def libraries(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*.so*"):
        with path.open("rb") as file:
            if file.read(4) == ELF:
                yield path


if __name__ == "__main__":
    main(Path(sys.argv[1]))
