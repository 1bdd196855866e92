"""Claims: new ones, one's own, and none."""

from __future__ import annotations

from tests.chart.rendering import Chart, Object, chart, mounts


def claim(rendered: Chart, pod: str, volume: str) -> Object | None:
    volumes = {v["name"]: v for v in rendered.pod(pod).spec["volumes"]}
    found: Object | None = volumes[volume].get("persistentVolumeClaim")
    return found


def test_traces_are_the_gateway_s_without_redis() -> None:
    rendered = chart("default")
    assert claim(rendered, "gateway", "traces") == {"claimName": "demo-ponder-traces"}
    assert "compactor" not in rendered.of("Deployment")


def test_with_redis_the_compactor_writes_what_gateways_read() -> None:
    rendered = chart("closed-loop")
    assert claim(rendered, "gateway", "traces") is None  # a spool that goes with the pod
    assert claim(rendered, "gateway", "archive") == {
        "claimName": "demo-ponder-traces",
        "readOnly": True,
    }
    assert claim(rendered, "compactor", "archive") == {"claimName": "demo-ponder-traces"}
    command = rendered.container("compactor")
    assert command["command"] + command["args"] == [
        "ponder",
        "compact",
        "--config",
        "/etc/ponder/settings.yaml",
    ]
    settings = rendered.one("ConfigMap", "gateway")["data"]["settings.yaml"]
    assert "store: /archive" in settings


def test_traces_may_go_to_an_object_store() -> None:
    values = {
        "traces": {"store": "s3://bucket/traces"},
        "redis": {"enabled": True, "auth": {"password": "x"}},
    }
    rendered = chart("default", values)
    settings = rendered.one("ConfigMap", "gateway")["data"]["settings.yaml"]
    assert "store: s3://bucket/traces" in settings
    assert "traces" not in rendered.of("PersistentVolumeClaim")
    assert "/archive" not in mounts(rendered.container("compactor"))


def test_claims_that_are_there_are_used() -> None:
    rendered = chart("air-gapped")
    assert claim(rendered, "policy", "models") == {"claimName": "models", "readOnly": True}
    assert "models" not in rendered.of("PersistentVolumeClaim")


def test_claims_outlive_the_release_unless_told() -> None:
    policy = "helm.sh/resource-policy"
    kept = chart("default").one("PersistentVolumeClaim", "traces")["metadata"]
    assert kept["annotations"] == {policy: "keep"}
    values = {"traces": {"persistence": {"keep": False}}}
    gone = chart("default", values).one("PersistentVolumeClaim", "traces")["metadata"]
    assert "annotations" not in gone


def test_storage_classes() -> None:
    claims = chart("everything").of("PersistentVolumeClaim").values()
    assert {c["spec"]["storageClassName"] for c in claims} == {"fast"}
    template = chart("everything").one("StatefulSet", "redis")["spec"]["volumeClaimTemplates"][0]
    assert template["spec"]["storageClassName"] == "fast"
    assert "storageClassName" not in chart("default").one("PersistentVolumeClaim", "traces")["spec"]


def test_models_keep_the_hub_s_cache() -> None:
    rendered = chart("two-gpus")
    for name in ("policy", "prm"):
        env = {e["name"]: e.get("value") for e in rendered.container(name)["env"]}
        assert env["HF_HOME"] == "/models/hub"
        assert claim(rendered, name, "models") == {"claimName": "demo-ponder-models"}


def test_valkey_keeps_its_file() -> None:
    spec = chart("closed-loop").one("StatefulSet", "redis")["spec"]
    assert spec["volumeClaimTemplates"][0]["metadata"]["name"] == "data"
    args = spec["template"]["spec"]["containers"][0]["args"]
    pairs = dict(zip(args[::2], args[1::2], strict=True))
    assert pairs["--appendonly"] == "yes" and pairs["--maxmemory-policy"] == "noeviction"
    assert pairs["--requirepass"] == "$(REDIS_PASSWORD)"  # the image reads no such variable itself
