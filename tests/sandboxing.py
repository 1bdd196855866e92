"""Programs and their tests, given to a pool."""

from __future__ import annotations

from textwrap import dedent

from server.sandbox.lockdown import Limits
from server.sandbox.pool import Pool

MEMORY = 1 << 29  # bytes
STRICT = Limits(seconds=20.0, memory_bytes=MEMORY, strict=True)
WEAK = Limits(seconds=20.0, memory_bytes=MEMORY, strict=False)


async def judged(pool: Pool, program: str, tests: str) -> tuple[int, int]:
    """Tests passed, and tests in all."""
    passed, total = await pool.run({"program": dedent(program), "tests": dedent(tests)})
    return passed, total
