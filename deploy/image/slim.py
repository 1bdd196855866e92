"""Takes out of a virtual environment what a gateway to remote engines never loads.

    python3 slim.py /opt/venv

Nothing that the server imports or calls: `warm.py` runs after it and fails on what is missing.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Patterns below site-packages. What a pattern names need not be there; that a whole package is
# gone, or has another layout, shows in the size of the image, which is tested.
UNUSED = (
    # Tests, sources and headers.
    *("*/tests", "*/*/tests", "*/*/*/tests", "*/*.pyx", "*/*/*.pyx", "*/*.pxd", "*/*/*.pxd"),
    *("*/*.pxi", "*/*.pyi", "*/*/*.pyi", "pyarrow/include", "pyarrow/src", "numpy/_core/include"),
    # Arrow's network services, file systems and query engine; Parquet needs none of them.
    *("pyarrow/libarrow_flight.*", "pyarrow/libarrow_python_flight.*", "pyarrow/_flight.*"),
    *("pyarrow/libarrow_s3.*", "pyarrow/_s3fs.*", "pyarrow/_gcsfs.*", "pyarrow/_azurefs.*"),
    *("pyarrow/_hdfs.*", "pyarrow/_substrait.*", "pyarrow/_dataset*.so", "pyarrow/_acero.*"),
    *("pyarrow/_orc.*", "pyarrow/_feather.*", "pyarrow/_json.*", "pyarrow/_csv.*"),
    # The same library under three names; the one in use is libarrow_python.so.<version>.
    *("pyarrow/libarrow_python.so", "pyarrow/libarrow_python.so.*.*.*"),
    # The networks of models: tokenizers and configurations are what remains.
    *("transformers/models/*/modeling_*.py", "transformers/models/*/modular_*.py"),
    *("transformers/models/*/image_processing_*.py", "transformers/models/*/convert_*.py"),
    *("transformers/models/*/video_processing_*.py", "transformers/models/*/generation_*.py"),
    # Fortran to Python, and copies of functions that only numpy's own tests call.
    *("numpy/f2py", "numpy/_core/_simd.*", "numpy/_core/*_tests.*", "numpy/random/lib"),
    *("numpy/_core/lib", "sympy/*/benchmarks", "sympy/benchmarks"),
)
ELF = b"\x7fELF"


def main(venv: Path) -> None:
    (packages,) = venv.glob("lib/python3*/site-packages")
    for path in {path for pattern in UNUSED for path in packages.glob(pattern)}:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # gone with its folder
    for library in libraries(packages):
        subprocess.run(["strip", "--strip-unneeded", library], check=True)


def libraries(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*.so*"):
        with path.open("rb") as file:
            if file.read(4) == ELF:
                yield path


if __name__ == "__main__":
    main(Path(sys.argv[1]))
