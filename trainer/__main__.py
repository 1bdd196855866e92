"""The trainer's commands: `python -m trainer VERB`.

Each verb is the function `command` (or the typer app `app`) of its own module, which is read when
it is asked for: what compiles traces needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import typer

from server.errors import PonderError
from trainer.errors import TrainerError

# The verb, its module, and what the list of verbs says of it.
VERBS = {
    "reference": ("trainer.reference.command", "Make the shipped pair from nothing."),
    "compile": ("trainer.compile", "Search traces into rows to train on."),
    "score": ("trainer.score", "Rows with what a policy thinks of their tokens."),
    "train": ("trainer.train", "Rows into weights."),
    "loop": ("trainer.loop.command", "All of it, round after round."),
    "publish": ("trainer.publish", "Weights to servers, past the gate."),
    "rollback": ("trainer.rollback", "An earlier version to servers."),
}

app = typer.Typer(
    help="Search traces to rows, rows to weights, weights to the running server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def group() -> None:
    """A group even with a single verb."""


def verb(name: str, module: str) -> Callable[[typer.Context], None]:
    def run(context: typer.Context) -> None:
        found = import_module(module)
        inner = getattr(found, "app", None)
        if inner is None:
            inner = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            inner.command(name)(found.command)
        inner(context.args, prog_name=f"trainer {name}")

    return run


for name, (module, text) in VERBS.items():
    app.command(
        name,
        help=text,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(verb(name, module))


def main() -> None:
    try:
        app()
    except (TrainerError, PonderError) as error:
        for line in str(error).splitlines():
            typer.echo(f"trainer: {line}", err=True)
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
