"""A vLLM server's metrics: read while it works, missed without harm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.types import Receive, Send

from server.config import HttpSettings
from server.errors import EngineDead, EngineError
from server.routing.gauges import Gauges
from server.upstream import Upstream
from tests.scripted import Reply, Scripted, document, head, part, refusal, serving

METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 4.0
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 4.0
# TYPE vllm:prefix_cache_queries counter
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 640.0
vllm:prefix_cache_queries_created{engine="0",model_name="m"} 1.7e+09
# TYPE vllm:prefix_cache_hits counter
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 512.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="m"} 2.0
vllm:num_preemptions_total{engine="1",model_name="m"} 1.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1.0
vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="100"} 1.0
"""


def text(content: str) -> Reply:
    async def reply(receive: Receive, send: Send) -> None:
        await head(send)
        await part(send, content.encode(), more=False)

    return reply


@pytest.fixture(scope="module")
async def remote() -> AsyncIterator[Scripted]:
    scripted = Scripted()
    async with serving(scripted) as url:
        scripted.url = url
        yield scripted


@pytest.fixture
async def upstream(remote: Scripted) -> AsyncIterator[Upstream]:
    remote.reset()
    settings = HttpSettings(url=remote.url, model="m")
    upstream = Upstream(settings, error=EngineError, dead=EngineDead)
    yield upstream
    await upstream.close()


Said = tuple[float, int, int, int, int, int]


async def watched(gauges: Gauges, upstream: Upstream) -> Said:
    """While one request is under way, until the metrics have been asked for; what they said."""
    upstream.running = 1
    gauges.watch()
    task = gauges._task
    assert task is not None
    await asyncio.sleep(0.05)
    last = said(gauges)
    upstream.running = 0
    await asyncio.wait([task])
    assert gauges._task is None
    return last


def said(gauges: Gauges) -> Said:
    cache = gauges.used, gauges.tokens, gauges.preempted
    return *cache, gauges.others, gauges.queries, gauges.hits


async def test_they_are_read_while_the_server_works(remote: Scripted, upstream: Upstream) -> None:
    remote.pages["/metrics"] = text(METRICS)
    gauges = Gauges(upstream, every=0.01, ours=lambda: 5)
    assert await watched(gauges, upstream) == (0.5, 3200, 3, 2, 640, 512)
    # At rest: its cache may be as empty as it was full, and it would get no request to tell so.
    assert said(gauges) == (0.0, 3200, 3, 0, 640, 512)


async def test_our_own_requests_are_nobody_elses(remote: Scripted, upstream: Upstream) -> None:
    """The server may not have counted yet what is on its way."""
    remote.pages["/metrics"] = text(METRICS)
    gauges = Gauges(upstream, every=0.01, ours=lambda: 9)
    _, _, _, others, *_ = await watched(gauges, upstream)
    assert others == 0


async def test_a_server_that_is_not_to_be_asked(remote: Scripted, upstream: Upstream) -> None:
    gauges = Gauges(upstream, every=None)
    gauges.watch()
    assert gauges._task is None


@pytest.mark.parametrize("page", [refusal(500, "no"), refusal(403, "no"), text("a{ b\x00")])
async def test_a_failure_is_nobodys(remote: Scripted, upstream: Upstream, page: Reply) -> None:
    remote.pages["/metrics"] = page
    gauges = Gauges(upstream, every=0.01)
    assert await watched(gauges, upstream) == (0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("page", [refusal(404, "no"), document({}), text("up 1\n")])
async def test_a_server_without_them_is_asked_once(
    remote: Scripted, upstream: Upstream, page: Reply
) -> None:
    remote.pages["/metrics"] = page
    gauges = Gauges(upstream, every=0.01)
    upstream.running = 1
    gauges.watch()
    task = gauges._task
    assert task is not None
    await asyncio.wait([task], timeout=5)  # it ends by itself
    gauges.watch()
    assert task.done() and gauges._task is None


async def test_closing_ends_it(upstream: Upstream) -> None:
    gauges = Gauges(upstream, every=60)
    gauges.watch()
    task = gauges._task
    await gauges.close()
    assert task is not None and task.cancelled()
    await gauges.close()
