"""The policy's own verdicts: after which tokens, what they are to be, and what learns them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from server.engine.tokenizer import HFTokenizer
from server.profiles import shipped
from server.reward.label import LabelScorer
from server.types import Node, Prompt, Step, Stop
from tests.trainer import tiny
from tests.trainer.test_objectives_stream import MODEL, Writing, grown
from trainer.errors import ConfigError, DataError
from trainer.objectives.labels import Labels
from trainer.rows import TokenRow, check
from trainer.train import train
from trainer.tree import Tree

TOKENIZER = HFTokenizer(MODEL)


def rows(tree: Tree, **settings: Any) -> tuple[list[TokenRow], Counter[str]]:
    tally: Counter[str] = Counter()
    found: list[Any] = list(Labels(model=MODEL, **settings).rows([tree], tally))
    for row in found:
        check(row, "here")
    return found, +tally


def verdicts(found: list[TokenRow]) -> dict[tuple[int, ...], float]:
    """By the ids before them."""
    every = [
        (tuple(row.ids[: n + 1]), v) for row in found for n, v in enumerate(row.verdict) if v == v
    ]
    assert len({ids for ids, _ in every}) == len(every), "each is asked once"
    return dict(every)


def asked_by_the_server(tree: Tree) -> set[tuple[int, ...]]:
    """The contexts that the label reward asks the policy about."""
    engine: Any = type("Engine", (), {"tokenizer": TOKENIZER})()
    scorer = LabelScorer(engine, 1, 2, "last", "label", "v1")
    found: set[tuple[int, ...]] = set()
    for end in tree.steps:
        steps = [
            Step(n.record.text, n.ids, (), Stop(n.record.finish_reason or "step"), "v1", len(n.ids))
            for n in end.path()
        ]
        path = [Node(parent=None, step=step) for step in steps]
        found |= set(scorer._contexts(Prompt((), tree.trace.prompt_ids), path))
    return found


def test_verdicts_stand_where_the_server_asks_for_them() -> None:
    tree = grown().tree()
    found, tally = rows(tree)
    assert not tally
    assert verdicts(found).keys() == asked_by_the_server(tree)
    assert {tuple(row.labels) for row in found} == {
        (*TOKENIZER.encode("<good>"), *TOKENIZER.encode("<bad>"))
    }


def test_a_verdict_is_the_share_of_right_answers() -> None:
    soft, hard = (verdicts(rows(grown().tree(), hard=h)[0]) for h in (False, True))
    assert set(soft.values()) == {0.0, 0.5, 1.0} and set(hard.values()) == {0.0, 1.0}
    assert {ids for ids, v in hard.items() if v} == {ids for ids, v in soft.items() if v}


def test_the_words_are_held_once_each() -> None:
    tree = grown().tree()
    found, _ = rows(tree)
    held = sum(sum(row.ref_kl) for row in found)
    assert held == sum(len(n.ids) for n in tree.steps)
    assert not any(any(row.ce) or any(row.rl) for row in found)
    assert not any(any(row.ref_kl) for row in rows(tree, kl=False)[0])


def test_an_end_token_alone_is_asked_about_where_the_step_before_was() -> None:
    tree = Writing()
    step = tree.add(0, "1+2=3 (left: 3 3 4)\n")
    tree.add(step, "", outcome=1.0)
    found, _ = rows(tree.tree())
    assert list(verdicts(found).values()) == [1.0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"good": "not one"}, "objective.good: 'not one' is 7 tokens"),
        ({"good": "<bad>"}, "objective.bad: the same token"),
    ],
)
def test_labels_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        rows(grown().tree(), **settings)


def test_another_tokenizer_than_the_policys() -> None:
    versions = grown().trace().versions.model_copy(update={"tokenizer_sha": "other"})
    with pytest.raises(DataError, match="its tokenizer is not that of"):
        rows(grown().tree(versions=versions))


def margins(model: Path, found: list[TokenRow]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the verdicts, and the log-probabilities of all words."""
    policy = AutoModelForCausalLM.from_pretrained(model)
    asked, words = [], []
    with torch.no_grad():
        for row in found:
            ids = torch.tensor([list(row.ids)])
            logits = policy(input_ids=ids).logits[0]
            good, bad = row.labels
            at = [n for n, v in enumerate(row.verdict) if v == v]
            asked.append(logits[at, good] - logits[at, bad])
            logp = logits[:-1].log_softmax(1)
            words.append(logp[range(len(row.ids) - 1), ids[0, 1:]])
    return torch.cat(asked), torch.cat(words)


def test_a_policy_learns_its_labels_and_keeps_its_words(model: Path, tmp_path: Path) -> None:
    found, _ = rows(grown().tree())
    target = torch.tensor([v for row in found for v in row.verdict if v == v])
    file = tiny.write(tmp_path / "rows.parquet", found)
    settings: dict[str, Any] = {
        "epochs": 60,
        "packing": "tree",
        "micro_batch": 1,
        "batch": 1,
        "losses": {"ref_kl": 10.0},
        "off_policy": None,
    }
    before, words = margins(model, found)
    learned = train(tiny.config(model, file, tmp_path / "run", **settings))
    after, kept = margins(learned, found)
    wrong = (before.sigmoid() - target).abs().mean()
    assert (after.sigmoid() - target).abs().mean() < 0.5 * wrong
    assert (kept - words).abs().mean() < 0.1
    assert shipped()["reference"].label is not None
