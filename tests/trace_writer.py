"""A program that writes traces until it is killed: `python -m tests.trace_writer FOLDER POLICY`.

Prints how many traces are durable after each round.
"""

from __future__ import annotations

import asyncio
import sys
from itertools import count
from pathlib import Path

from server.config import TraceSettings
from server.traces.local import LocalStore
from tests.traces import make_node, make_trace

ROUND = 20


async def main(folder: Path, policy: str) -> None:
    settings = TraceSettings.model_validate({"folder": folder, "fsync": policy, "compact_rows": 70})
    store = LocalStore(settings)
    await store.start()
    for start in count(0, ROUND):
        for number in range(start, start + ROUND):
            store.put(make_trace(f"{number:06d}", nodes=NODES))
        await store.flush()
        print(start + ROUND, flush=True)


NODES = (make_node(0, None), *(make_node(i, 0, text="3 * 8 = 24\n" * 9) for i in range(1, 300)))

if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
