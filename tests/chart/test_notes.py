"""What helm says after it has installed."""

from __future__ import annotations

from base64 import b64decode

from tests.chart.rendering import Object, chart


def notes(shape: str, values: Object | None = None) -> str:
    """By an object of the user's own, since `helm template` leaves them out."""
    carrier = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "said"},
        "data": {"notes": '{{ include "ponder.notes" . | b64enc }}'},
    }
    found = chart(shape, {"extraObjects": [carrier], **(values or {})})
    return b64decode(found.one("ConfigMap", "said")["data"]["notes"]).decode()


def test_they_say_where_it_is_and_what_it_lacks() -> None:
    said = notes("laptop-cpu")
    assert "http://demo-ponder-gateway.reasoning:8000/v1" in said
    for lacking in ("asks for no key", "Several need `redis`", "Traces have no claim"):
        assert lacking in said


def test_they_say_nothing_of_what_is_there() -> None:
    said = notes("replicas")
    assert "https://ponder.example.com/v1" in said
    for there in ("asks for no key", "Several need", "have no claim", "has no claim"):
        assert there not in said


def test_they_say_that_valkey_forgets() -> None:
    redis = {"enabled": True, "auth": {"password": "p"}, "persistence": {"enabled": False}}
    values: Object = {"redis": redis, "traces": {"persistence": {"accessModes": ["ReadWriteMany"]}}}
    assert "Redis has no claim" in notes("default", values)
