"""Imports every module of the server, and does once what loads libraries late.

    /opt/venv/bin/python warm.py FOLDER_WITH_A_TOKENIZER

Bytecode of what is used is written beside it, since a read-only root takes none later and the
rest would only need room. What an image lacks that the server needs is missed here, not by a user.
"""

import pkgutil
import sys
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow
import pyarrow.parquet
import uvloop  # noqa: F401  (uvicorn chooses it when it runs)
from transformers import CONFIG_MAPPING

import server
from server.engine.tokenizer import HFTokenizer
from server.sandbox import math
from server.types import Message

# What runs models in the process: not for an image without them.
ABSENT = {"vllm", "torch", "zmq"}


def main(sample: str) -> None:
    for module in pkgutil.walk_packages(server.__path__, "server."):
        if not module.name.endswith("__main__"):
            imported(module.name)
    import_module("server.__main__")
    assert HFTokenizer(sample).render([Message("user", "Use 4 9 10 13 to make 24.")])
    for gold, answer in (("24", "\\frac{48}{2}"), ("x^2 - 1", "(x - 1)(x + 1)")):
        assert math.work({"gold": gold, "answer": answer, "bare": True})
    parquet()
    sys.dont_write_bytecode = True
    assert len([CONFIG_MAPPING[name] for name in CONFIG_MAPPING]) > 100  # of any model


def imported(name: str) -> None:
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ABSENT:
            raise


def parquet() -> None:
    table = pyarrow.table({"ids": ["a", "b"], "values": [[0.5], []]})
    with TemporaryDirectory() as folder:
        file = Path(folder, "rows.parquet")
        pyarrow.parquet.write_table(table, file, compression="zstd")
        assert pyarrow.parquet.ParquetFile(file).read() == table


if __name__ == "__main__":
    main(sys.argv[1])
