"""A server started for one question, and the demonstration that goes on serving after it."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ponder_client import Asked, AsyncPonder
from ponder_client.asked import body
from rich.console import Console

from server.api.body import parse
from server.api.effort import ALIASES
from server.api.reason_schema import ReasonRequest
from server.config import Settings
from server.live import View, ask, show
from server.reward.verifiers.countdown import puzzle
from server.running import Running, Stopper, serving

QUESTION = "Use 4 9 10 13 to make 24."
ASKED: Asked = {"strategy": {"kind": "mcts", "simulations": 64}, "seed": 0}

# For the engines' processes: what they warn of is for operators, not for a first look.
QUIET = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",
}

SERVED = """
[bold]Serving at {url}/v1[/] until Ctrl-C. The same with the OpenAI SDK:

[cyan]from openai import OpenAI
ponder = OpenAI(base_url="{url}/v1", api_key="none")
print(ponder.chat.completions.create(model="ponder-mcts", \
messages=[{{"role": "user", "content": "{question}"}}]).choices[0].message.content)[/]
"""


def private(settings: Settings) -> Settings:
    """The same, on a free port of this machine alone, and with no key to know."""
    alone = {"host": "127.0.0.1", "port": 0, "api_keys": ()}
    return settings.model_copy(update={"server": settings.server.model_copy(update=alone)})


@asynccontextmanager
async def started(settings: Settings, console: Console) -> AsyncIterator[Running]:
    """A private server; says what takes so long."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    rewards = [r.engine.model for r in (settings.prm, settings.orm) if r is not None]
    models = [settings.policy.model, *rewards]
    with console.status(f"starting {' and '.join(models)}") as status:
        async with serving(private(settings)) as running:
            status.stop()
            yield running


async def ask_own(settings: Settings, question: str, asked: Asked, *, as_json: bool) -> None:
    """The same of a server that lives for this question only."""
    parse(ReasonRequest, json.dumps(body(question, asked)).encode())  # before a model is loaded
    async with started(settings, Console(stderr=True)) as running:
        await ask(running.url, None, question, asked, as_json=as_json)


async def demonstrate(settings: Settings, stopper: Stopper, *, once: bool) -> bool:
    """Solve a puzzle, say how to go on, serve until a signal. Whether the answer was right."""
    console = Console()
    async with started(settings, console) as running:
        async with AsyncPonder(running.url) as ponder:
            view = await show(ponder.stream(QUESTION, **ASKED), QUESTION, console)
        right = solved(view)
        console.print("[green]That is right." if right else "[red]That is not right.")
        if not once:
            console.print(SERVED.format(url=running.url, question=QUESTION), soft_wrap=True)
            stopper.running = running
            await running.ended
        return right


def solved(view: View) -> bool:
    asked = puzzle(QUESTION)
    assert asked is not None
    return view.answer is not None and asked.solved_by(view.answer.final or "")


def names(settings: Settings) -> list[str]:
    """What a server with these settings would offer."""
    policy = settings.policy
    return [policy.name or Path(policy.model).name, *ALIASES]
