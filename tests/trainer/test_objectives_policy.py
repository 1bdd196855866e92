"""The other objectives of the policy, each against a tree worked by hand."""

from __future__ import annotations

from collections import Counter
from math import exp, sqrt
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from server.profiles import AnswerProfile, Backtrack, Profile
from server.traces.schema import PartRecord
from tests.trainer.trees import Growing, small, small_trace
from trainer.objectives import AnyObjective
from trainer.objectives.awr import Awr
from trainer.objectives.distill import Distill
from trainer.objectives.expert_iteration import ExpertIteration
from trainer.objectives.ppo import Ppo
from trainer.objectives.reinforce import Reinforce
from trainer.objectives.step_dpo import StepDpo
from trainer.objectives.tree_pg import TreePg
from trainer.tree import Tree

C, D, E = b"a\nc\0", b"a\nd\0", b"b\ne\0"


def rows(objective: Any, *trees: Tree) -> tuple[dict[bytes, Any], Counter[str]]:
    """By what was written."""
    tally: Counter[str] = Counter()
    found: list[Any] = list(objective.rows(trees, tally))
    return {bytes(r.ids[2:]): r for r in found}, +tally


def test_every_kind_is_in_the_list() -> None:
    kinds = TypeAdapter(AnyObjective).json_schema()["discriminator"]["mapping"]
    token = {"sft", "expert_iteration", "stream_of_search", "distill", "awr", "labels"}
    gradients = {"reinforce", "ppo", "grpo", "tree_pg"}
    pairs, scores = {"dpo", "step_dpo"}, {"prm_hard", "prm_soft", "prm_mcts", "orm", "value"}
    assert set(kinds) == token | gradients | pairs | scores


def test_reinforce_leaves_the_answer_out_of_its_own_baseline() -> None:
    """Outcomes 1, 0, 0: the others' mean is 0, 1/2, 1/2."""
    found, _ = rows(Reinforce(), small())
    assert found[C].advantage[4] == 1
    assert found[D].advantage[4] == found[E].advantage[4] == -0.5
    assert found[C].advantage[2] == 0.25  # of c's and d's
    found, _ = rows(Reinforce(baseline="mean"), small())
    assert found[C].advantage[4] == pytest.approx(2 / 3)
    found, _ = rows(Reinforce(baseline="none"), small())
    assert [r.advantage[4] for r in found.values()] == [1, 0, 0]


def test_reinforce_discounts_by_steps() -> None:
    found, _ = rows(Reinforce(baseline="none", gamma=0.5, prefixes="per_leaf"), small())
    assert found[C].advantage[2:] == [0.5, 0.5, 1, 1]


def test_reinforce_shaped() -> None:
    """The prm's verdict on a, 3/4, is the potential before c and d."""
    settings: dict[str, Any] = {"shaping": {"phi": "prm"}, "prefixes": "per_leaf"}
    found, _ = rows(Reinforce.model_validate(settings), small())
    assert found[C].advantage[2:] == [1, 1, 0.25, 0.25]
    assert found[D].advantage[2:] == [-0.5, -0.5, -0.75, -0.75]
    settings |= {"gamma": 0.5, "baseline": "none"}
    found, _ = rows(Reinforce.model_validate(settings), small())
    assert found[C].advantage[2:] == [0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    "settings", [{"shaping": {"phi": "prn"}}, {"pav": {"prover": "prn"}}], ids=["phi", "prover"]
)
def test_a_value_that_no_step_has_is_told(settings: dict[str, Any]) -> None:
    found, tally = rows(Reinforce.model_validate(settings), small())
    assert not found
    assert [n for reason, n in tally.items() if "'prn'" in reason] == [1]


def test_progress_of_the_best_of_four() -> None:
    """(1 - V)^4 - (1 - Q)^4, with V = 1/6 at the root and 1/2 below a."""
    plain, _ = rows(Reinforce(), small())
    found, _ = rows(Reinforce.model_validate({"pav": {"alpha": 2}}), small())
    gains = [found[C].advantage[i] - plain[C].advantage[i] for i in (2, 4)]
    assert gains == pytest.approx([2 * ((5 / 6) ** 4 - 0.5**4), 2 * 0.5**4])


@pytest.mark.parametrize("prover", ["prm", "expert"])
def test_progress_of_another_prover(prover: str) -> None:
    """Its values of a and b are 3/4 and 1/4, b being drawn twice: a gains 1/3 on the mean."""
    growing = small_trace()
    for at, raw in ((1, 0.75), (2, 0.25)):
        parts = (PartRecord(name="expert", raw=raw),)
        growing.records[at] = growing.records[at].model_copy(update={"parts": parts})
    plain, _ = rows(Reinforce(), growing.tree())
    settings = {"pav": {"alpha": 1, "prover": prover}}
    found, _ = rows(Reinforce.model_validate(settings), growing.tree())
    assert found[C].advantage[2] - plain[C].advantage[2] == pytest.approx(1 / 3)
    assert found[E].advantage[2] - plain[E].advantage[2] == pytest.approx(-1 / 6)
    assert found[D].advantage[4] == plain[D].advantage[4]  # it says nothing of d


