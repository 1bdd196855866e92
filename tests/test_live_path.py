"""Whatever a live path has sent, the rest completes it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.api.live_path import LivePath
from server.profiles import AnswerProfile
from server.search.answers import rank
from server.types import Node
from tests.test_answers import chain

STEPS = st.lists(st.sampled_from(["1+1=2\n", "so\n", "Answer: 2\n", "Answer: ", "3\n"]), min_size=1)


@given(STEPS, st.sampled_from([None, r"Answer: (\d)"]))
def test_sent_and_rest_are_the_answer(steps: list[str], pattern: str | None) -> None:
    profile = AnswerProfile(pattern=pattern)
    (answer,) = rank(chain(Node(), steps, 0.5).path(), "best", profile)
    live = LivePath(pattern)
    sent = [delta for step in steps if (delta := live.take(step))]
    reasoning, content = live.rest(answer)
    said = "".join(d.get("reasoning", "") for d in sent) + "".join(reasoning)
    assert said == "".join(answer.reasoning)
    assert "".join(d.get("content", "") for d in sent) + content == answer.content
    assert pattern is not None or not content
