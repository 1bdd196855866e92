"""Small trees to compile, and one of a real search."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from server.profiles import AnswerProfile
from server.search.record import node_records, usage_record
from server.traces.schema import NodeRecord, Trace, Versions, VersionSpan
from tests.searching import PROMPT, searched
from tests.traces import make_node, make_trace
from trainer.tree import Tree

SHA = "code-points"
VERSIONS = Versions(
    model_id="m", policy_version="v1", tokenizer_sha=SHA, scorer_id="s", scorer_version="1"
)
PUZZLE = ({"role": "user", "content": "Use 1 2 3 4 to make 24."},)


@dataclass
class Growing:
    """A trace, a step after the other; ids are code points."""

    records: list[NodeRecord] = field(default_factory=lambda: [make_node(0, None)])

    def add(self, parent: int, text: str, **fields: Any) -> int:
        """A step; one with an `outcome` (perhaps None) is finished, and its end is the token 0."""
        end = (0,) if "outcome" in fields else ()
        ids = (*map(ord, text), *end)
        forced = fields.get("forced", 0)
        values = {
            "text": text,
            "token_ids": ids,
            "logprobs": tuple(-0.125 * (1 + i % 4) for i in range(len(ids) - forced)),
            "policy_version_spans": (VersionSpan(version="v1", start=forced, end=len(ids)),),
            "status": "terminal" if end else "open",
            "finish_reason": "end" if end else "step",
        }
        number = len(self.records)
        self.records.append(make_node(number, parent, **values | fields))
        return number

    def trace(self, trace_id: str = "t", **fields: Any) -> Trace:
        values: dict[str, Any] = {"versions": VERSIONS, "selected": None, "outcome": None}
        return make_trace(trace_id, nodes=tuple(self.records), **values | fields)

    def tree(self, **fields: Any) -> Tree:
        return Tree(self.trace(**fields), "here")


def small(**fields: Any) -> Tree:
    """Two steps, `a` drawn once and `b` twice; of their four answers, one is not known.

    Q(a) = 1/2, Q(b) = 0; the mean over what was drawn at the root is (1/2 + 2 * 0) / 3 = 1/6.
    """
    return small_trace().tree(**fields)


def small_trace() -> Growing:
    growing = Growing()
    a = growing.add(0, "a\n", prm_raw=0.75, visits=3, value_sum=1.5, prior=0.25)
    b = growing.add(0, "b\n", prm_raw=0.25, visits=1, value_sum=0.5, multiplicity=2, prior=0.75)
    growing.add(a, "c", outcome=1.0, prm_raw=0.5, prm_agg=0.5)
    growing.add(a, "d", outcome=0.0, prm_agg=0.75)
    growing.add(b, "e", outcome=0.0, prm_agg=0.25)
    growing.add(b, "f", outcome=None, prm_agg=1.0)
    return growing


def by_text(tree: Tree, text: str) -> Any:
    return next(n for n in tree.nodes if n.record.text.startswith(text))


def of_search(strategy: Any, *, seed: int = 0, outcome: Any = None, **options: Any) -> Trace:
    """The trace of a real search over the fakes. `outcome` rules on its answers' last character."""
    ran = searched(strategy, seed=seed, **options)
    verdict = outcome or (lambda text: float(text.endswith(("0", "1"))))
    profile = AnswerProfile(pattern=r"Answer: (\d)")
    nodes = node_records(ran.search, profile, lambda n: verdict(n.text()) if n.finished else None)
    return Trace(
        trace_id=f"search-{seed}",
        created_at=datetime(2026, 1, 31, tzinfo=UTC),
        versions=VERSIONS,
        prompt_messages=tuple({"role": m.role, "content": m.content} for m in PROMPT.messages),
        prompt_ids=PROMPT.ids,
        sampling={"temperature": 1.0, "logprobs_mode": "processed"},
        strategy=strategy.model_dump(mode="json"),
        reward={"kind": "prm"},
        budget={},
        seed=seed,
        nodes=nodes,
        selected=None,
        answer=None,
        finish_reason="stop",
        usage=usage_record(ran.search, ran.seconds),
    )


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Any tree: merged siblings, forced tokens, greedy and resampled steps, new answers."""
    growing = Growing()
    for _ in range(draw(st.integers(1, 14))):
        parents = [r.id for r in growing.records]
        parent = draw(st.sampled_from(parents))
        above = growing.records[parent]
        text = draw(st.text("xyz", min_size=1, max_size=3))
        fields: dict[str, Any] = {
            "multiplicity": draw(st.integers(1, 3)),
            "forced": draw(st.integers(0, len(text))),
            "proposal": draw(st.sampled_from(["iid", "iid", "iid", "resampled", "greedy"])),
            "visits": draw(st.integers(0, 4)),
        }
        fields["value_sum"] = fields["visits"] * draw(st.sampled_from([0.0, 0.5, 1.0]))
        if above.status == "terminal" or draw(st.integers(0, 9)) == 0:
            fields["prompt_ids"] = draw(st.sampled_from([(1, 2, 9), (1, 2, 8)]))
            fields["fresh"] = above.parent is not None and draw(st.booleans())
        if draw(st.booleans()):
            fields["outcome"] = draw(st.sampled_from([None, 0.0, 0.5, 1.0]))
        growing.add(parent, text, **fields)
    return growing.tree()