def test_ppo_of_the_tree() -> None:
    """V is 1/6 at the root, 1/2 after a and 0 after b."""
    one = Ppo(lam=0, prefixes="per_leaf")
    found, _ = rows(one, small())
    assert found[C].advantage[2:] == pytest.approx([1 / 3, 1 / 3, 0.5, 0.5])
    assert found[D].advantage[2:] == pytest.approx([1 / 3, 1 / 3, -0.5, -0.5])
    found, _ = rows(Ppo(prefixes="per_leaf"), small())
    assert found[C].advantage[2:] == pytest.approx([5 / 6, 5 / 6, 0.5, 0.5])
    found, _ = rows(Ppo(lam=0.5, gamma=0.5, prefixes="per_leaf"), small())
    first = (0.5 * 0.5 - 1 / 6) + 0.25 * (1 - 0.5)
    assert found[C].advantage[2:] == pytest.approx([first, first, 0.5, 0.5])


def test_ppo_of_the_prm() -> None:
    """Its mean at the root is (3/4 + 2 * 1/4) / 3 = 5/12."""
    found, _ = rows(Ppo(lam=0, critic="prm", prefixes="per_leaf"), small())
    assert found[C].advantage[2:] == pytest.approx([1 / 3, 1 / 3, 0.25, 0.25])
    assert rows(Ppo(critic="unheard"), small()) == ({}, {"no step has an advantage": 1})


def test_tree_rl() -> None:
    """Outcomes less the others' mean: 1, -1/2, -1/2; their means are 1/4 below a, -1/2 below b.
    At the root -1/4, b being drawn twice. Each step's reward is doubled at the first step."""
    found, _ = rows(TreePg(prefixes="per_leaf"), small())
    a, b, c, d, e = (1 / 2, -1 / 4, 5 / 4 + 3 / 4, -1 / 4 - 3 / 4, -1 / 4 + 0)
    assert found[C].advantage[2:] == pytest.approx([2 * a, 2 * a, c, c])
    assert found[D].advantage[2:] == pytest.approx([2 * a, 2 * a, d, d])
    assert found[E].advantage[2:] == pytest.approx([2 * b, 2 * b, e, e])
    assert found[C].rl[2:] == pytest.approx([1 / sqrt(2), 1 / sqrt(2), 1, 1])
    once, _ = rows(TreePg(), small())
    assert once[C].rl[2:] == pytest.approx([sqrt(2), sqrt(2), 1, 1])
    assert once[D].rl[2:] == [0, 0, 1, 1]


def test_awr() -> None:
    """A is 1/3 for a, -1/6 for b (drawn twice), 1/2 for c, -1/2 for d, 0 for e."""
    found, _ = rows(Awr(beta=0.5), small())
    assert found[C].ce[2:] == pytest.approx([exp(2 / 3)] * 2 + [exp(1)] * 2)
    assert found[D].ce[2:] == pytest.approx([0, 0, exp(-1), exp(-1)])
    assert found[E].ce[2:] == pytest.approx([2 * exp(-1 / 3)] * 2 + [1, 1])
    assert found[C].rl == ()
    found, _ = rows(Awr(beta=1e-9, most=3), small())
    assert max(found[C].ce) == pytest.approx(3)


def test_distillation() -> None:
    """a: 3 visits, prior 1/4, drawn once; b: 1 visit, prior 3/4, drawn twice."""
    growing = small_trace()
    growing.records[1:] = [r.model_copy(update={"depth": 1}) for r in growing.records[1:]]
    found, tally = rows(Distill(), growing.tree())
    a, b = 1 * 3 / 0.25, 2 * 1 / 0.75
    assert {k[:2]: r.ce[2] for k, r in found.items()} == pytest.approx(
        {b"a\n": a / (a + b), b"b\n": b / (a + b)}
    )
    assert all(not any(r.ce[4:]) for r in found.values())
    found, _ = rows(Distill(tau=0.5), growing.tree())
    assert max(found[b"a\n"].ce) == pytest.approx(4 * 9 / (4 * 9 + b))
    found, _ = rows(Distill(), growing.tree(strategy={"kind": "mcts", "select": "uct"}))
    assert max(found[b"a\n"].ce) == pytest.approx(3 / 5)
    assert rows(Distill(visits=5), growing.tree()) == ({}, {"no siblings with enough visits": 1})
    assert not tally


