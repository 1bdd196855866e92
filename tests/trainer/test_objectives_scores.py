"""What reward models learn from: targets where the server reads their verdicts."""

from __future__ import annotations

from collections import Counter
from math import isnan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from server.engine.tokenizer import HFTokenizer
from server.profiles import AnswerProfile, Profile
from server.reward.layout import Layout
from server.types import Message
from tests.trainer.trees import small_trace, trees
from tests.vocabulary import tiny_tokenizer
from trainer.errors import ConfigError, DataError
from trainer.objectives.orm import Orm
from trainer.objectives.prm import PrmHard, PrmMcts, PrmSoft
from trainer.objectives.value import Value
from trainer.tree import Tree

PROFILE = Profile(name="policy", delimiter="\n", answer=AnswerProfile())
ASKED = (Message("user", "4 6 8 1?"),)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("prm")
    tiny_tokenizer(folder, "byte-level")
    (folder / "config.json").write_text('{"model_type": "llama", "eos_token_id": 2}')
    return str(folder)


def small() -> Tree:
    return Tree(small_trace().trace(), "here", profile=PROFILE)


def targets(objective: Any, tree: Tree) -> list[list[float]]:
    """Of each row, those that are asked for."""
    tally: Counter[str] = Counter()
    rows: list[Any] = list(objective.rows([tree], tally))
    return [[t for t in row.target if not isnan(t)] for row in rows]


def test_ids_and_places_are_those_of_the_server(model: str) -> None:
    tokenizer = HFTokenizer(model)
    layout = Layout(tokenizer, PROFILE.prm)
    found: list[Any] = list(PrmSoft(model=model).rows([small()], Counter()))
    first = found[0]
    passage = layout.begin(ASKED)
    ids, marks = list(passage.ids), []
    for text in ("a\n", "c"):
        passage = layout.go_on(passage, text, "\n", ASKED)
        ids += passage.ids
        marks.append(len(ids) - 1)
    assert list(first.ids) == ids
    assert [i for i, t in enumerate(first.target) if not isnan(t)] == marks
    assert {ids[at] for at in marks} == {tokenizer.ids_of("<extra_0>")}


def test_soft_and_hard(model: str) -> None:
    """a and c in the first row, d, b and e in those after; f is not known, but b is, in e's."""
    assert targets(PrmSoft(model=model), small()) == [[0.5, 1], [0], [0, 0]]
    assert targets(PrmHard(model=model), small()) == [[1, 1], [0], [0, 0]]
    assert targets(PrmSoft(model=model, least=2), small()) == [[0.5, 1], [0], [0]]


def test_what_the_search_backed_up(model: str) -> None:
    assert targets(PrmMcts(model=model, visits=2), small()) == [[0.5]]
    growing = small_trace()
    growing.records[1] = growing.records[1].model_copy(update={"value_sum": 6.0})
    tree = Tree(growing.trace(), "here", profile=PROFILE)
    with pytest.raises(DataError, match=r"trace 't': a target of 2\.0; allowed are 0 to 1"):
        targets(PrmMcts(model=model), tree)


def test_a_value_head_reads_the_last_token_of_each_step(model: str) -> None:
    objective = Value(model=model, reads={"style": "value"})
    found: list[Any] = list(objective.rows([small()], Counter()))
    first = found[0]
    tokenizer = HFTokenizer(model)
    at = [i for i, t in enumerate(first.target) if not isnan(t)]
    assert [tokenizer.decode([first.ids[i]]) for i in at] == ["a", "c"]
    assert targets(objective, small()) == [[0.5, 1], [0], [0, 0]]
    backed_up = Value(model=model, reads={"style": "value"}, by="mcts", least=2)
    assert targets(backed_up, small()) == [[0.5]]


def test_an_outcome_model_reads_the_chat(model: str) -> None:
    found: list[Any] = list(Orm(model=model).rows([small()], Counter()))
    chat = HFTokenizer(model).chat((*ASKED, Message("assistant", "a\nc")))
    assert found[0].ids == chat
    assert [r.target[-1] for r in found] == [1, 0, 0]
    assert all(isnan(t) for t in found[0].target[:-1])


def test_whose_ids_they_are(model: str) -> None:
    assert PrmSoft(model=model).vocabulary == (model, HFTokenizer(model).sha)


@pytest.mark.parametrize(
    ("given_", "complaint"),
    [
        ({"profile": "x"}, r"objective\.profile: 'x'; allowed are default"),
        ({"reads": {"style": "x"}}, r"objective\.reads: Input should be 'step_token'"),
        ({"reads": {"step_token": "<absent>"}}, r"objective\.model: .*'<absent>' is not one token"),
    ],
)
def test_bad_settings(model: str, given_: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        targets(PrmSoft.model_validate({"model": model} | given_), small())


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"objective\.model: '.*': no tokenizer"):
        targets(PrmSoft(model=str(tmp_path)), small())


@pytest.fixture(scope="module")
def soft(model: str) -> PrmSoft:
    return PrmSoft(model=model)


@settings(max_examples=50)
@given(tree=trees())
def test_each_step_has_its_target_once(soft: PrmSoft, tree: Tree) -> None:
    tree.profile = PROFILE
    found = targets(soft, tree)
    known = [n.q for n in tree.steps if n.q is not None and n.record.text.strip()]
    assert sorted(t for row in found for t in row) == pytest.approx(sorted(known))
