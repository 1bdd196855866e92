"""The process reward: what the PRM is asked, and what is made of its verdicts."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import BadRequest, EngineDead, ScorerDead, ScorerError
from server.profiles import PrmProfile
from server.reward import Models, Prm, Value
from server.reward.client import Rows
from server.types import Node, Prompt, Score, Scorer, Stop
from tests.fakes import FakeEngine
from tests.rewarding import PROFILE, STEP_ID, FakePrm, grow, prompt_of, verdict_of
from tests.virtual import run

PROMPT = prompt_of("Q")


def scorer_of(prm: FakePrm, reward: Prm | None = None) -> Scorer:
    return (reward or Prm()).scorer(Models(FakeEngine(), PROFILE, prm))


def ids_of(prompt: Prompt, *steps: str) -> tuple[int, ...]:
    """What the PRM should read, encoded in one go."""
    return (*prompt.ids, *(i for text in steps for i in (*map(ord, text), STEP_ID)))


async def scored(scorer: Scorer, node: Node, prompt: Prompt = PROMPT) -> Score:
    """Score a path, and keep the verdicts on its nodes as the search does."""
    path = node.path()
    score = await scorer.score(prompt, path)
    for at, verdict in zip(path[::-1], score.steps[::-1], strict=False):
        at.raw = verdict
    node.score = score.value
    return score


def test_step_by_step_and_at_once_are_the_same() -> None:
    async def work() -> tuple[list[float], Score]:
        one = scorer_of(FakePrm())
        node, values = Node(), []
        for text in ("1+1=2\n", "22\n", "Answer: 3"):
            node = grow(node, text)
            values.append((await scored(one, node)).value)
        chain = grow(None, "1+1=2\n", "22\n", "Answer: 3", stop=Stop.END)
        return values, await scored(scorer_of(FakePrm()), chain)

    values, whole = run(work())
    texts = ("1+1=2", "22", "Answer: 3")
    assert values == [verdict_of(ids_of(PROMPT, *texts[:n])) for n in (1, 2, 3)]
    assert whole.steps == tuple(values)
    assert whole.value == values[-1]


def test_the_next_step_costs_its_own_tokens() -> None:
    async def work() -> list[Score]:
        scorer, node = scorer_of(FakePrm(block=4)), Node()
        scores = []
        for _ in range(6):
            node = grow(node, "x" * 19 + "\n")
            scores.append(await scored(scorer, node))
        return scores

    scores = run(work())
    assert all(20 <= s.computed < 24 for s in scores[1:])
    assert all(s.computed + s.cached == 2 + 20 * (n + 1) for n, s in enumerate(scores))


def test_equal_paths_of_two_searches_are_one_pass() -> None:
    async def work() -> tuple[FakePrm, list[Score]]:
        prm = FakePrm()
        paths = [grow(None, "a\n", "b\n") for _ in range(4)]
        together = await asyncio.gather(*(scored(scorer_of(prm), p) for p in paths[:3]))
        return prm, [*together, await scored(scorer_of(prm), paths[3])]

    prm, scores = run(work())
    assert len(prm.passes) == 1
    assert len({s.value for s in scores}) == 1
    assert sorted(s.computed for s in scores) == [0, 0, 0, prm.passes[0][0]]


def test_verdicts_inside_the_prefix_cache_are_asked_again_if_evicted() -> None:
    async def work(entries: int) -> tuple[FakePrm, Score]:
        prm = FakePrm(entries=entries)
        steps = ("aaaa\n", "bbbb\n", "cccc\n", "dddd\n")
        await scored(scorer_of(prm), grow(None, *steps))
        return prm, await scored(scorer_of(prm), grow(None, *steps[:3], "eeee\n"))

    expected = tuple(
        verdict_of(ids_of(PROMPT, "aaaa", "bbbb", "cccc", "eeee")[: 2 + 5 * n])
        for n in (1, 2, 3, 4)
    )
    remembered, first = run(work(entries=100))
    forgotten, second = run(work(entries=1))
    assert first.steps == second.steps == expected
    assert [reuse for _, reuse in remembered.passes] == [True, True]
    assert [reuse for _, reuse in forgotten.passes] == [True, True, False]


trees = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from("ab"), st.integers(1, 3)), max_size=14
)


@settings(max_examples=150)
@given(trees, st.sampled_from([1, 2, 5, 1000]), st.integers(1, 8), st.integers())
def test_any_tree_in_any_order(
    growth: list[tuple[int, str, int]], entries: int, block: int, seed: int
) -> None:
    """Whatever was cached or evicted, each node gets the verdict on exactly its own path."""
    prm = FakePrm(entries=entries, block=block)

    async def work() -> list[Node]:
        scorers = [scorer_of(prm), scorer_of(prm)]
        roots, rng = [Node(), Node()], random.Random(seed)
        nodes: list[Node] = []
        for at, text, depth in growth:
            search = at % 2
            mine = [n for n in nodes if n.path()[0].parent is roots[search]] or [roots[search]]
            leaf = grow(mine[at % len(mine)], *[text + "\n"] * depth)
            nodes.append(leaf)
            if rng.random() < 0.7:
                together = [leaf, *rng.sample(nodes, rng.randrange(len(nodes)))]
                open_ = [n for n in together if n.raw is None]
                await asyncio.gather(
                    *(scored(scorers[n.path()[0].parent is roots[1]], n) for n in open_)
                )
        return nodes

    for leaf in run(work()):
        for node in leaf.path():
            if node.raw is not None:
                texts = [n.step.text.removesuffix("\n") for n in node.path() if n.step]
                assert node.raw == verdict_of(ids_of(PROMPT, *texts))
    assert prm.running == 0


@pytest.mark.parametrize(
    ("rule", "value"), [("last", 0.5), ("min", 0.25), ("prod", 0.0625), ("mean", 1.25 / 3)]
)
def test_aggregates(rule: str, value: float) -> None:
    class Fixed(FakePrm):
        async def rows(self, ids: object, marks: object, *, reuse: bool = True) -> Rows:
            return Rows({3: 0.5, 5: 0.25, 7: 0.5}, 8, 0)

    reward = Prm.model_validate({"aggregate": rule})
    score = run(scored(scorer_of(Fixed(), reward), grow(None, "a\n", "b\n", "c\n")))
    assert score.value == pytest.approx(value)


def test_an_empty_step_has_no_verdict_unless_it_is_all() -> None:
    async def work() -> tuple[Score, Score]:
        scorer = scorer_of(FakePrm())
        ended = grow(grow(None, "a\n"), "", stop=Stop.END)
        return await scored(scorer, ended), await scored(scorer, grow(None, "", stop=Stop.END))

    ended, empty = run(work())
    assert ended.steps == (verdict_of(ids_of(PROMPT, "a")), None)
    assert ended.value == ended.steps[0]
    assert empty.steps == (verdict_of(ids_of(PROMPT, "")),)


def test_the_profiles_system_message_is_put_where_there_is_none() -> None:
    async def value(prompt: Prompt) -> float:
        scorer = scorer_of(FakePrm(profile=PrmProfile(system="S")))
        return (await scored(scorer, grow(None, "a\n"), prompt)).value

    with_system = verdict_of(ids_of(prompt_of("Q", system="S"), "a"))
    assert run(value(PROMPT)) == with_system
    assert run(value(prompt_of("Q", system="S"))) == with_system
    assert run(value(prompt_of("Q", system="T"))) != with_system


def test_other_weights_never_answer() -> None:
    async def work() -> int:
        prm = FakePrm()
        await scored(scorer_of(prm), grow(None, "a\n"))
        prm.version = "v2"
        await scored(scorer_of(prm), grow(None, "a\n"))
        return len(prm.passes)

    assert run(work()) == 2


def test_two_models_read_one_path_each_in_its_own_words() -> None:
    """What one scorer makes of a node is nothing to the other."""
    turns = PrmProfile(style="turns", prompt="{question}: ")

    async def work() -> tuple[Score, Score]:
        one, other = scorer_of(FakePrm()), scorer_of(FakePrm(profile=turns))
        leaf = grow(None, "a\n", "b\n")
        return await one.score(PROMPT, leaf.path()), await other.score(PROMPT, leaf.path())

    one, other = run(work())
    assert one.steps[1] == verdict_of(ids_of(PROMPT, "a", "b"))
    assert other.steps[1] == verdict_of((*map(ord, "Q: a"), 1, ord("+"), 1, ord("b"), 1))


def test_an_answer_begun_anew_is_read_after_the_question() -> None:
    first = grow(None, "a\n", "b", stop=Stop.END)
    again = grow(first, "c\n")
    again.fresh = True
    leaf = grow(again, "d\n")
    score = run(scored(scorer_of(FakePrm()), leaf))
    expected = tuple(verdict_of(ids_of(PROMPT, *steps)) for steps in ("c", "cd"))
    assert score.steps == expected


def test_the_end_of_a_step_token_in_the_text_is_no_verdict() -> None:
    """A step token that texts may hold, as Skywork's newline: only ends of steps are asked for."""
    lines = PrmProfile(step_token="\n", prompt="{question}\n")
    profile = PROFILE.model_copy(update={"delimiter": "\n\n"})
    scorer = Prm().scorer(Models(FakeEngine(), profile, FakePrm(profile=lines)))
    score = run(scored(scorer, grow(None, "a\nb\n\n", "c\n\n")))
    assert score.steps[0] == verdict_of((3, *map(ord, "Q\na\nb\n")))
    assert len(score.steps) == 2