def preferred(tree: Tree, **settings: Any) -> list[Any]:
    return list(StepDpo(**settings).rows([tree], Counter()))


def test_step_preferences() -> None:
    assert [(r.prompt_ids, r.chosen_ids, r.rejected_ids) for r in preferred(small())] == [
        ((1, 2), (*b"a\n",), (*b"b\n",)),
        ((1, 2, *b"a\n"), (*b"c", 0), (*b"d", 0)),
    ]
    assert len(preferred(small(), gap=0.75)) == 1
    assert len(preferred(small(), least=2)) == 1  # b has one answer
    assert preferred(small(), by="mcts", gap=0.1) == []
    growing = small_trace()
    growing.records[2] = growing.records[2].model_copy(update={"value_sum": 0.0})
    (row,) = preferred(growing.tree(), by="mcts")
    assert (row.chosen_ids, row.rejected_ids) == ((*b"a\n",), (*b"b\n",))


def test_expert_iteration_keeps_no_two_alike() -> None:
    growing = Growing()
    for text, key, score in (("x = 1", "1", 0.1), ("X =  1", "1", 0.9), ("1", "1", 0.5)):
        growing.add(0, text, outcome=1.0, answer_norm=key, prm_agg=score)
    growing.add(0, "y", outcome=0.0, answer_norm="1")
    found, tally = rows(ExpertIteration(), growing.tree())
    assert list(found) == [b"X =  1\0", b"1\0"]
    assert tally == {"a path like another": 1}
    assert list(rows(ExpertIteration(k=1), growing.tree())[0]) == [b"X =  1\0"]
    assert list(rows(ExpertIteration(distinct="answer"), growing.tree())[0]) == [b"X =  1\0"]


@pytest.mark.parametrize(
    "first, kept", [("score", b"bbb\0"), ("longest", b"cc\ncc\0"), ("shortest", b"a\0")]
)
def test_which_paths_expert_iteration_keeps(first: str, kept: bytes) -> None:
    growing = Growing()
    growing.add(0, "a", outcome=1.0, prm_agg=0.5)
    growing.add(0, "bbb", outcome=1.0, prm_agg=0.75)
    step = growing.add(0, "cc\n")
    growing.add(step, "cc", outcome=1.0, prm_agg=0.25)
    found, tally = rows(ExpertIteration(k=1, first=first), growing.tree())
    assert (list(found), tally) == ([kept], {"a path beyond k": 2})


def test_a_step_taken_again_from_the_same_state_need_not_be_learned() -> None:
    written = ["left: 1\n", "left: 2\n", "to 1\n", "left: 2\n", "left: 3\n", "left: 2\n"]
    growing, at = Growing(), 0
    for step in written:
        at = growing.add(at, step)
    growing.add(at, "end", outcome=1.0)
    backtrack = Backtrack(state=r"(?:left:|to) (\d)")
    tree = Tree(growing.trace(), "here", profile=Profile(name="x", backtrack=backtrack))
    for repeats, dropped in ((True, ()), (False, (3,))):  # from 1 to 2 again; from 3 it is new
        ((_, row),) = rows(ExpertIteration(repeats=repeats), tree)[0].items()
        learned = [w for n, s in enumerate(written) for w in [float(n not in dropped)] * len(s)]
        assert row.ce == [0, 0, *learned, 1, 1, 1, 1]


def test_expert_iteration_over_the_searches_of_a_problem() -> None:
    first, second = Growing(), Growing()
    first.add(0, "a", outcome=1.0, prm_agg=0.5)
    second.add(0, "a", outcome=1.0, prm_agg=0.75)
    second.add(0, "b", outcome=0.0)
    assert ExpertIteration().across
    found, tally = rows(ExpertIteration(), first.tree(), second.tree())
    assert list(found) == [b"a\0"]
    assert tally == {"a path like another": 1}


def test_an_answer_without_a_key_is_told_by_the_profile() -> None:
    growing = Growing()
    growing.add(0, "so 1", outcome=1.0)
    profile = Profile(name="x", answer=AnswerProfile(pattern=r"so (\d)"))
    tree = Tree(growing.trace(), "here", profile=profile)
    assert ExpertIteration(distinct="answer").key(tree, tree.steps[0]) == ("1",)


def test_settings_are_refused_by_name() -> None:
    objective: TypeAdapter[BaseModel] = TypeAdapter(AnyObjective)
    for wrong in ({"kind": "grpo", "groups": 1}, {"kind": "ppo", "lam": 2}, {"kind": "nothing"}):
        with pytest.raises(ValueError, match=r"groups|lam|nothing"):
            objective.validate_python(wrong)
