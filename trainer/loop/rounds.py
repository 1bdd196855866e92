"""A loop: rounds of search, training, gate, publication and measurement, each stage done once.

    base      what serves first: its versions, and its figures
    N/search    N/compile-policy  N/train-policy  (N/compile-labels  N/train-labels)
    N/rollouts  N/compile-prm     N/train-prm     of what the new policy writes
    N/gate      N/publish         with the new PRM or the old, as it searches better  N/evaluation

A stage that is on record is skipped; one that was broken off goes on with the traces, rows of
figures or checkpoints that it left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from server.published import Kind
from trainer.errors import ConfigError, GateError
from trainer.held_out import HeldOut, Texts
from trainer.loop import figures
from trainer.loop.children import Children
from trainer.loop.client import Client, connected
from trainer.loop.config import Asked, Gate, Learning, Loop, Measure, Refresh, Run, TaskFiles
from trainer.loop.learn import Learner
from trainer.loop.measure import Measuring
from trainer.loop.schedule import chosen
from trainer.loop.search import Progress, Searches
from trainer.loop.server import Server, ponder_serve
from trainer.loop.standing import BASE, GATE, Standing
from trainer.loop.state import Record, State
from trainer.loop.tasks import Grading, Task, TaskSets
from trainer.passing import SEARCH, STANDARDS, check
from trainer.publish import check_finite, described, publish
from trainer.reference.tasks import write as write_game24

Runs = dict[Kind, Path]  # the folders of what a round has trained
TRACES, ROLLOUTS = "traces", "rollouts"  # of the round's searches; of its new policy


@dataclass
class Rounds:
    """`run` does what is left of a loop. Raises `TrainerError`."""

    settings: Loop
    server: Server
    children: Children
    state: State
    grading: Grading
    bar: Callable[[str], Progress]
    say: Callable[[str], object]
    tasks: TaskSets = field(init=False)

    async def run(self) -> None:
        await self._stage(BASE, self._base)
        self.tasks = TaskSets.read(self._files())
        if self.settings.per_round > (there := len(self.tasks.train)):
            raise ConfigError(f"per_round: {self.settings.per_round}; there are {there} tasks")
        await self.grading.ready((*self.tasks.train, *self.tasks.held_out, *self.tasks.gate))
        if self.settings.gate:
            await self._stage(GATE, partial(self._measure, "0", "gate"))
        await self._evaluate(0)
        for number in range(1, self.settings.rounds + 1):
            await self._round(number)

    async def _round(self, number: int) -> None:
        await self._stage(f"{number}/search", partial(self._search, number))
        runs: Runs = {"policy": await self._renewed(number)}
        if self.settings.prm is not None:
            runs["prm"] = await self._refreshed(number, self.settings.prm, runs)
        verdict = await self._stage(f"{number}/gate", partial(self._gate, number, runs))
        if verdict["accepted"]:
            await self._stage(f"{number}/publish", partial(self._publish, runs, verdict))
        await self._evaluate(number)

    async def _evaluate(self, number: int) -> None:
        await self._stage(f"{number}/evaluation", partial(self._measure, str(number), "evaluation"))
        problem = figures.plot(figures.collected(self.state), self.state.folder / figures.PLOT)
        if problem:
            self.say(problem)

    async def _renewed(self, number: int) -> Path:
        """The run of the round's policy."""
        run = await self._learn(number, "policy", self.settings.policy[self._phase(number)])
        return run if self.settings.labels is None else await self._label(number, run)

    async def _refreshed(self, number: int, how: Refresh, runs: Runs) -> Path:
        """The run of the PRM that goes with it: its labels are what the new policy comes to from
        each step (arXiv 2312.08935), on what it writes itself."""
        if how.searches:
            await self._stage(f"{number}/{ROLLOUTS}", partial(self._rollouts, number, how, runs))
        return await self._learn(number, "prm", how, ROLLOUTS if how.searches else TRACES)

    async def _learn(self, number: int, kind: Kind, how: Learning, traces: str = TRACES) -> Path:
        at, learner = f"{number}/{{}}-{kind}", self._learner(number, kind, how)
        await self._stage(at.format("compile"), partial(self._compile, learner, number, traces))
        trained = await self._stage(at.format("train"), partial(self._train, learner, kind, number))
        return Path(trained["folder"])

    async def _label(self, number: int, run: Path) -> Path:
        """The policy that was trained says again how good its steps are: what it learned is not
        what its labels were learned of."""
        assert self.settings.labels is not None
        learner = self._learner(number, "labels", self.settings.labels)
        await self._stage(f"{number}/compile-labels", partial(self._compile, learner, number))
        begin = str(described(run)[0])
        told = await self._stage(f"{number}/train-labels", partial(self._run, learner, begin))
        return Path(told["folder"])

    def _learner(self, number: int, name: str, how: Run) -> Learner:
        folder = self._folder(number) / name
        return Learner(folder, how, self.children, self.settings.seed + number)

    async def _stage(self, name: str, work: Callable[[], Any]) -> Record:
        if (known := self.state.get(name)) is not None:
            return known
        record = await self.state.run(name, work)
        self.say(f"{name}: {summary(record)}")
        figures.write(self.state)
        return record

    # What the stages do.

    async def _base(self) -> Record:
        client = await self.server.client()
        serving = await client.serving()
        if self.settings.prm is not None and "prm" not in serving:
            raise ConfigError("prm: the server has none to refresh")
        lacking = [kind for kind, told in serving.items() if not told["folder"]]
        if lacking:
            raise ConfigError(f"serve: the {lacking[0]} is served elsewhere: exchange it there")
        return {str(kind): told for kind, told in serving.items()}

    async def _search(self, number: int) -> Record:
        client = await self._serving()
        asked = self.settings.policy[self._phase(number)].searches or self.settings.searches
        return await self._searched(client, number, TRACES, asked)

    async def _rollouts(self, number: int, how: Refresh, runs: Runs) -> Record:
        async with self._trying() as client:
            await client.load(self._with({"policy": runs["policy"]}))
            return await self._searched(client, number, ROLLOUTS, how.searches)

    async def _searched(
        self, client: Client, number: int, name: str, asked: Sequence[Asked]
    ) -> Record:
        settings = self.settings
        tasks = chosen(self.tasks.train, settings.per_round, number - 1, settings.seed)
        # Others than the round's own, of the same tasks.
        seed = settings.seed * 1000 + number + (500 if name == ROLLOUTS else 0)
        folder = self._folder(number) / name
        searches = Searches(folder, asked, seed, settings.at_once, self.grading)
        return await searches.run(client, tasks, self.bar(f"{number}/{name}"))

    async def _compile(self, learner: Learner, number: int, traces: str = TRACES) -> Record:
        first = max(1, number - learner.how.rounds + 1)
        folders = [str(self._folder(n) / traces) for n in range(first, number + 1)]
        report = await learner.compile(
            [*folders, *self.settings.also], self._kept_out(), self.settings.profile
        )
        mixed = await learner.mix(self.tasks.demonstrations, number - 1)
        return {**report, "demonstrations": mixed["rows"]}

    async def _train(self, learner: Learner, kind: Kind, number: int) -> Record:
        standing, how = self._standing, learner.how
        assert isinstance(how, Learning)
        source: Kind = "policy" if how.begin == "policy" else kind
        begin = standing.base(kind) if how.begin == "base" else standing.now()[source]
        told = await self._run(learner, begin, standing.now()[kind])
        return {"phase": self._phase(number), **told} if kind == "policy" else told

    async def _run(self, learner: Learner, begin: str, like: str = "") -> Record:
        await self.server.rest()
        return {"objective": learner.how.objective.kind, **await learner.train(begin, like)}

    async def _gate(self, number: int, runs: Runs) -> Record:
        """On the new policy with the new PRM, and with the one that serves: of those that stand,
        the one whose search is better."""
        for run in runs.values():
            await asyncio.to_thread(check_finite, described(run)[0])
        gate = self.settings.gate
        if gate is None:
            return {"accepted": True, "kinds": list(runs)}
        pairs: list[Runs] = [runs, {"policy": runs["policy"]}] if "prm" in runs else [runs]
        async with self._trying() as client:
            tried = [await self._tried(client, number, gate, pair) for pair in pairs]
        stand = [one for one in tried if one["accepted"]]
        best = max(stand or tried, key=lambda one: float(one["candidate"][SEARCH]))
        if not stand:
            self.say(best["why"])
        short = ("kinds", "accepted")
        told = [{k: t[k] for k in short} | {SEARCH: t["candidate"][SEARCH]} for t in tried]
        return {**best, "tried": told}

    async def _tried(self, client: Client, number: int, gate: Gate, runs: Runs) -> Record:
        await client.load(self._with(runs))
        after = await self._measured(client, f"{number}", "gate", gate.measure, self.tasks.gate)
        kinds = list(runs)
        report = {"gate": gate.model_dump(mode="json"), "candidate": after, **self._standing.held()}
        try:
            check(report, kinds)
        except GateError as error:
            return {**report, "kinds": kinds, "accepted": False, "why": str(error)}
        return {**report, "kinds": kinds, "accepted": True}

    async def _publish(self, runs: Runs, verdict: Record) -> Record:
        runs = {kind: runs[kind] for kind in verdict["kinds"]}
        report = {
            k: v for k, v in verdict.items() if k in ("gate", "candidate", *STANDARDS)
        } or None
        root, folders = self.settings.published, {}
        for kind, run in runs.items():
            source, config = described(run)
            folders[kind] = await asyncio.to_thread(publish, root, source, kind, report, config)
        client = await self.server.client()
        await client.load({**self._standing.now(), **{k: str(f) for k, f in folders.items()}})
        return {k: {"version": f.name, "folder": str(f.resolve())} for k, f in folders.items()}

    async def _measure(self, number: str, what: str) -> Record:
        client = await self._serving()
        if what == "gate":
            assert self.settings.gate is not None
            return await self._measured(
                client, number, what, self.settings.gate.measure, self.tasks.gate
            )
        return await self._measured(
            client, number, what, self.settings.evaluate, self.tasks.held_out
        )

    async def _measured(
        self, client: Client, number: str, what: str, plan: Measure, tasks: Sequence[Task]
    ) -> Record:
        # One book for all rounds: the same weights are not measured twice.
        file = self.state.folder / f"{what}.jsonl"
        measuring = Measuring(file, plan, self.grading)
        return await measuring.run(client, tasks, self.bar(f"{number}/{what}"))

    # What they need to know.

    async def _serving(self) -> Client:
        """The server, once it serves what was promoted last."""
        client = await self.server.client()
        await client.load(self._standing.now())
        return client

    @asynccontextmanager
    async def _trying(self) -> AsyncIterator[Client]:
        """A server that takes candidates for a while: ours, or one beside it."""
        config = self.settings.gate.config if self.settings.gate else None
        if config is None:
            yield await self.server.client()
            return
        seconds = self.settings.serve.seconds
        folder = self.state.folder / "gate"
        folder.mkdir(exist_ok=True)
        async with (
            ponder_serve(config, {}, folder, self.children, seconds) as (url, key),
            connected(url, key) as client,
        ):
            yield client

    def _with(self, runs: Runs) -> dict[Kind, str]:
        """What serves, with these in its place."""
        candidate: dict[Kind, str] = {kind: str(described(run)[0]) for kind, run in runs.items()}
        return {**self._standing.now(), **candidate}

    def _files(self) -> TaskFiles:
        tasks = self.settings.tasks
        if isinstance(tasks, TaskFiles):
            return tasks
        folder = self.state.folder / "tasks"
        return write_game24(tasks, folder, self._standing.base("policy"), self.settings.seed)

    def _kept_out(self) -> tuple[HeldOut, ...]:
        """Rules of the compiler, our own tasks among them."""
        file = self.state.folder / "held_out.txt"
        file.write_text("".join(f"{line}\n" for line in self.tasks.kept_out()))
        return (*self.settings.held_out, Texts(file=file))

    def _folder(self, number: int) -> Path:
        return self.state.folder / f"round-{number:02d}"

    @property
    def _standing(self) -> Standing:
        return Standing(self.state.stages)

    def _phase(self, number: int) -> int:
        phases = len(self.settings.policy)
        return self._standing.phase(number, self.settings.plateau, phases)


def summary(record: Record) -> str:
    """The plain figures of a record, a candidate's among them."""
    both = {**record.get("candidate", {}), **record}
    plain = {k: v for k, v in both.items() if isinstance(v, int | float | str | bool)}
    return ", ".join(
        f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in plain.items()
    )
