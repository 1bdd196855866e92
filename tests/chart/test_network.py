"""Who may talk to whom, and the ways in."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart.rendering import EVERY, Chart, Object, chart, matches

COMPONENT = "app.kubernetes.io/component"


def rules(rendered: Chart, name: str, way: str) -> list[Object]:
    return rendered.one("NetworkPolicy", name)["spec"].get(way) or []


def admitted(rendered: Chart, name: str) -> set[str]:
    """Components that may enter a pod."""
    return {
        peer["podSelector"]["matchLabels"].get(COMPONENT, "the release")
        for rule in rules(rendered, name, "ingress")
        for peer in rule.get("from", [])
        if "podSelector" in peer
    }


def reached(rendered: Chart, name: str) -> set[Any]:
    """Components, and the ports that lead anywhere."""
    found: set[Any] = set()
    for rule in rules(rendered, name, "egress"):
        for peer in rule.get("to", []):
            found.add(peer["podSelector"]["matchLabels"][COMPONENT])
        if "to" not in rule:
            found |= {port["port"] for port in rule["ports"]}
    return found


@pytest.mark.parametrize("shape", EVERY)
def test_every_server_has_a_policy_of_both_ways(shape: str) -> None:
    rendered = chart(shape)
    policies = [p["spec"] for p in rendered.of("NetworkPolicy").values()]
    assert {tuple(policy["policyTypes"]) for policy in policies} == {("Ingress", "Egress")}
    for pod in rendered.pods():
        covered = [p for p in policies if matches(pod.labels, p["podSelector"]["matchLabels"])]
        assert len(covered) == (0 if pod.kind == "Pod" else 1), str(pod)


def test_engines_are_for_the_gateway() -> None:
    rendered = chart("default")
    assert admitted(rendered, "policy") == {"gateway", "trainer"}
    assert reached(rendered, "policy") == {53}
    assert reached(rendered, "gateway") == {53, "policy", "prm"}
    assert "from" not in rules(rendered, "gateway", "ingress")[0]


def test_an_object_store_is_reached() -> None:
    store, offline = {"store": "s3://bucket/traces"}, {"models": {"hub": {"offline": True}}}
    reading = {"config": {"compile.yaml": {"traces": [store["store"]]}}}
    rendered = chart("closed-loop", offline | {"traces": store, "trainer": reading})
    for name in ("gateway", "compactor", "trainer"):
        assert 443 in reached(rendered, name)
        assert 443 not in reached(chart("closed-loop", offline), name)


def test_the_trainer_reaches_the_hub_and_the_servers_of_its_gate() -> None:
    """It begins with a model of the hub's, and its gate may ask policy and PRM."""
    assert {"gateway", "policy", "prm", "redis", 443} <= reached(chart("closed-loop"), "trainer")


def test_what_needs_redis_reaches_it_and_it_reaches_nobody() -> None:
    rendered = chart("closed-loop")
    assert rules(rendered, "redis", "egress") == []
    assert {"gateway", "compactor", "trainer", "policy", "prm"} == admitted(rendered, "redis")
    for name in ("gateway", "compactor", "policy", "prm"):
        assert "redis" in reached(rendered, name), name


def test_an_external_redis_is_reached_at_its_port() -> None:
    assert 6380 in reached(chart("replicas"), "gateway")
    url = {"redis": {"external": {"url": "redis://other/0"}}}
    assert 6379 in reached(chart("replicas", url), "gateway")


def test_the_hub_is_reached_only_where_it_is_asked() -> None:
    assert 443 in reached(chart("two-gpus"), "policy")
    assert 443 in reached(chart("two-gpus"), "gateway")  # for the tokenizer
    assert reached(chart("air-gapped"), "policy") == {53}
    assert 8443 in reached(chart("everything"), "policy")  # the mirror's


def test_a_group_talks_among_itself() -> None:
    rendered = chart("multi-node")
    for name in ("policy", "policy-worker"):
        assert {"policy", "policy-worker"} <= admitted(rendered, name)
        assert {"policy", "policy-worker"} <= reached(rendered, name)


def test_the_gateway_may_be_closed_but_to_the_release() -> None:
    rendered = chart("everything")
    assert admitted(rendered, "gateway") == {"the release"}
    assert 9000 in reached(rendered, "gateway")


def test_without_policies() -> None:
    assert chart("default", {"networkPolicy": {"enabled": False}}).of("NetworkPolicy") == {}


def test_an_ingress_leads_to_the_gateway() -> None:
    rendered = chart("replicas")
    [rule] = rendered.one("Ingress", "gateway")["spec"]["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    service = rendered.one("Service", "gateway")
    assert backend["name"] == service["metadata"]["name"]
    assert backend["port"]["name"] == service["spec"]["ports"][0]["name"]


def test_a_route_of_the_gateway_api_leads_to_it_too() -> None:
    rendered = chart("everything")
    [rule] = rendered.one("HTTPRoute", "gateway")["spec"]["rules"]
    service = rendered.one("Service", "gateway")
    [backend] = rule["backendRefs"]
    assert (backend["name"], backend["port"]) == (service["metadata"]["name"], 80)
    assert rule["timeouts"] == {"request": "0s"}  # a search streams for minutes
