"""Model profiles: which one a model gets, and when two of its answers are the same."""

from __future__ import annotations

import pytest

from server.ask import strategies
from server.profiles import choose, shipped
from server.reward.answer import answer_key, extract
from server.types import Behaviour

CHOSEN = {
    "Qwen/Qwen2.5-1.5B-Instruct": "qwen2_5",
    "Qwen/Qwen2.5-Math-7B-Instruct": "qwen2_5_math",
    "Qwen/Qwen2.5-Math-PRM-7B": "qwen2_5_math",
    "meta-llama/Llama-3.2-1B-Instruct": "llama_3",
    "RLHFlow/Llama3.1-8B-PRM-Deepseek-Data": "rlhflow_prm",
    "peiyi9979/math-shepherd-mistral-7b-prm": "math_shepherd",
    "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B": "skywork_prm",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": "r1_distill",
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": "r1_distill",
    "/srv/models/policy/": "reference",
    "another/model": "default",
}


@pytest.mark.parametrize(("model", "profile"), CHOSEN.items())
def test_a_model_gets_its_family(model: str, profile: str) -> None:
    assert choose(model).name == profile


def test_every_profile_can_be_had_by_name() -> None:
    assert set(CHOSEN.values()) == set(shipped())


@pytest.mark.parametrize("name", shipped())
def test_a_profile_is_whole(name: str) -> None:
    profile = shipped()[name]
    assert set(profile.operators) == set(Behaviour)
    assert all(o.behaviour == kind for kind, o in profile.operators.items())
    assert set(strategies(profile)) == set(profile.search)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\dfrac{1}{2}", "1/2"),
        (r"\frac12", "1/2"),
        (r"\frac{\sqrt{3}}{2}", r"\tfrac{\sqrt{3}}{2}"),
        ("1,000", "1000.0"),
        ("x=5", "5"),
        (r"90^\circ", "90"),
        (r"\text{(A)}", "A"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        (r"3 \cdot x", "3*x"),
    ],
)
def test_the_same_in_mathematics(one: str, other: str) -> None:
    assert answer_key(one, "math") == answer_key(other, "math")


@pytest.mark.parametrize(
    ("one", "other"), [("1,2", "12"), ("0.5", "5"), ("-5", "5"), ("1/2", "12")]
)
def test_not_the_same_in_mathematics(one: str, other: str) -> None:
    assert answer_key(one, "math") != answer_key(other, "math")


def test_the_last_box_is_the_answer_with_all_of_its_braces() -> None:
    text = r"First \boxed{1}. So \boxed{\frac{\sqrt{3}}{2}}, which is all."
    assert extract(text, shipped()["qwen2_5_math"].answer) == r"\frac{\sqrt{3}}{2}"
