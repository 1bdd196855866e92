"""What Prometheus is told of each server, as long as it is one of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.routing.replica import Standing

LABELS = ("part", "replica")
GAUGES: dict[str, tuple[str, Callable[[Standing], float]]] = {
    "up": ("Whether it is asked", lambda s: s.up),
    "running": ("Requests there from here", lambda s: s.running),
}
COUNTERS: dict[str, tuple[str, Callable[[Standing], float]]] = {
    "requests": ("Requests sent there", lambda s: s.requests),
    "failures": ("Requests that it failed", lambda s: s.failures),
    "moved": ("Requests that another took over from it", lambda s: s.moved),
    "spilled": ("Requests that went elsewhere because it was hot", lambda s: s.spilled),
    "prefix_cache_hits": ("Tokens found in its prefix cache, of all that use it", lambda s: s.hits),
    "prefix_cache_queries": ("Tokens looked up there", lambda s: s.queries),
}


class Replicas(Collector):
    """Of each part's servers."""

    def __init__(self, standings: Callable[[], Mapping[str, Sequence[Standing]]]):
        self._standings = standings

    def describe(self) -> list[Metric]:
        """The names, without asking what serves."""
        return list(self._families({}))

    def collect(self) -> Iterator[Metric]:
        return self._families(self._standings())

    def _families(self, parts: Mapping[str, Sequence[Standing]]) -> Iterator[Metric]:
        every = ((part, s) for part, standings in parts.items() for s in standings)
        known = list(every)
        for name, (text, value) in GAUGES.items():
            gauge = GaugeMetricFamily(f"ponder_replica_{name}", text, labels=LABELS)
            for part, standing in known:
                gauge.add_metric([part, standing.name], value(standing))
            yield gauge
        for name, (text, value) in COUNTERS.items():
            counter = CounterMetricFamily(f"ponder_replica_{name}", text, labels=LABELS)
            for part, standing in known:
                counter.add_metric([part, standing.name], value(standing))
            yield counter
