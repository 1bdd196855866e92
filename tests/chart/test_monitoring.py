"""The dashboard and the alerts ask for metrics that there are."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from server.launch import watch
from server.metrics import Metrics
from server.routing.collector import COUNTERS, GAUGES
from server.service import Service
from server.traces import TraceStore
from tests.chart.rendering import CHART, ROOT, chart

NAME = re.compile(r"\b(?:ponder_\w+|vllm:\w+)")
SERIES = ("_bucket", "_count", "_sum", "_total", "")


@pytest.fixture(scope="module")
def ours() -> set[str]:
    """What a gateway exposes."""
    registry = CollectorRegistry()
    watch(Metrics(registry), cast(Service, None), cast(TraceStore, None))
    names = {name for name in registry._names_to_collectors if name.startswith("ponder_")}
    source = (ROOT / "server" / "launch.py").read_text()
    names |= {f"ponder_{name}" for name in re.findall(r'metrics\.watch\(\s*"(\w+)"', source)}
    names |= {f"ponder_replica_{name}" for name in GAUGES}
    return names | {f"ponder_replica_{name}_total" for name in COUNTERS}


@pytest.fixture(scope="module")
def vllm_s() -> set[str]:
    spec = find_spec("vllm")
    assert spec is not None and spec.origin is not None
    source = (Path(spec.origin).parent / "v1/metrics/loggers.py").read_text()
    named = set(re.findall(r'name="(vllm:\w+)"', source))
    return {f"{name}{ending}" for name in named for ending in SERIES}


def panels() -> list[dict[str, Any]]:
    board = json.loads((CHART / "dashboards" / "ponder.json").read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def test_the_dashboard_shows_what_there_is(ours: set[str], vllm_s: set[str]) -> None:
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]
    names = {name for expression in asked for name in NAME.findall(expression)}
    assert len(names) > 20 and names - ours - vllm_s == set()


@pytest.mark.parametrize("shape", ["replicas", "everything"])
def test_alerts_watch_what_there_is(shape: str, ours: set[str], vllm_s: set[str]) -> None:
    rules = chart(shape).of("PrometheusRule")
    [groups] = [rule["spec"]["groups"] for rule in rules.values()]
    found = [rule for group in groups for rule in group["rules"]]
    names = {name for rule in found for name in NAME.findall(rule["expr"])}
    assert len(names) > 5 and names - ours - vllm_s == set()
    assert len({rule["alert"] for rule in found}) == len(found)
    for rule in found:
        if rule["alert"] != "Mine":
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert rule["annotations"].keys() == {"summary", "description"}


def test_alerts_are_of_what_is_deployed() -> None:
    """Those of Redis with Redis alone, those of weights where they are followed."""
    shared = {"PonderRedisDown", "PonderQuotaOwed", "PonderTracesUnshipped"}
    watched = {"prometheusRule": {"enabled": True}}
    for shape, there in (("default", set()), ("closed-loop", {"PonderWeightsBehind", *shared})):
        [rule] = chart(shape, watched).of("PrometheusRule").values()
        names = {r["alert"] for r in rule["spec"]["groups"][0]["rules"]}
        assert names & {"PonderWeightsBehind", *shared} == there


def test_scalers_ask_for_what_there_is(ours: set[str], vllm_s: set[str]) -> None:
    for scaled in chart("replicas").of("ScaledObject").values():
        query = scaled["spec"]["triggers"][0]["metadata"]["query"]
        assert set(NAME.findall(query)) <= ours | vllm_s
        assert "NAMESPACE" not in query and "SERVICE" not in query


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not taken & cells and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells


def test_grafana_s_sidecar_finds_it() -> None:
    found = chart("everything").one("ConfigMap", "dashboard")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    [board] = found["data"].values()
    assert json.loads(board)["uid"] == "ponder"


def test_prometheus_sends_a_key_where_one_is_asked_for() -> None:
    [endpoint] = chart("replicas").one("ServiceMonitor", "gateway")["spec"]["endpoints"]
    assert endpoint["authorization"]["credentials"] == {"name": "ponder-keys", "key": "probe-key"}
    open_ = {"gateway": {"serviceMonitor": {"enabled": True}}}
    [endpoint] = chart("default", open_).one("ServiceMonitor", "gateway")["spec"]["endpoints"]
    assert "authorization" not in endpoint
