"""Whether a candidate may be published: it and what serves now, asked the same by the same server.

A policy and the PRM that was trained for it are one candidate: a PRM that never read what the new
policy writes misleads its search.

The server's app answers in this process, on no port. Both get the same problems with the same
seeds; every row is kept by the versions that it is of, so that what was measured once (what serves
now, when it was a candidate) is not measured again, and a gate that was killed goes on.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from secrets import token_urlsafe
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from ponder_client import AsyncPonder

from server.config import Settings
from server.launch import built
from server.profiles import Profile
from server.published import Kind
from server.settings import load_settings
from trainer.loop.client import LONG, Client
from trainer.loop.config import Standard
from trainer.loop.measure import Measuring
from trainer.loop.search import Progress
from trainer.loop.tasks import Grading, Task
from trainer.problems import Problems, Puzzles

BOOKS = ".measured"  # below the folder that servers follow
APART = {"server", "traces", "weights"}  # settings that change no answer


class Gate(Standard):
    """What a candidate has to stand, and on which problems."""

    problems: Problems = Puzzles()


@dataclass(frozen=True, slots=True)
class Served:
    """A server without a port."""

    client: Client
    settings: Settings
    profile: Profile


@asynccontextmanager
async def served(config: Path) -> AsyncIterator[Served]:
    """The server of a settings file. What it logs is thrown away."""
    key = token_urlsafe()
    async with AsyncExitStack() as stack:
        changes = {
            "server.admin_keys": [key],
            "traces.enabled": True,
            "traces.folder": stack.enter_context(TemporaryDirectory()),
            "weights.folder": None,
        }
        settings = load_settings(config, {}, changes)
        service, app = await built(settings, stack)
        ponder = AsyncPonder("http://gate", key, patience=LONG, transport=httpx.ASGITransport(app))
        client = Client(await stack.enter_async_context(ponder))
        yield Served(client, settings, service.models.profile)


def book(root: Path, gate: Gate, tasks: list[Task], settings: Settings) -> Path:
    """The file of what was measured of these problems, seeds and searches on such a server."""
    said = {
        "tasks": [task.model_dump(mode="json") for task in tasks],
        "measure": gate.measure.model_dump(mode="json", exclude={"at_once"}),
        "server": settings.model_dump(mode="json", exclude=APART),
    }
    digest = blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=8).hexdigest()
    return root / BOOKS / f"{digest}.jsonl"


async def compare(
    client: Client,
    gate: Gate,
    candidate: Mapping[Kind, Path],
    serving: Mapping[Kind, str],
    measuring: Measuring,
    tasks: list[Task],
    progress: Progress,
) -> dict[str, Any]:
    """The report on a candidate, beside what serves: `serving` are folders of promoted versions,
    where there are any. Raises `ReloadError` if no server would take it."""
    await client.load(serving)
    before = await measuring.run(client, tasks, progress)
    await client.load({**serving, **{kind: str(folder) for kind, folder in candidate.items()}})
    after = await measuring.run(client, tasks, progress)
    return {"gate": gate.model_dump(mode="json"), "candidate": after, "serving": before}


async def report_on(
    config: Path,
    gate: Gate,
    candidate: Mapping[Kind, Path],
    serving: Mapping[Kind, str],
    root: Path,
    progress: Progress,
) -> dict[str, Any]:
    """`compare` on the server of a settings file. Raises `TrainerError`, `PonderError`."""
    tasks = gate.problems.read()
    async with served(config) as server, AsyncExitStack() as stack:
        grading = Grading(server.profile)
        stack.push_async_callback(grading.close)
        await grading.ready(tasks)
        measuring = Measuring(book(root, gate, tasks, server.settings), gate.measure, grading)
        return await compare(server.client, gate, candidate, serving, measuring, tasks, progress)
