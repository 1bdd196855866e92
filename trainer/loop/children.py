"""Processes that end with the loop; what one that was killed left running, the next one ends.

Each is the head of a session and a process group of its own, and says all that it has to say to a
log in the loop's folder, by which it is known again: session numbers are used more than once, and
what a process is called or finds in its environment may be overwritten (vLLM's engines do that). It
is written down before it begins: until then it waits for a line from us, which never comes if we
are gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from asyncio.subprocess import PIPE, Process, create_subprocess_exec
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from trainer.folder import write_json

FILE = "children.json"
WAITS = ("/bin/sh", "-c", 'read -r go && exec "$@" </dev/null', "sh")
SECONDS = 60.0  # to end when asked to, before it is killed


@dataclass
class Children:
    folder: Path
    _running: set[int] = field(default_factory=set)

    def reap(self) -> int:
        """End what an earlier loop in the folder left; how many processes that were."""
        file = self.folder / FILE
        if not file.exists():
            return 0
        left = json.loads(file.read_text())
        found = [p for session in left["sessions"] for p in members(session, self.folder)]
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, SECONDS)
        file.unlink()
        return len(found)

    @asynccontextmanager
    async def started(
        self, *command: str, log: Path, environment: Mapping[str, str] | None = None
    ) -> AsyncIterator[Process]:
        """The process; its output is appended to `log`, which lies below our folder. It and what
        it has started are gone afterwards."""
        with log.open("ab") as output:
            process = await create_subprocess_exec(
                *WAITS,
                *command,
                stdin=PIPE,
                stdout=output,
                stderr=output,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        try:
            self._note(process.pid, True)
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            await process.stdin.drain()
            process.stdin.close()
            yield process
        finally:
            await self._end(process)
            self._note(process.pid, False)

    async def _end(self, process: Process) -> None:
        try:
            if process.returncode is None:
                process.terminate()
                async with asyncio.timeout(SECONDS):
                    await process.wait()
        except TimeoutError:
            pass
        finally:
            # Helpers of its own may outlive it, or it was not done in time.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    def _note(self, pid: int, running: bool) -> None:
        (self._running.add if running else self._running.discard)(pid)
        file = self.folder / FILE
        if self._running:
            write_json(file, {"sessions": sorted(self._running)})
        else:
            file.unlink(missing_ok=True)


def members(session: int, folder: Path) -> list[psutil.Process]:
    """The processes of a session that write to a file below the folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == session and writes_below(process, folder):
                found.append(process)
    return found


def writes_below(process: psutil.Process, folder: Path) -> bool:
    """Raises `psutil.Error` where that cannot be seen."""
    root = folder.resolve()
    return any(Path(file.path).is_relative_to(root) for file in process.open_files())


def size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def tail(log: Path, begin: int = 0) -> str:
    """What a process said, from byte `begin` on."""
    return log.read_bytes()[begin:].decode(errors="replace")
