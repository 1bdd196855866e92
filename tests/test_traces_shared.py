"""Traces of several replicas, by way of a real Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from server.config import TraceSettings
from server.errors import StateError
from server.settings import load_settings
from server.sources import SettingsError
from server.state.connection import Connection
from server.traces import NoTraces
from server.traces.codec import encode
from server.traces.feedback import Records
from server.traces.feedback_log import write_apart
from server.traces.index import Index
from server.traces.local import LocalStore
from server.traces.shared import SharedStore, make_store
from server.traces.shipper import ROWS, Shipper
from server.traces.stream import TraceStream, said_key
from server.traces.summary import Summary, Wanted
from tests.serving import USER, client, world
from tests.sharing import (
    compacted,
    connected,
    files,
    finished,
    ids,
    names,
    put,
    replica,
    said,
    shipped,
    spooled,
    until,
)
from tests.traces import make_node, make_trace
from tests.valkey import Valkey, running


async def test_a_trace_is_found_by_another_replica(valkey: Valkey, tmp_path: Path) -> None:
    """In the stream, and in the archive when it is not there any more."""
    store = str(tmp_path / "store")
    async with (
        replica(valkey, tmp_path / "one", store=store) as one,
        replica(valkey, tmp_path / "two", store=store) as two,
    ):
        put(one, 1)
        put(two, 2)
        await until(shipped(one, 2))
        assert await two.get("t0001") == make_trace("t0001")
        assert [s.trace_id for s in await one.list()] == ["t0002", "t0001"]
        await compacted(valkey, store)
        await until(shipped(two, 0))
        assert await two.get("t0001") == make_trace("t0001")
        assert [s.trace_id for s in await two.list()] == ["t0002", "t0001"]
        assert await two.get("t0003") is None
    assert sorted(ids(tmp_path / "store")) == ["t0001", "t0002"]


async def test_listings_are_whole_and_ordered(valkey: Valkey, tmp_path: Path) -> None:
    """Over what is here, what another has, and what is compacted."""
    store, moment = str(tmp_path / "store"), datetime(2026, 1, 1, tzinfo=UTC)
    async with (
        replica(valkey, tmp_path / "one", store=store) as one,
        replica(valkey, tmp_path / "two", store=store) as two,
    ):
        for number in range(9):
            kind = {"kind": "beam" if number % 2 else "mcts"}
            when = moment + timedelta(hours=number)
            where = two if number % 3 else one
            where.put(make_trace(f"t{number}", created_at=when, strategy=kind, tenant=f"{number}"))
            await until(shipped(where, number + 1 if number < 4 else number - 3))
            if number == 3:
                await compacted(valkey, store)
                await until(shipped(where, 0))
        for reader in (one, two):

            async def listed(limit: int = 50, reader: SharedStore = reader, **how: object) -> str:
                found = await reader.list(Wanted(**how), limit=limit)  # type: ignore[arg-type]
                return "".join(s.trace_id.removeprefix("t") for s in found)

            assert await listed() == "876543210"
            assert await listed(2) == "87"
            assert await listed(strategy="mcts") == "86420"
            assert await listed(since=moment + timedelta(hours=3)) == "876543"
            assert await listed(3, after=(moment + timedelta(hours=6), "t6")) == "543"
            assert await listed(tenants=("2", "7")) == "72"


async def test_more_than_a_page_is_listed(valkey: Valkey, tmp_path: Path) -> None:
    async with (
        replica(valkey, tmp_path / "one") as one,
        replica(valkey, tmp_path / "two") as two,
    ):
        put(one, *range(450))
        one.put(
            make_trace("x", strategy={"kind": "beam"}, created_at=datetime(2025, 1, 1, tzinfo=UTC))
        )
        await until(shipped(one, 451))
        assert [s.trace_id for s in await two.list(Wanted(strategy="beam"))] == ["x"]
        assert [s.trace_id for s in await two.list(limit=1000)] == [*reversed(names(450)), "x"]


@pytest.mark.parametrize("lost", [False, True], ids=["kept", "lost"])
async def test_redis_killed_in_mid_run(tmp_path: Path, lost: bool) -> None:
    """Serving goes on, and in the end every trace is in the archive once, in order: whether Redis
    comes back with what it had or with nothing."""
    store = tmp_path / "store"
    settings: dict[str, Any] = {"compact_rows": 20, "store": str(store)}
    with running(durable=not lost) as valkey:
        async with (
            replica(valkey, tmp_path / "one", **settings) as one,
            replica(valkey, tmp_path / "two", **settings) as two,
        ):
            both = ((one, 0), (two, 5000))

            def more(first: int, count: int) -> None:
                for replica_, base in both:
                    put(replica_, *range(base + first, base + first + count))

            more(0, 50)
            await until(shipped(one, 100))
            await compacted(valkey, store, compact_rows=30)
            more(50, 50)
            await until(shipped(two, 100))
            valkey.kill()
            more(100, 50)
            for replica_, base in both:
                await until(partial(_waits, replica_))
                found = await replica_.get(f"t{base + 120:04d}")
                assert found is not None
                with pytest.raises(StateError):
                    await replica_.get("elsewhere")
            valkey.start()
            more(150, 50)
            await until(lambda: one.stats().streamed >= 300)
            await finished(valkey, store, one, two, compact_rows=30)
            for part in ("one", "two"):
                await until(partial(_is_tidy, tmp_path / part))
    rows = ids(store)
    assert len(rows) == 400
    assert [i for i in rows if i < "t5000"] == names(200)
    assert [i for i in rows if i >= "t5000"] == names(200, 5000)


async def test_a_replica_that_starts_without_redis(valkey: Valkey, tmp_path: Path) -> None:
    valkey.kill()
    async with replica(valkey, tmp_path / "one", store=str(tmp_path / "store")) as store:
        put(store, *range(3))
        await store.flush()
        assert await store.get("t0001") == make_trace("t0001")
        with pytest.raises(StateError):
            await store.list()
        await until(lambda: store.stats().unshipped == 3)
        valkey.start()
        await until(shipped(store, 3))
        assert len(await store.list()) == 3


async def test_what_a_replica_left_on_its_disk(valkey: Valkey, tmp_path: Path) -> None:
    """It is brought over at the next start; what had been brought already is not there twice."""
    store = str(tmp_path / "store")
    async with replica(valkey, tmp_path / "one", store=store, compact_rows=4) as one:
        put(one, *range(10))
        await until(shipped(one, 10))
    await compacted(valkey, store, compact_rows=5)
    valkey.kill()
    settings: dict[str, Any] = {"store": store, "compact_rows": 4, "last_round": 0.1}
    async with replica(valkey, tmp_path / "one", **settings) as one:
        put(one, *range(10, 16))
        await one.flush()
    valkey.start()  # and has forgotten everything
    async with replica(valkey, tmp_path / "one", store=store, compact_rows=4) as one:
        await until(lambda: one.stats().streamed >= 6)
        await finished(valkey, store, one)
        await until(lambda: spooled(tmp_path / "one") == [])
        assert await one.get("t0003") == make_trace("t0003")
    assert ids(tmp_path / "store") == names(16)


async def test_a_segment_stays_until_it_is_compacted(valkey: Valkey, tmp_path: Path) -> None:
    async with replica(valkey, tmp_path / "one", compact_rows=2) as store:
        put(store, *range(5))
        await until(shipped(store, 5))
        for _ in range(2):  # whole rounds
            await store._shipper.round()
        assert len(spooled(tmp_path / "one")) == 3
        await compacted(valkey, tmp_path / "store")
        await store._shipper.round()
        assert len(spooled(tmp_path / "one")) == 1  # it is being written


async def test_what_an_emptied_redis_lost_stays_on_the_disk(valkey: Valkey, tmp_path: Path) -> None:
    """It is the same process, which only has nothing any more."""
    folder, store = tmp_path / "one", tmp_path / "store"
    async with replica(valkey, folder, compact_rows=2) as one, connected(valkey) as connection:
        put(one, *range(4))
        await one.add_feedback(said(1, outcome=1.0))
        await until(shipped(one, 5))
        await connection.redis.flushall()
        for _ in range(2):  # whole rounds
            await one._shipper.round()
        assert len(spooled(folder)) == 2 and len(files(folder, "feedback-*")) == 1
        await until(shipped(one, 5))
        await finished(valkey, store, one)
        await until(lambda: spooled(folder) == [] == files(folder, "feedback-*"))
    assert ids(store) == names(4)
    assert len(files(store, "feedback-*")) == 1


async def test_an_old_folder_is_brought_over(valkey: Valkey, tmp_path: Path) -> None:
    """What one replica alone had in its spool, before there were several."""
    alone = LocalStore(TraceSettings(folder=tmp_path / "one"))
    await alone.start()
    alone.put(make_trace("t0000"))
    alone._tending.cancel()  # type: ignore[union-attr]  # a crash, before it is compacted
    await alone.close()
    async with replica(valkey, tmp_path / "one") as store:
        await until(shipped(store, 1))


async def test_feedback_by_another_replica(valkey: Valkey, tmp_path: Path) -> None:
    """It lands wherever the trace is, and the latest holds, in whatever order they come."""
    store = str(tmp_path / "store")
    async with (
        replica(valkey, tmp_path / "one", store=store) as one,
        replica(valkey, tmp_path / "two", store=store) as two,
    ):
        put(one, 1)
        await until(shipped(one, 1))
        await two.add_feedback(said(1, outcome=0.25, feedback=0.5))
        for reader in (one, two):
            trace = await reader.get("t0001")
            assert trace is not None and (trace.outcome, trace.feedback) == (0.25, 0.5)
            assert [s.outcome for s in await reader.list()] == [0.25]
        await compacted(valkey, store)
        later = said(1, outcome=1.0).model_copy(update={"created_at": datetime.now(UTC)})
        await one.add_feedback(later)
        for _ in range(2):
            for reader in (one, two):
                trace = await reader.get("t0001")
                assert trace is not None and (trace.outcome, trace.feedback) == (1.0, 0.5)
            await compacted(valkey, store)
            await until(lambda: not _waiting(tmp_path))


def _waits(store: SharedStore) -> bool:
    return store.stats().unshipped >= 50


def _is_tidy(folder: Path) -> bool:
    return len(spooled(folder)) <= 1  # which is being written


def _waiting(folder: Path) -> list[Path]:
    """Feedback on the replicas' disks."""
    return [p for part in ("one", "two") for p in files(folder / part, "feedback-*")]


