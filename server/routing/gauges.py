"""What a remote vLLM's /metrics say of its load, asked for now and then while it works."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from server.errors import PonderError, boundary
from server.upstream import Upstream

PATH = "/metrics"
EVERY = 0.5  # seconds
WITHIN = 2.0  # seconds
USED = "vllm:kv_cache_usage_perc"  # a share, in spite of its name
PREEMPTED = "vllm:num_preemptions_total"
CACHE = "vllm:cache_config_info"
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
QUERIES, HITS = "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"
READ = (USED, PREEMPTED, CACHE, RUNNING, WAITING, QUERIES, HITS)
log = logging.getLogger(__name__)


class Gauges:
    """The last answer. A server that has no metrics is not asked again; one that fails to answer
    is, and no request fails for it."""

    def __init__(
        self, upstream: Upstream, every: float | None = EVERY, ours: Callable[[], int] = lambda: 0
    ):
        """It is asked every so many seconds; if None, never. `ours` is how many of the server's
        requests are from here."""
        self.used = 0.0  # share of the KV cache, the mean over a server's engines
        self.tokens = 0  # that the KV cache holds
        self.preempted = 0
        self.others = 0  # requests that are not from here
        self.queries = self.hits = 0  # tokens looked up in the prefix cache, and found there
        self._upstream, self._every, self._ours = upstream, every or EVERY, ours
        self._missing = every is None
        self._task: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Ask every so many seconds, until the server has nothing of ours to do."""
        if self._task is None and not self._missing:
            self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _watch(self) -> None:
        try:
            await asyncio.sleep(self._every)
            while self._upstream.running and not self._missing:
                await self._ask()
                await asyncio.sleep(self._every)
        finally:
            self._task = None
            self.used, self.others = 0.0, 0  # or it would seem busy for ever, and get no request

    async def _ask(self) -> None:
        ours = self._ours()
        try:
            text = await self._upstream.text(PATH, within=WITHIN)
            with boundary(PonderError, PATH):
                # Which of them it had counted, nobody knows: other gateways are not made up.
                self.read(text or "", max(ours, self._ours()))
        except PonderError as error:
            log.debug("the engine's metrics: %s", error.message)

    def read(self, text: str, ours: int = 0) -> None:
        """Prometheus' text format. `ValueError` if it is something else."""
        found: dict[str, list[Sample]] = {name: [] for name in READ}
        for sample in _samples(text, READ):
            if sample.name in found:
                found[sample.name].append(sample)
        if not found[USED]:
            self._missing = True
            log.info("the server tells nothing of its KV cache at %s", PATH)
            return
        total = {name: sum(s.value for s in samples) for name, samples in found.items()}
        self.used = total[USED] / len(found[USED])
        self.preempted = int(total[PREEMPTED])
        self.tokens = sum(map(_tokens, found[CACHE]))
        self.others = max(0, int(total[RUNNING] + total[WAITING]) - ours)
        self.queries, self.hits = int(total[QUERIES]), int(total[HITS])


def _samples(text: str, names: tuple[str, ...]) -> Iterator[Sample]:
    """Of all that a server counts, some 1,000 lines, only these are parsed."""
    lines = (line for line in text.splitlines() if line.startswith(names))
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        yield from family.samples


def _tokens(cache: Sample) -> int:
    blocks, size = cache.labels.get("num_gpu_blocks", ""), cache.labels.get("block_size", "")
    return int(blocks) * int(size) if blocks.isdigit() and size.isdigit() else 0
