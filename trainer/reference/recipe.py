"""The stages that make the pair, one after the other, each from what those before it left.

demonstrations -> sft -> rollouts -> labels -> policy (keeps its words, learns the label tokens)
-> prm -> figures -> export and manifest.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import torch

from benchmarks.puzzles import held_out, question
from trainer.folder import write_json
from trainer.reference import demonstrations, evaluate, labels, rollouts
from trainer.reference.checkpoint import export, load_policy, load_prm, save_weights
from trainer.reference.demonstrations import Mixture
from trainer.reference.evaluate import Protocol
from trainer.reference.examples import Examples, collect, join, load
from trainer.reference.learning import Learner, Schedule, learn
from trainer.reference.losses import policy_loss, prm_loss
from trainer.reference.model import Policy, Prm, Shape
from trainer.reference.puzzles import solvable, training
from trainer.reference.stages import Stages, opened
from trainer.reference.tokenizer import VOCABULARY, prompt
from trainer.reference.workers import Ranks, Report, run

BASE, POLICY, PRM = "base.safetensors", "policy.safetensors", "prm.safetensors"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every setting that changes the result."""

    seed: int = 0
    processes: int = 2
    threads: int = 1
    shape: Shape = field(default_factory=lambda: Shape(VOCABULARY))
    conversations: int = 110_000
    further: float = 0.2  # of them on puzzles with a number from 14 to `largest`
    largest: int = 16
    mixture: Mixture = field(default_factory=Mixture)
    sft: Schedule = field(default_factory=Schedule)
    trained: int = 1000  # puzzles that are rolled out, those of the game before further ones
    rollouts: rollouts.Plan = field(default_factory=rollouts.Plan)
    kept: int = 8000  # conversations that the policy is shown again with its labels
    labels: Schedule = field(default_factory=lambda: Schedule(rate=1e-3, verdicts=0.5))
    prm: Schedule = field(default_factory=lambda: Schedule(rate=1e-3))
    protocol: Protocol = field(default_factory=Protocol)


def quick(recipe: Recipe) -> Recipe:
    """Minutes, to see that everything works. Its models know little."""
    schedule = Schedule(warm_up=10, save_every=20)
    return replace(
        recipe,
        conversations=3000,
        sft=schedule,
        trained=16,
        rollouts=rollouts.Plan(samples=8, revised=2, depth=1, puzzles=8, most=96),
        kept=200,
        labels=replace(schedule, rate=1e-3, verdicts=0.5),
        prm=replace(schedule, rate=1e-3),
        protocol=Protocol(puzzles=20, samples=16, chains=2, attempts=3, most=96),
    )


@dataclass(frozen=True, slots=True)
class Maker:
    recipe: Recipe
    folder: Path  # of the stages' files

    def run(self, work: Any, report: Report, *arguments: Any) -> None:
        run(work, self.recipe.processes, self.recipe.threads, report, *arguments)

    def demonstrations(self, report: Report) -> dict[str, Any]:
        recipe, rng = self.recipe, Random(self.recipe.seed)
        game = training()
        further = [p for p in training(recipe.largest) if max(p) > 13]
        rows = []
        for n in range(recipe.conversations):
            puzzle = rng.choice(further if rng.random() < recipe.further else game)
            turns = demonstrations.conversation(puzzle, recipe.mixture, rng)
            rows.append(demonstrations.example(turns))
            if n % 1000 == 999:
                report(n + 1, recipe.conversations, "conversations")
        examples = collect(r for r in rows if len(r.ids) <= recipe.shape.context)
        examples.save(self.folder / "demonstrations.npz")
        return {"puzzles": len(game), "further": len(further)} | _size(examples)

    def sft(self, report: Report) -> dict[str, Any]:
        self.run(learn_policy, report, self.recipe, self.folder)
        examples = load(self.folder / "demonstrations.npz")
        return _size(examples) | self._glance()

    def _glance(self) -> dict[str, Any]:
        """One sample of the base policy, on puzzles that it has seen and on others."""
        policy = load_policy(self.recipe.shape, self.folder / BASE)
        rng, known = Random(self.recipe.seed), {}
        unseen = [p for p in held_out(self.recipe.protocol.puzzles) if solvable(p)]
        for name, some in (("seen", rng.sample(training(), 100)), ("unseen", unseen)):
            asked = [(p, prompt([question(p)])) for p in some for _ in range(4)]
            generator = torch.Generator().manual_seed(self.recipe.seed)
            most = self.recipe.protocol.most
            known[f"pass_{name}"] = evaluate.pass_at(
                rollouts.attempts(policy, asked, generator, most), 1
            )
        return known

    def rollouts(self, report: Report) -> dict[str, Any]:
        self._chunks.mkdir(exist_ok=True)
        self.run(roll_out, report, self.recipe, self.folder)
        found = rollouts.load(self._chunks.glob("*.npz"))
        first, again = ([r for r in found if r.revision is kind] for kind in (False, True))
        return {
            "rollouts": len(first),
            "revisions": len(again),
            "right": sum(r.right for r in first) / len(first),
            "revisions_right": sum(r.right for r in again) / max(1, len(again)),
            "tokens": sum(len(r.answer) for r in found),
        }

    @property
    def _chunks(self) -> Path:
        return self.folder / "rollouts"

    def labels(self, report: Report) -> dict[str, Any]:
        found = rollouts.load(self._chunks.glob("*.npz"))
        values = labels.monte_carlo(found)
        for_policy = collect(labels.for_policy(r, values) for r in found)
        kept = load(self.folder / "demonstrations.npz").first(self.recipe.kept)
        join([for_policy, kept]).save(self.folder / "for_policy.npz")
        for_prm = collect(labels.for_prm(r, values) for r in found)
        for_prm.save(self.folder / "for_prm.npz")
        soft = sum(0 < v < 1 for v in values.values())
        report(1, 1, "labels")
        return {"prefixes": len(values), "soft": soft} | _size(for_prm)

    def policy(self, report: Report) -> dict[str, Any]:
        self.run(learn_labels, report, self.recipe, self.folder)
        return _size(load(self.folder / "for_policy.npz"))

    def prm(self, report: Report) -> dict[str, Any]:
        self.run(learn_prm, report, self.recipe, self.folder)
        return _size(load(self.folder / "for_prm.npz"))

    def figures(self, report: Report) -> dict[str, Any]:
        torch.set_num_threads(self.recipe.threads)
        shape, protocol = self.recipe.shape, self.recipe.protocol
        policy = load_policy(shape, self.folder / POLICY)
        prm = load_prm(shape, self.folder / PRM)
        puzzles = held_out(protocol.puzzles)
        return evaluate.figures(policy, prm, puzzles, protocol, self.recipe.seed, report)


