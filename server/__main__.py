"""The `ponder` command.

What needs the whole server imports it when it runs: the rest shall answer at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import ponder_client
import typer

from server import keys
from server.config import Settings
from server.errors import PonderError
from server.live import ask as ask_at
from server.settings import load_settings
from server.sources import SettingsError

app = typer.Typer(
    help="A reasoning server: OpenAI's API in front, reward-guided search over vLLM behind.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Settings: files, environment, flags.", no_args_is_help=True)
app.add_typer(config_app, name="config")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", envvar="PONDER_CONFIG", help="YAML settings.", dir_okay=False),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as limits.tokens=4096."),
]
UrlOption = Annotated[
    str | None,
    typer.Option("--url", envvar="PONDER_URL", help="A running server, instead of one's own."),
]
KeyOption = Annotated[str | None, typer.Option("--api-key", envvar="PONDER_API_KEY")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    with complaints():
        app()


@contextmanager
def complaints() -> Iterator[None]:
    """Our errors as lines on stderr: status 2 for unusable settings, 130 for Ctrl-C, else 1."""
    try:
        yield
    except SettingsError as error:
        stop(2, "these settings cannot be used:", *error.problems)
    except PonderError as error:
        stop(1, error.message if error.param is None else f"{error.message} ({error.param})")
    except ponder_client.PonderError as error:
        stop(1, str(error))
    except (asyncio.CancelledError, KeyboardInterrupt):
        stop(130)


def stop(status: int, *lines: str) -> None:
    for line in lines:
        typer.echo(f"ponder: {line}", err=True)
    raise SystemExit(status)


@app.command()
def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0: any free one.")] = None,
    set_: SetOption = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then let running searches end."""
    given = {"server.host": host, "server.port": port}
    from server import running

    settings = settings_of(config, set_, {k: v for k, v in given.items() if v is not None})
    log_to_stderr(logging.INFO)
    running.run(lambda stopper: running.serve(settings, stopper))


@app.command()
def ask(
    question: str,
    config: ConfigOption = None,
    url: UrlOption = None,
    api_key: KeyOption = None,
    preset: Annotated[
        str | None, typer.Option(help="A published system's search, of GET /v1/presets.")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="Such as mcts, beam, best_of_n, vote; else the server's.")
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="KEY=VALUE", help="Of the strategy: simulations=32."),
    ] = None,
    budget_tokens: Annotated[int | None, typer.Option(help="Policy tokens, at most.")] = None,
    seed: int | None = None,
    deadline: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds, in which to have the best answer.")
    ] = None,
    as_json: JsonOption = False,
    set_: SetOption = None,
) -> None:
    """Ask one question, of a running server (--url) or of one started for it (--config)."""
    given = {"preset": preset, "seed": seed, "deadline": deadline}
    asked = request(strategy, param or [], budget_tokens, given)
    if url is not None:
        if set_:
            raise typer.BadParameter("a running server has its settings already: no --set")
        asyncio.run(ask_at(url, api_key, question, asked, as_json=as_json))
    else:
        from server import demo, running

        settings = settings_of(config, set_, {})
        log_to_stderr(logging.WARNING)
        running.run(lambda _: demo.ask_own(settings, question, asked, as_json=as_json))


def request(
    strategy: str | None, params: list[str], tokens: int | None, given: dict[str, Any]
) -> ponder_client.Asked:
    """What is asked of the search, beside the question."""
    if params and strategy is None:
        raise typer.BadParameter("--param belongs to a --strategy")
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if strategy is not None:
        asked["strategy"] = {"kind": strategy, **{k: plain(v) for k, v in pairs(params)}}
    if tokens is not None:
        asked["budget"] = {"tokens": tokens}
    return cast(ponder_client.Asked, asked)


def pairs(texts: list[str]) -> Iterator[tuple[str, str]]:
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE")
        yield key, value


def plain(text: str) -> Any:
    """JSON where it is JSON, else text: the server judges it."""
    try:
        return json.loads(text)
    except ValueError:
        return text


@app.command("demo")
def demo_(
    config: ConfigOption = None,
    once: Annotated[bool, typer.Option(help="End after the answer; status 1 if wrong.")] = False,
    set_: SetOption = None,
) -> None:
    """Start a server on a free port, solve a Game of 24 by MCTS, and go on serving."""
    from server import demo, running

    settings = settings_of(config, set_, {})
    log_to_stderr(logging.WARNING)
    right = running.run(lambda stopper: demo.demonstrate(settings, stopper, once=once))
    raise typer.Exit(0 if right else 1)


@app.command()
def models(
    config: ConfigOption = None,
    url: UrlOption = None,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what a request may name as its model: of a running server, or by the settings."""
    if url is not None:
        names = asyncio.run(models_at(url, api_key))
    else:
        from server import demo

        names = demo.names(settings_of(config, None, {}))
    typer.echo(json.dumps(names) if as_json else "\n".join(names))


async def models_at(url: str, api_key: str | None) -> list[str]:
    async with ponder_client.AsyncPonder(url, api_key) as ponder:
        return [model.id for model in await ponder.models()]


@app.command(
    "traces",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def traces_(context: typer.Context) -> None:
    """Look at recorded searches, export and compact them."""
    from server.traces import cli

    cli.app(context.args, prog_name="ponder traces")


@app.command()
def key(
    existing: Annotated[
        bool, typer.Option("--existing", help="Hash a key that is read from stdin.")
    ] = False,
) -> None:
    """Make an API key, and its hash for server.api_keys or server.admin_keys."""
    text = sys.stdin.readline().strip() if existing else keys.new_key()
    if not text:
        raise typer.BadParameter("there is no key on stdin")
    if not existing:
        typer.echo(f"key   {text}")
    typer.echo(f"hash  {keys.hashed(text)}")


@app.command("compact")
def compact_(
    config: ConfigOption = None,
    once: Annotated[bool, typer.Option(help="What is there now, then end: for a CronJob.")] = False,
    set_: SetOption = None,
) -> None:
    """Write the traces that replicas sent to Redis to Parquet in traces.store, until SIGTERM."""
    from server.traces import compactor

    settings = settings_of(config, set_, {})
    given = {"redis.url": settings.redis, "traces.store": settings.traces.store}
    if missing := [name for name, value in given.items() if value is None]:
        raise SettingsError([f"{name}: must be set, to compact" for name in missing])
    log_to_stderr(logging.INFO)
    compactor.run(settings, once=once)


@config_app.command("check")
def check(file: Annotated[Path, typer.Argument(dir_okay=False)], set_: SetOption = None) -> None:
    """Say whether FILE, with the environment and --set over it, is valid. Loads no model."""
    settings = settings_of(file, set_, {})
    prm = settings.prm.engine.model if settings.prm else "none"
    orm = f", orm {settings.orm.engine.model}" if settings.orm else ""
    typer.echo(f"{file}: ok (policy {settings.policy.model}, prm {prm}{orm})")


def settings_of(file: Path | None, texts: list[str] | None, flags: dict[str, Any]) -> Settings:
    return load_settings(file, os.environ, {**dict(pairs(texts or [])), **flags})


def log_to_stderr(level: int) -> None:
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=level, format=form)
    logging.getLogger("httpx").setLevel(logging.WARNING)


if __name__ == "__main__":
    main()