async def test_feedback_while_redis_is_away(valkey: Valkey, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    async with replica(valkey, tmp_path / "one", store=store, last_round=0.1) as one:
        put(one, 1)
        await until(shipped(one, 1))
        valkey.kill()
        await one.add_feedback(said(1, outcome=1.0))
        trace = await one.get("t0001")
        assert trace is not None and trace.outcome == 1.0
    valkey.start()
    async with (
        replica(valkey, tmp_path / "one", store=store) as one,
        replica(valkey, tmp_path / "two", store=store) as two,
    ):
        await until(shipped(one, 2))
        trace = await two.get("t0001")
        assert trace is not None and trace.outcome == 1.0


async def test_a_file_of_feedback_that_cannot_be_read_keeps_nothing_waiting(
    valkey: Valkey, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_apart(tmp_path, said(1, outcome=1.0))
    (tmp_path / "feedback-0.ndjson").mkdir()
    async with replica(valkey, tmp_path) as one:
        put(one, 1)
        await until(shipped(one, 2))
    assert "Is a directory" in caplog.text


async def test_a_round_asks_for_some_feedback_and_the_next_one_for_other(
    valkey: Valkey, tmp_path: Path
) -> None:
    """So that no command grows with what waits, and nothing that stays is in the way."""
    async with connected(valkey) as connection:
        redis, stream = connection.redis, TraceStream(connection)
        shipper = Shipper(Index(tmp_path), stream, 1.0)
        for number in range(2 * ROWS):
            await shipper.add_feedback(said(number, outcome=1.0))
        for _ in range(2):
            await shipper.round()
        await redis.zremrangebyrank(said_key(stream.key), -ROWS, -1)  # compacted
        await redis.config_set("slowlog-log-slower-than", 0)
        for _ in range(2):
            await shipper.round()
        assert len(files(tmp_path, "feedback-*")) == ROWS
        asked = [e["command"] for e in await redis.slowlog_get(1000)]
        # Of a long command the log has 31 words, and how many more there are.
        words = [31 + int(c.split(b"... (")[1].split()[0]) for c in asked if b"ZMSCORE" in c]
        assert words == [2 + ROWS] * 2


async def test_what_is_there_is_asked_for_without_its_summaries(
    valkey: Valkey, tmp_path: Path
) -> None:
    """Every round asks for all traces of every closed segment."""
    async with connected(valkey) as connection:
        redis = connection.redis
        async with replica(valkey, tmp_path / "one", compact_rows=2) as one:
            put(one, *range(4))
            await until(shipped(one, 4))
            await redis.config_resetstat()
            await one._shipper.round()
            again = [make_trace(name) for name in names(4)]
            await TraceStream(connection).add([(Summary.of(t), encode(t)) for t in again])
            asked = await redis.info("commandstats")
        assert await redis.xlen(TraceStream(connection).key) == 4
    assert "cmdstat_zmscore" in asked and "cmdstat_hmget" not in asked


async def test_at_the_end_a_redis_that_comes_back_is_given_everything(
    valkey: Valkey, tmp_path: Path
) -> None:
    """More feedback than goes over in one round, too."""

    class Asked(TraceStream):
        times = 0

        async def run(self) -> tuple[str, int]:
            self.times += 1
            return await super().run()

    async with replica(valkey, tmp_path / "one") as one, connected(valkey) as connection:
        asked = one._shipper._stream = Asked(one._stream._connection)
        valkey.kill()
        put(one, 0)
        for number in range(2 * ROWS + 1):
            await one.add_feedback(said(number, outcome=1.0))
        closing, tending = asyncio.create_task(one.close()), one._tending
        await until(lambda: tending is not None and tending.done())
        begin = asked.times
        await until(lambda: asked.times > begin + 1 or closing.done())
        valkey.start()
        await closing
        assert await connection.check()
        assert await connection.redis.xlen(asked.key) == 1 + 2 * ROWS + 1


async def test_what_cannot_be_brought_over_at_the_end_is_told(
    valkey: Valkey, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with replica(valkey, tmp_path / "one", last_round=0.1) as one:
        valkey.kill()
        put(one, 0)
        for number in range(2):
            await one.add_feedback(said(number, outcome=1.0))
        await until(lambda: one.stats().unshipped == 1)
    assert f"1 traces and 2 records of feedback stay in {tmp_path / 'one'}" in caplog.text


async def test_what_is_compacted_while_a_listing_is_made_is_in_it(
    valkey: Valkey, tmp_path: Path
) -> None:
    """Feedback that leaves the stream after the archive was listed."""
    store = str(tmp_path / "store")

    class Late(TraceStream):
        async def about(self, trace_ids: Sequence[str]) -> Mapping[str, Records]:
            await compacted(valkey, store)
            return await super().about(trace_ids)

    async with (
        replica(valkey, tmp_path / "one", store=store) as one,
        replica(valkey, tmp_path / "two", store=store) as two,
    ):
        put(one, 1)
        await until(shipped(one, 1))
        await compacted(valkey, store)
        await one.add_feedback(said(1, outcome=1.0))
        two._stream = Late(two._stream._connection)
        assert [s.outcome for s in await two.list()] == [1.0]


async def test_what_is_being_said_is_not_said_by_a_round(valkey: Valkey, tmp_path: Path) -> None:
    """It would come to the stream again after the compactor took it, and stay there."""
    begun, held = asyncio.Event(), asyncio.Event()

    class Held(TraceStream):
        async def say(self, lines: Sequence[tuple[str, bytes]]) -> str:
            begun.set()
            await held.wait()
            return await super().say(lines)

    async with connected(valkey) as connection:
        stream = Held(connection)
        await stream.add([])  # it begins
        shipper = Shipper(Index(tmp_path), stream, 1.0)
        saying = asyncio.create_task(shipper.add_feedback(said(1, outcome=1.0)))
        await begun.wait()
        async with asyncio.timeout(10):
            await shipper.round()
        held.set()
        await saying
        await compacted(valkey, tmp_path / "store")
        await shipper.round()
    assert not files(tmp_path, "feedback-*")


async def test_what_a_stream_began_with_is_not_offered_again(
    valkey: Valkey, tmp_path: Path
) -> None:
    """The first round finds a stream that nobody has begun; what it adds is compacted before the
    next one, which must not take it for lost."""
    index = await _left(valkey, tmp_path)
    async with connected(valkey) as connection:
        shipper = Shipper(index, TraceStream(connection), 1.0)
        await shipper.round()
        await shipper.add_feedback(said(1, outcome=1.0))
        assert (shipper.unshipped, shipper.streamed) == (0, 3)
        await compacted(valkey, tmp_path / "store")
        await shipper.round()
        assert await connection.redis.xlen(connection.key("traces")) == 0
    assert not shipper.unsaid and not spooled(tmp_path) and not files(tmp_path, "feedback-*")


async def test_what_is_offered_again_is_not_counted_again(tmp_path: Path) -> None:
    """A server that comes back with all that it had is offered it, for it may have lost some."""
    with running(durable=True) as valkey:
        index = await _left(valkey, tmp_path)
        async with connected(valkey) as connection:
            shipper = Shipper(index, TraceStream(connection), 1.0)
            await shipper.round()
            valkey.kill()
            valkey.start()
            await shipper.round()
            assert (shipper.unshipped, shipper.streamed) == (0, 3)


async def _left(valkey: Valkey, folder: Path) -> Index:
    """Of a replica that found no Redis and is gone: three traces."""
    valkey.kill()
    async with replica(valkey, folder, last_round=0.1) as store:
        put(store, *range(3))
        await store.flush()
    valkey.start()
    index = Index(folder)
    index.refresh()
    return index


async def test_the_routes_of_two_gateways(valkey: Valkey, tmp_path: Path) -> None:
    async with (
        replica(valkey, tmp_path / "one", last_round=0.1) as one,
        replica(valkey, tmp_path / "two", last_round=0.1) as two,
        client(world(store=one)) as at_one,
        client(world(store=two)) as at_two,
    ):
        chat = {"model": "ponder-vote", "messages": USER}
        reply = await at_one.post("/v1/chat/completions", json=chat)
        trace_id = reply.json()["ponder"]["trace_id"]
        await until(shipped(one, 1))
        body = {"trace_id": trace_id, "outcome": 1}
        given = await at_two.post("/v1/feedback", json=body)
        assert (given.status_code, given.json()["outcome"]) == (200, 1.0)
        assert (await at_one.get(f"/v1/traces/{trace_id}")).json()["outcome"] == 1.0
        listed = (await at_two.get("/v1/traces")).json()["data"]
        assert [(s["trace_id"], s["outcome"]) for s in listed] == [(trace_id, 1.0)]
        valkey.kill()
        assert (await at_two.post("/v1/chat/completions", json=chat)).status_code == 200
        assert (await at_two.get("/v1/traces/elsewhere")).status_code == 503


async def test_a_full_redis_is_waited_for(
    valkey: Valkey, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is evicted and nothing lost: the spool is larger than Redis's memory."""
    nodes = tuple(make_node(i, 0 if i else None, text="x" * 10_000) for i in range(100))
    store = tmp_path / "store"
    async with connected(valkey) as connection, replica(valkey, tmp_path / "one") as one:
        await connection.redis.config_set("maxmemory", "8mb")
        await connection.redis.config_set("maxmemory-policy", "noeviction")
        for number in range(20):
            one.put(make_trace(f"t{number:04d}", nodes=nodes))
        await until(lambda: "traces wait in" in caplog.text)
        assert "used memory > 'maxmemory'" in caplog.text
        await finished(valkey, store, one)
    assert ids(store) == names(20)


def test_a_store_is_for_several_replicas(tmp_path: Path) -> None:
    environment = {
        "PONDER_POLICY": '{"kind": "vllm", "model": "none"}',
        "PONDER_TRACES__STORE": str(tmp_path),
    }
    with pytest.raises(SettingsError, match=r"redis .*: .*must be set where traces\.store is"):
        load_settings(None, environment)
    url = {"PONDER_REDIS__URL": "redis://localhost"}
    assert load_settings(None, environment | url).traces.store == str(tmp_path)


def test_settings_choose_the_store(valkey: Valkey, tmp_path: Path) -> None:
    connection = Connection(valkey.settings())
    settings = TraceSettings(folder=tmp_path)
    assert type(make_store(settings)) is LocalStore
    assert type(make_store(settings, connection)) is SharedStore
    assert type(make_store(TraceSettings(enabled=False), connection)) is NoTraces