def test_a_value_head_is_asked_by_its_own_reward() -> None:
    head = FakePrm(profile=PrmProfile(style="value"))
    models = Models(FakeEngine(), PROFILE, head)
    score = run(scored(Value().scorer(models), grow(None, "a\n", "b\n")))
    assert score.steps[1] == verdict_of((*PROMPT.ids, *map(ord, "a\nb")))
    with pytest.raises(BadRequest, match="fake-prm is a value head") as caught:
        Prm().scorer(models)
    assert caught.value.param == "reward"
    for other in (Models(FakeEngine(), PROFILE, FakePrm()), Models(FakeEngine(), PROFILE)):
        with pytest.raises(BadRequest, match="no value head") as caught:
            Value().scorer(other)
        assert caught.value.param == "reward"


def test_no_prm_is_a_bad_request() -> None:
    with pytest.raises(BadRequest, match="label, judge, confidence, consistency") as caught:
        Prm().scorer(Models(FakeEngine(), PROFILE, None))
    assert caught.value.param == "reward"


@pytest.mark.parametrize("verdict", [float("nan"), 1.5, -0.1])
def test_a_verdict_that_is_no_probability(verdict: float) -> None:
    class Broken(FakePrm):
        async def rows(self, ids: object, marks: object, *, reuse: bool = True) -> Rows:
            return Rows({3: verdict}, 4, 0)

    with pytest.raises(ScorerError, match="not in"):
        run(scored(scorer_of(Broken()), grow(None, "a\n")))


