"""What is searched and measured: tasks from JSON lines, and that none to be measured is learned."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.errors import PonderError
from server.profiles import Profile, choose
from server.reward.tools import Tools
from server.reward.verifiers import AnyVerifier, VerifierJudge
from server.traces.schema import Trace
from server.types import Message, Prompt
from trainer.errors import DataError
from trainer.grade import verdicts
from trainer.loop.config import TaskFiles
from trainer.node import Node
from trainer.tree import Tree

Model = TypeVar("Model", bound=BaseModel)


class Turn(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: str


class Task(BaseModel):
    """A question, and what tells whether an answer to it is right."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str = Field(min_length=1)
    messages: tuple[Turn, ...] = Field(min_length=1)
    verify: AnyVerifier

    @property
    def chat(self) -> list[dict[str, str]]:
        return [turn.model_dump() for turn in self.messages]

    @property
    def prompt(self) -> Prompt:
        return Prompt(tuple(Message(t.role, t.content) for t in self.messages), ())


@dataclass(frozen=True, slots=True)
class TaskSets:
    train: Sequence[Task]
    held_out: Sequence[Task]
    gate: Sequence[Task]
    demonstrations: Path | None

    @classmethod
    def read(cls, files: TaskFiles) -> TaskSets:
        """Raises `DataError`, which names the file and line, and what is in two sets."""
        train, held_out = read_tasks(files.train), read_tasks(files.held_out)
        gate = read_tasks(files.gate) if files.gate else held_out
        for other, file in ((held_out, files.held_out), (gate, files.gate or files.held_out)):
            check_apart(train, other, f"{files.train} and {file}")
        return cls(train, held_out, gate, files.demonstrations)

    def kept_out(self) -> Iterable[str]:
        """Lines for `held_out.Texts`: ids, and what users say."""
        for task in (*self.held_out, *self.gate):
            yield task.id
            yield from (" ".join(t.content.split()) for t in task.messages if t.role == "user")


def read_tasks(file: Path) -> list[Task]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: {error}") from error
    tasks = [parsed(Task, line, f"{file}:{n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not tasks:
        raise DataError(f"{file}: no tasks")
    seen: set[str] = set()
    for task in tasks:
        if task.id in seen:
            raise DataError(f"{file}: id: {task.id!r} stands there twice")
        seen.add(task.id)
    return tasks


def parsed(model: type[Model], line: str, where: str) -> Model:
    """A line of JSON. Raises `DataError` with `where` and the field."""
    try:
        # By its JSON form, strictly: a list for a tuple, but no "1" for a 1.
        return model.model_validate_json(json.dumps(json.loads(line)), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{where}: {place}: {first['msg']}") from None
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}") from None


def write_tasks(file: Path, tasks: Iterable[Task]) -> None:
    partial = file.with_name(f".{file.name}.tmp")
    partial.write_text("".join(t.model_dump_json(exclude_unset=True) + "\n" for t in tasks))
    partial.replace(file)


def check_apart(train: Sequence[Task], held_out: Sequence[Task], where: str) -> None:
    """Raises `DataError`: a task is in both."""
    ids, asked = {t.id for t in held_out}, {t.messages for t in held_out}
    both = [t.id for t in train if t.id in ids or t.messages in asked]
    if both:
        more = f" and {len(both) - 1} more" if len(both) > 1 else ""
        raise DataError(f"{where}: held out and trained on: {both[0]!r}{more}")


class Grading:
    """Verdicts on the answers of traces. Owns the verifiers' processes."""

    def __init__(self, profile: Profile | None):
        self._profile, self._tools = profile, Tools()

    async def ready(self, tasks: Iterable[Task]) -> None:
        """Raises `DataError` at a task whose answers could not be judged."""
        known: set[AnyVerifier] = set()
        for task in tasks:
            try:
                if check := getattr(task.verify, "check", None):
                    check(task.prompt)
                if task.verify not in known:
                    await task.verify.ready(self._tools)
                    known.add(task.verify)
            except PonderError as error:
                raise DataError(f"task {task.id!r}: verify: {error.message}") from error

    async def graded(self, task: Task, trace: Trace) -> tuple[Tree, dict[Node, float | None]]:
        """The tree, and the verdict on each answer that was finished."""
        profile = self._profile or choose(trace.versions.model_id)
        tree = Tree(trace, f"task {task.id!r}", None, profile)
        judge = VerifierJudge(task.verify, self._tools, profile.answer.pattern)
        try:
            return tree, await verdicts(judge, task.prompt, tree)
        except PonderError as error:
            raise DataError(f"task {task.id!r}: {error.message}") from error

    async def labelled(self, task: Task, trace: Trace) -> Trace:
        """The trace as the compiler is to see it: with its problem and every verdict."""
        _, found = await self.graded(task, trace)
        verdicts = {end.id: verdict for end, verdict in found.items()}
        nodes = tuple(
            node.model_copy(update={"outcome": verdicts[node.id]}) if node.id in verdicts else node
            for node in trace.nodes
        )
        changes: dict[str, Any] = {"problem_id": task.id, "nodes": nodes}
        return trace.model_copy(update=changes)

    async def close(self) -> None:
        await self._tools.close()
