"""Traces to rows: read, validate, sift, grade, group by problem, and let the objective make rows.

No torch: it runs where the traces are. What was left out, and why, is told on the terminal and
stands in the header of the rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, Field, field_validator
from rich.console import Console

from server.reward.verifiers import AnyVerifier
from trainer.errors import DataError
from trainer.grade import Grader
from trainer.held_out import Game24, HeldOut
from trainer.objectives import AnyObjective
from trainer.profiles import named
from trainer.report import Report
from trainer.rows import Header, RowWriter
from trainer.sequences import problem
from trainer.settings import load
from trainer.sift import Sift
from trainer.source import read
from trainer.tree import Tree

EMAIL = r"[\w.+-]+@[\w-]+\.\w[\w.]*"


class Compile(BaseModel):
    """One compilation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    objective: AnyObjective
    traces: tuple[str, ...] = Field(
        min_length=1, description="files, folders, URLs of fsspec, redis://host:6379/0#stream"
    )
    out: Path
    verify: AnyVerifier | None = Field(None, description="its verdicts come before logged ones")
    profile: str | None = Field(None, description="of the policy; chosen by its name if unset")
    private: tuple[str, ...] = Field(
        (EMAIL,), description="patterns; a trace in whose text one is found is left out"
    )
    held_out: tuple[HeldOut, ...] = (Game24(),)

    @field_validator("private")
    @classmethod
    def _patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no pattern: {error}") from error
        return patterns


class Compiler:
    def __init__(self, settings: Compile):
        self.settings, self.report = settings, Report()
        self._sift = Sift(settings.private, settings.held_out)
        self._profile = named(settings.profile, "profile") if settings.profile else None
        self._first: Tree | None = None  # whose tokenizer all others must have

    def run(self) -> Report:
        """Write the rows. Raises `DataError`, `ConfigError`; there is no file then."""
        settings, objective = self.settings, self.settings.objective
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            grader = stack.enter_context(Grader(settings.verify)) if settings.verify else None
            writer = stack.enter_context(RowWriter(settings.out, self._header()))
            trees = self._trees(grader)
            groups = by_problem(trees) if objective.across else ([tree] for tree in trees)
            for group in groups:
                for row in objective.rows(group, self.report.passed_over):
                    self.report.add(row)
                    writer.add(row)
            if not writer.count:
                raise DataError(self.report.nothing(settings.traces))
            writer.close(self._header())
        return self.report

    def _trees(self, grader: Grader | None) -> Iterator[Tree]:
        """What may be learned from, each with its outcomes."""
        for found in read(self.settings.traces):
            self.report.read += 1
            tree = Tree(found.trace, found.where, None, self._profile)
            if reason := self._sift.objection(found.trace) or self._foreign(tree):
                self.report.left_out[reason] += 1
                continue
            if grader:
                tree = Tree(found.trace, found.where, grader.outcomes(tree), self._profile)
            self.report.take(tree)
            yield tree

    def _foreign(self, tree: Tree) -> str | None:
        """Why its ids cannot be learned from. Raises `DataError` if they are another policy's."""
        if self.settings.objective.vocabulary is not None:
            return None
        sha = tree.trace.versions.tokenizer_sha
        if sha is None:
            return "its token ids are not the policy's own"
        first = self._first = self._first or tree
        if sha != first.trace.versions.tokenizer_sha:
            raise DataError(
                f"{tree.where}: its tokenizer is not that of {first.where}; compile them apart"
            )
        return None

    def _header(self) -> Header:
        objective = self.settings.objective
        versions = self._first.trace.versions if self._first else None
        own = (versions.model_id, versions.tokenizer_sha) if versions else ("", None)
        model, sha = objective.vocabulary or own
        return Header(
            kind=objective.makes,
            objective=objective.model_dump(mode="json"),
            model_id=model,
            tokenizer_sha=sha,
            versions=tuple(self.report.versions),
            report=self.report.as_dict(),
        )


def by_problem(trees: Iterable[Tree]) -> Iterator[Sequence[Tree]]:
    """All trees of a problem together: they are all in memory for that."""
    found: dict[str, list[Tree]] = {}
    for tree in trees:
        found.setdefault(problem(tree.trace), []).append(tree)
    yield from found.values()


def command(
    out: Annotated[
        Path | None, typer.Option(help="The file of rows to write.", dir_okay=False)
    ] = None,
    objective: Annotated[str | None, typer.Option(help="Such as sft, dpo, grpo, prm_soft.")] = None,
    traces: Annotated[
        list[str] | None,
        typer.Option(help="A file, folder or URL, redis://host:6379/0#stream among them."),
    ] = None,
    verify: Annotated[
        str | None, typer.Option(help="A verifier to grade answers with: its kind, or JSON.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML settings.", dir_okay=False)] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="objective.k=4")
    ] = None,
) -> None:
    """Compile search traces into rows to train on."""
    words = []
    if out is not None:
        words.append(f"out={json.dumps(str(out))}")
    if traces:
        words.append(f"traces={json.dumps(traces)}")
    if objective:
        words.append(f"objective.kind={objective}")
    if verify:
        words.append(f"verify={verify}" if verify.startswith("{") else f"verify.kind={verify}")
    settings = load(Compile, config, [*words, *(set_ or [])])
    report = Compiler(settings).run()
    Console(stderr=True).print(report.table(settings.out))
