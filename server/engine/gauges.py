"""What a remote vLLM's /metrics say of its KV cache, asked for now and then while it works."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from server.errors import PonderError, boundary
from server.types import Load
from server.upstream import Upstream

PATH = "/metrics"
EVERY = 0.5  # seconds
WITHIN = 2.0  # seconds
USED = "vllm:kv_cache_usage_perc"  # a share, in spite of its name
PREEMPTED = "vllm:num_preemptions_total"
CACHE = "vllm:cache_config_info"
log = logging.getLogger(__name__)


class Gauges:
    """The last answer. A server that has no metrics is not asked again; one that fails to answer
    is, and no request fails for it."""

    def __init__(self, upstream: Upstream, every: float = EVERY):
        self.used = 0.0  # share of the KV cache, the mean over a server's engines
        self.tokens = 0  # that the KV cache holds
        self.preempted = 0
        self._upstream, self._every = upstream, every
        self._missing = False
        self._task: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Ask every so many seconds, until the server has nothing of ours to do."""
        if self._task is None and not self._missing:
            self.used = 0.0  # what was said before the server rested is old
            self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def seen(self, load: Load) -> Load:
        return replace(load, kv=self.used, kv_tokens=self.tokens, preempted=self.preempted)

    async def _watch(self) -> None:
        try:
            await asyncio.sleep(self._every)
            while self._upstream.running and not self._missing:
                await self._ask()
                await asyncio.sleep(self._every)
        finally:
            self._task = None

    async def _ask(self) -> None:
        try:
            text = await self._upstream.text(PATH, within=WITHIN)
            with boundary(PonderError, PATH):
                self.read(text or "")
        except PonderError as error:
            log.debug("the engine's metrics: %s", error.message)

    def read(self, text: str) -> None:
        """Prometheus' text format. `ValueError` if it is something else."""
        found: dict[str, list[Sample]] = {USED: [], PREEMPTED: [], CACHE: []}
        for sample in _samples(text, tuple(found)):
            found[sample.name].append(sample)
        if not found[USED]:
            self._missing = True
            log.info("the server tells nothing of its KV cache at %s", PATH)
            return
        self.used = sum(s.value for s in found[USED]) / len(found[USED])
        self.preempted = int(sum(s.value for s in found[PREEMPTED]))
        self.tokens = sum(map(_tokens, found[CACHE]))


def _samples(text: str, names: tuple[str, ...]) -> Iterator[Sample]:
    """Of all that a server counts, some 1,000 lines, only these are parsed."""
    lines = (line for line in text.splitlines() if line.startswith(names))
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        yield from family.samples


def _tokens(cache: Sample) -> int:
    blocks, size = cache.labels.get("num_gpu_blocks", ""), cache.labels.get("block_size", "")
    return int(blocks) * int(size) if blocks.isdigit() and size.isdigit() else 0
