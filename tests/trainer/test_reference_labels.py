"""Labels stand where the server asks for them, and are the mean outcome of what went on there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from server.engine.tokenizer import HFTokenizer
from server.profiles import shipped
from server.reward.label import LabelScorer
from server.reward.layout import Layout
from server.types import Message, Node, Prompt, Stop
from tests.fakes import FakeEngine
from tests.rewarding import grow
from trainer.reference.labels import for_policy, for_prm, monte_carlo, positions, read
from trainer.reference.rollouts import Rollout, load, plain, revision, right, store
from trainer.reference.tokenizer import BAD_ID, END, GOOD_ID, REVISE, encode, prompt, save

PUZZLE = (4, 9, 10, 13)
ASKED = "Use 4 9 10 13 to make 24."
LINES = ["13-9=4 (left: 4 4 10)\n", "10-4=6 (left: 4 6)\n", "6*4=24 (left: 24)\n"]
ANSWER = "Answer: (10-4)*(13-9)"


def rollout(text: str, *, ended: bool = True, before: list[int] | None = None) -> Rollout:
    answer = [*encode(text), END] if ended else encode(text)
    return Rollout(PUZZLE, before or prompt([ASKED]), answer, right(PUZZLE, answer))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HFTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    save(folder)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "eos_token_id": END}
    (folder / "config.json").write_text(json.dumps(config))
    return HFTokenizer(str(folder))


def path_of(found: Rollout, tokenizer: HFTokenizer) -> list[Node]:
    """As the server cuts it into steps."""
    node, texts = Node(), tokenizer.decode(found.answer).splitlines(keepends=True)
    for n, text in enumerate(texts):
        node = grow(node, text)
        assert node.step is not None
        ids, last = tokenizer.encode(text), n == len(texts) - 1
        ended = last and found.answer[-1] == END
        stop = Stop.END if ended else Stop.LENGTH if last else Stop.STEP
        node.step = replace(node.step, token_ids=(*ids, END) if ended else ids, stop=stop)
    return node.path()


CASES = {
    "right": rollout("".join(LINES) + ANSWER),
    "cut off in a line": rollout("".join(LINES[:2]) + "6*4", ended=False),
    "cut off after a line": rollout("".join(LINES[:2]), ended=False),
    "a revision": rollout("".join(LINES) + ANSWER, before=revision(rollout("Answer: 4+9+10+13"))),
}


@pytest.mark.parametrize("name", CASES)
def test_label_positions_are_those_of_the_label_reward(name: str, tokenizer: HFTokenizer) -> None:
    found = CASES[name]
    engine = FakeEngine()
    engine.tokenizer = tokenizer  # type: ignore[assignment]
    scorer = LabelScorer(engine, GOOD_ID, BAD_ID, "last", "label", "v")
    contexts = scorer._contexts(Prompt((), tuple(found.prompt)), path_of(found, tokenizer))
    ids = [*found.prompt, *found.answer]
    ours = [tuple(ids[: len(found.prompt) + at + 1]) for at in positions(found.answer)]
    assert ours == contexts
    example = for_policy(found, monte_carlo([found]))
    assert [n for n, t in enumerate(example.target) if t == t] == [len(c) - 1 for c in contexts]
    assert [*example.ids] == ids


@pytest.mark.parametrize("name", CASES)
def test_the_prm_reads_as_the_server_lays_out(name: str, tokenizer: HFTokenizer) -> None:
    found, layout = CASES[name], Layout(tokenizer, shipped()["reference"].prm)
    messages = [Message("user", ASKED)]
    passage = layout.begin(messages)
    ids, marks = [*passage.ids], []
    for text in tokenizer.decode(found.answer).splitlines(keepends=True):
        passage = layout.go_on(passage, text, "\n", messages)
        ids += passage.ids
        marks.append(len(ids) - 1)
    assert read(plain(found), found.answer) == (ids, marks)
    example = for_prm(found, monte_carlo([found]))
    assert [*example.ids] == ids and not any(example.weight)
    assert [n for n, t in enumerate(example.target) if t == t] == marks


def test_a_label_is_the_mean_outcome_below_a_prefix() -> None:
    good = rollout("".join(LINES) + ANSWER)
    bad = rollout(LINES[0] + "10+4=14 (left: 4 14)\n14+4=18 (left: 18)\nAnswer: 10+4+13-9")
    worse = rollout("4+9=13 (left: 10 13 13)\nAnswer: 4+9")
    assert (good.right, bad.right, worse.right) == (True, False, False)
    values = monte_carlo([good, bad, worse, good])
    known = [t for t in for_policy(good, values).target if t == t]
    assert known == [2 / 3, 1, 1, 1]
    assert [t for t in for_prm(bad, values).target if t == t] == [2 / 3, 0, 0, 0]
    assert [t for t in for_prm(worse, values).target if t == t] == [0, 0]


def test_the_policy_keeps_its_words_and_learns_only_right_revisions() -> None:
    wrong, good = rollout("Answer: 4+9+10+13"), rollout("".join(LINES) + ANSWER)
    again = [rollout(text, before=revision(wrong)) for text in ("Answer: 4*9+10+13", ANSWER)]
    values = monte_carlo([wrong, good, *again])
    weights = [for_policy(r, values).weight for r in (wrong, good, *again)]
    assert [any(w) for w in weights] == [True, True, False, True]
    assert sum(weights[0]) == len(wrong.answer)


def test_a_revision_is_asked_for_as_the_server_does(tokenizer: HFTokenizer) -> None:
    wrong = rollout("Answer: 4+9+10+13")
    messages = [
        Message("user", ASKED),
        Message("assistant", "Answer: 4+9+10+13"),
        Message("user", REVISE),
    ]
    assert tokenizer.render(messages) == tuple(revision(wrong))
    assert shipped()["reference"].behaviours["self_correction"].ask == REVISE  # type: ignore[index]


def test_only_an_answer_that_ended_is_right() -> None:
    assert rollout(ANSWER).right
    assert not rollout(ANSWER, ended=False).right
    assert not rollout("6*4=24 (left: 24)").right
    assert not rollout("Answer: 6*4").right  # not the puzzle's numbers
    assert not rollout(f"{ANSWER}\nAnswer: 24").right  # the last counts
    assert rollout(f"Answer: 24\n{ANSWER}").right


def test_rollouts_come_back(tmp_path: Path) -> None:
    store(tmp_path / "0001.npz", [CASES["a revision"]])
    store(tmp_path / "0000.npz", [CASES["right"], CASES["cut off in a line"]])
    found = load(tmp_path.glob("*.npz"))
    assert found == [CASES["right"], CASES["cut off in a line"], CASES["a revision"]]
    assert [r.revision for r in found] == [False, False, True]
