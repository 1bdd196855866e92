"""Which searches were recorded: a page at a time, each key's its own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.traces import cursor, place
from server.traces.index import Index
from server.traces.summary import Place, Wanted
from tests.serving import USER, client, world
from tests.test_traces import write_segment
from tests.traces import MOMENTS, make_trace

REASON = {"question": "Why?", "strategy": {"kind": "best_of_n", "n": 2}}


async def searched(http: httpx.AsyncClient, count: int, **headers: str) -> list[str]:
    """The ids of so many traces, the newest first."""
    replies = [await http.post("/v1/reason", json=REASON, headers=headers) for _ in range(count)]
    return [reply.json()["trace_id"] for reply in reversed(replies)]


async def listed(http: httpx.AsyncClient, **query: Any) -> tuple[list[str], str | None]:
    reply = await http.get("/v1/traces", params=query)
    assert reply.status_code == 200, reply.text
    said = reply.json()
    return [trace["trace_id"] for trace in said["data"]], said["next"]


async def test_pages_follow_one_another_to_the_end() -> None:
    async with client(world()) as http:
        ids = await searched(http, 5)
        first, after = await listed(http, limit=2)
        second, then = await listed(http, limit=2, after=after)
        third, end = await listed(http, limit=2, after=then)
    assert [*first, *second, *third] == ids
    assert len(first) == len(second) == 2
    assert end is None


async def test_a_summary_says_what_was_asked_and_answered() -> None:
    async with client(world()) as http:
        answer = (await http.post("/v1/reason", json=REASON)).json()
        (summary,) = (await http.get("/v1/traces")).json()["data"]
    assert summary["question"] == "Why?"
    assert summary["strategy"] == "best_of_n"
    assert summary["answer"] == answer["answers"][0]["final"]
    assert summary["tokens"] == answer["usage"]["policy_tokens"]


async def test_listings_filter() -> None:
    async with client(world()) as http:
        await searched(http, 1)
        chat = {"model": "ponder-beam", "messages": USER}
        await http.post("/v1/chat/completions", json=chat)
        beam, _ = await listed(http, strategy="beam")
        later, _ = await listed(http, since=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    assert len(beam) == 1
    assert later == []


async def test_a_key_sees_its_own_alone() -> None:
    one, other = ({"authorization": f"Bearer {key}"} for key in ("one", "other"))
    async with client(world(server={"api_keys": ["one", "other"]})) as http:
        ids = await searched(http, 2, **one)
        mine = (await http.get("/v1/traces", headers=one)).json()["data"]
        others = (await http.get("/v1/traces", headers=other)).json()["data"]
    assert [summary["trace_id"] for summary in mine] == ids
    assert others == []


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"since": "yesterday"}, "since"),
        ({"since": "2026-01-01T00:00:00"}, "since"),  # of which time zone?
        ({"after": "nowhere"}, "after"),
        ({"after": "9" * 30 + "-x"}, "after"),
        ({"before": "x"}, "before"),
    ],
    ids=str,
)
async def test_a_bad_listing_is_refused_by_name(query: dict[str, Any], param: str) -> None:
    async with client(world()) as http:
        reply = await http.get("/v1/traces", params=query)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param


@given(st.tuples(MOMENTS, st.text(min_size=1)))
def test_a_cursor_is_a_place(at: Place) -> None:
    assert place(cursor(at)) == at


def test_traces_of_one_moment_are_listed_once_each(tmp_path: Path) -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    for folder in ("abc", "def"):
        write_segment(tmp_path, [make_trace(name, created_at=moment) for name in folder])
    index, after, found = Index(tmp_path), None, []
    while page := index.list(Wanted(after=after), limit=2):
        found += [summary.trace_id for summary in page]
        after = page[-1].place
    assert found == [*"fedcba"]