def make(recipe: Recipe, out: Path) -> dict[str, Any]:
    """The pair in `out`/policy and `out`/prm, and its manifest, which is returned. The stages'
    files stay in `out`/.stages. Raises `ConfigError` if those are of another recipe."""
    folder = out / ".stages"
    maker = Maker(recipe, folder)
    with opened(folder, asdict(recipe)) as stages:
        records = {
            work.__name__: stages.run(work.__name__, work)
            for work in (
                maker.demonstrations,
                maker.sft,
                maker.rollouts,
                maker.labels,
                maker.policy,
                maker.prm,
                maker.figures,
            )
        }
        return _publish(recipe, out, folder, records, stages)


def _publish(
    recipe: Recipe, out: Path, folder: Path, records: dict[str, Any], stages: Stages
) -> dict[str, Any]:
    manifest = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "sha256": {
            "policy": export(load_policy(recipe.shape, folder / POLICY), out / "policy"),
            "prm": export(load_prm(recipe.shape, folder / PRM), out / "prm"),
        },
        "seconds": round(sum(r["seconds"] for r in records.values()), 1),
        "torch": torch.__version__,
        "recipe": asdict(recipe),
        "stages": records,
    }
    write_json(out / "manifest.json", manifest)
    return manifest


def learn_policy(ranks: Ranks, report: Report, recipe: Recipe, folder: Path) -> None:
    torch.manual_seed(recipe.seed)
    learner = Learner(Policy(recipe.shape), recipe.sft)
    examples = load(folder / "demonstrations.npz")
    checkpoint = folder / "sft.pt"
    learn(learner, examples, policy_loss, checkpoint, recipe.seed, ranks, report)
    _keep(learner, folder / BASE, checkpoint, ranks)


def roll_out(ranks: Ranks, report: Report, recipe: Recipe, folder: Path) -> None:
    game = training()
    further = [p for p in training(recipe.largest) if max(p) > 13]
    rng = Random(recipe.seed)
    puzzles = [*rng.sample(game, len(game)), *rng.sample(further, len(further))]
    policy = load_policy(recipe.shape, folder / BASE)
    some, plan = puzzles[: recipe.trained], recipe.rollouts
    rollouts.write(ranks, report, policy, some, plan, folder / "rollouts", recipe.seed)


def learn_labels(ranks: Ranks, report: Report, recipe: Recipe, folder: Path) -> None:
    learner = Learner(load_policy(recipe.shape, folder / BASE).train(), recipe.labels)
    examples, checkpoint = load(folder / "for_policy.npz"), folder / "policy.pt"
    learn(learner, examples, policy_loss, checkpoint, recipe.seed + 1, ranks, report)
    _keep(learner, folder / POLICY, checkpoint, ranks)


def learn_prm(ranks: Ranks, report: Report, recipe: Recipe, folder: Path) -> None:
    torch.manual_seed(recipe.seed)
    prm = Prm(recipe.shape)
    prm.model.load_state_dict(load_policy(recipe.shape, folder / POLICY).model.state_dict())
    learner = Learner(prm, recipe.prm)
    examples, checkpoint = load(folder / "for_prm.npz"), folder / "prm.pt"
    learn(learner, examples, prm_loss, checkpoint, recipe.seed + 2, ranks, report)
    _keep(learner, folder / PRM, checkpoint, ranks)


def _keep(learner: Learner, path: Path, checkpoint: Path, ranks: Ranks) -> None:
    """The weights; what was needed to go on is not needed any more."""
    if ranks.rank == 0:
        save_weights(learner.model, path)
        checkpoint.unlink(missing_ok=True)


def _size(examples: Examples) -> dict[str, Any]:
    return {"sequences": len(examples), "tokens": examples.tokens}