def test_whatever_fails_is_a_scorer_error() -> None:
    class Broken(FakePrm):
        async def rows(self, ids: object, marks: object, *, reuse: bool = True) -> Rows:
            raise TimeoutError("slow")

    with pytest.raises(ScorerError, match="fake-prm: TimeoutError: slow"):
        run(scored(scorer_of(Broken()), grow(None, "a\n")))


def test_a_path_too_long_for_the_prm() -> None:
    """It has no verdict of its own, and is worth what it was worth before."""
    first = grow(None, "a\n")
    short = run(scored(scorer_of(FakePrm(context=8)), first))
    first.raw = short.steps[0]
    long = run(scored(scorer_of(FakePrm(context=8)), grow(first, "aaaaaaaaaaaa\n")))
    assert short.steps[0] is not None
    assert long.steps == (None,)
    assert long.value == short.value


def test_a_dead_prm_is_not_a_dead_policy() -> None:
    class Dead(FakePrm):
        async def rows(self, ids: object, marks: object, *, reuse: bool = True) -> Rows:
            raise EngineDead("gone")

    with pytest.raises(ScorerDead, match="gone"):
        run(scored(scorer_of(Dead()), grow(None, "a\n")))


def test_a_cancelled_search_leaves_nothing_running_and_others_alone() -> None:
    async def work() -> tuple[FakePrm, Score]:
        prm = FakePrm(delay=1.0)
        leaving = asyncio.create_task(scored(scorer_of(prm), grow(None, "a\n")))
        staying = asyncio.create_task(scored(scorer_of(prm), grow(None, "a\n")))
        alone = asyncio.create_task(scored(scorer_of(prm), grow(None, "b\n")))
        await asyncio.sleep(0.5)
        leaving.cancel()
        alone.cancel()
        await asyncio.wait([leaving, alone])
        assert prm.running == 1
        return prm, await staying

    prm, score = run(work())
    assert score.value == verdict_of(ids_of(PROMPT, "a"))
    assert prm.running == 0
