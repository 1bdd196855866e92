"""Conventions that every pod keeps, and what users of other charts ran into."""

from __future__ import annotations

import re

import pytest

from tests.chart.rendering import (
    CHART,
    EVERY,
    Chart,
    Object,
    Pod,
    chart,
    environment,
    mounts,
)

ENGINES = ("policy", "prm")
# Where vLLM, torch, triton and the hub's client write.
WRITTEN = ("HOME", "HF_HOME", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
OURS = ("gateway", "policy", "prm", "policy-worker", "redis", "compactor", "trainer")


def ours(rendered: Chart) -> list[Pod]:
    return [pod for pod in rendered.pods() if pod.name in OURS]


def runs_vllm(container: Object) -> bool:
    command = container.get("command", [])
    ours = {"server.pod", "vllm.entrypoints.openai.api_server"}
    return command[:1] == ["vllm"] or bool(ours & set(command))


@pytest.mark.parametrize("shape", EVERY)
def test_no_service_injects_variables(shape: str) -> None:
    """A Service named `vllm` gives VLLM_PORT=tcp://..., at which vLLM ends."""
    assert {pod.spec["enableServiceLinks"] for pod in chart(shape).pods()} == {False}


@pytest.mark.parametrize("shape", EVERY)
def test_no_pod_has_a_token_of_the_cluster(shape: str) -> None:
    assert {p.spec["automountServiceAccountToken"] for p in chart(shape).pods()} == {False}


@pytest.mark.parametrize("shape", EVERY)
def test_nothing_runs_as_root_or_gains_rights(shape: str) -> None:
    for pod in chart(shape).pods():
        assert pod.spec["securityContext"]["runAsNonRoot"] is True
        assert pod.spec["securityContext"]["runAsUser"] == 10001
        assert pod.spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod.containers:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@pytest.mark.parametrize("shape", EVERY)
def test_on_a_read_only_root_there_is_a_tmp(shape: str) -> None:
    for pod in ours(chart(shape)):
        for container in pod.containers:
            if container["name"] not in ("beside", "valkey"):
                assert "/tmp" in mounts(container), str(pod)


@pytest.mark.parametrize("shape", EVERY)
def test_images_have_a_tag_that_is_not_latest(shape: str) -> None:
    images = {c["image"] for pod in chart(shape).pods() for c in pod.containers}
    assert images and [i for i in images if not re.search(r":(?!latest$)[\w.-]+$", i)] == []


@pytest.mark.parametrize("shape", EVERY)
def test_everything_has_requests_and_a_memory_limit(shape: str) -> None:
    for pod in chart(shape).pods():
        for container in pod.containers:
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("shape", EVERY)
def test_servers_have_three_probes_and_time_to_start(shape: str) -> None:
    """Pods were killed while models load: 10 minutes before liveness is asked at all."""
    for pod in ours(chart(shape)):
        server = pod.spec["containers"][0]
        if "ports" not in server:
            continue
        assert {"livenessProbe", "readinessProbe"} <= server.keys()
        start = server["startupProbe"]
        seconds = start["failureThreshold"] * start["periodSeconds"]
        assert seconds >= (300 if pod.name == "redis" else 600), str(pod)
        probes = (start, server["livenessProbe"], server["readinessProbe"])
        assert not any("initialDelaySeconds" in probe for probe in probes)


def test_probes_are_values() -> None:
    probe = {"startupProbe": {"failureThreshold": 180}}
    rendered = chart("default", {"policy": probe, "gateway": probe})
    for name in ("policy", "gateway"):
        assert rendered.container(name)["startupProbe"]["failureThreshold"] == 180


@pytest.mark.parametrize("shape", EVERY)
def test_a_pod_is_not_killed_while_it_drains(shape: str) -> None:
    """preStop and the server's own drain end within the grace period."""
    for pod in ours(chart(shape)):
        server = pod.spec["containers"][0]
        if "lifecycle" not in server:
            continue
        stop = int(re.findall(r"\d+", server["lifecycle"]["preStop"]["exec"]["command"][2])[0])
        grace = pod.spec["terminationGracePeriodSeconds"]
        if runs_vllm(server):
            drain = next(a for a in server["args"] if a.startswith("--shutdown-timeout="))
            assert grace > stop + int(drain.partition("=")[2])
        else:
            assert pod.name == "gateway" and stop > 0


@pytest.mark.parametrize("shape", EVERY)
def test_prestop_needs_no_shell(shape: str) -> None:
    """The gateway's image has none."""
    hooks = [
        pod.spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        for pod in ours(chart(shape))
        if "lifecycle" in pod.spec["containers"][0]
    ]
    assert hooks and {hook[0] for hook in hooks} == {"python3"}


@pytest.mark.parametrize("shape", EVERY)
def test_vllm_writes_on_volumes_only(shape: str) -> None:
    seen = 0
    for pod in ours(chart(shape)):
        for container in pod.containers:
            if not (runs_vllm(container) or "/cache" in mounts(container)):
                continue
            seen += 1
            env, there = environment(container), mounts(container)
            for name in WRITTEN:
                assert any(env[name].startswith(f"{place}/") for place in there), name
    assert seen


@pytest.mark.parametrize("shape", EVERY)
def test_shared_memory_is_memory(shape: str) -> None:
    """Docker's 64 MiB of /dev/shm end tensor parallelism."""
    for pod in ours(chart(shape)):
        main = pod.spec["containers"][0]
        if runs_vllm(main) or pod.name == "trainer":
            volume = next(v for v in pod.spec["volumes"] if v["name"] == "shm")
            assert mounts(main)["/dev/shm"]["name"] == "shm"
            assert volume["emptyDir"]["medium"] == "Memory" and volume["emptyDir"]["sizeLimit"]


@pytest.mark.parametrize("shape", EVERY)
def test_a_rollout_needs_no_second_gpu(shape: str) -> None:
    """The default surge of 100 % waits for ever for GPUs that the old pods hold."""
    for pod in ours(chart(shape)):
        limits = [c.get("resources", {}).get("limits", {}) for c in pod.containers]
        if pod.kind != "Deployment" or not any("nvidia.com/gpu" in given for given in limits):
            continue
        strategy = pod.owner["spec"]["strategy"]
        surge = strategy.get("rollingUpdate", {}).get("maxSurge")
        assert strategy["type"] == "Recreate" or surge == 0, str(pod)


def test_a_gateway_that_holds_a_claim_or_gpu_is_not_there_twice() -> None:
    kinds = {
        shape: chart(shape).one("Deployment", "gateway")["spec"]["strategy"]["type"]
        for shape in ("default", "laptop-cpu", "one-gpu", "replicas")
    }
    assert kinds == {
        "default": "Recreate",  # traces lie in its claim
        "laptop-cpu": "RollingUpdate",
        "one-gpu": "Recreate",
        "replicas": "RollingUpdate",
    }


def test_gpus_are_asked_for_where_the_device_is_a_gpu() -> None:
    gpus = {
        (shape, pod.name): pod.spec["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
        for shape in ("default", "one-gpu", "two-gpus", "multi-node")
        for pod in ours(chart(shape))
    }
    assert gpus == {
        ("default", "gateway"): None,
        ("default", "policy"): None,
        ("default", "prm"): None,
        ("one-gpu", "gateway"): "1",
        ("two-gpus", "gateway"): None,
        ("two-gpus", "policy"): "1",
        ("two-gpus", "prm"): "1",
        ("multi-node", "gateway"): None,
        ("multi-node", "policy"): "8",
        ("multi-node", "policy-worker"): "8",
        ("multi-node", "prm"): "1",
    }


def test_images_are_of_the_device_and_the_mode() -> None:
    images = {
        (shape, name): chart(shape).container(name)["image"]
        for shape, name in (
            ("default", "gateway"),
            ("default", "policy"),
            ("one-gpu", "gateway"),
            ("two-gpus", "policy"),
            ("closed-loop", "prm"),
            ("everything", "policy"),
        )
    }
    version = re.findall(r'appVersion: "(.+)"', (CHART / "Chart.yaml").read_text())[0]
    assert images == {
        ("default", "gateway"): f"ponder-gateway:{version}",
        ("default", "policy"): f"ponder-cpu:{version}",
        ("one-gpu", "gateway"): f"ponder-gpu:{version}",
        ("two-gpus", "policy"): "vllm/vllm-openai:v0.32.0",
        ("closed-loop", "prm"): f"ponder-cpu:{version}",
        ("everything", "policy"): f"registry.example:5000/mirror/ponder-gpu:{version}",
    }


def test_a_digest_takes_the_place_of_a_tag() -> None:
    digest = "sha256:" + "0" * 64
    rendered = chart("default", {"gateway": {"image": {"registry": "r.io", "digest": digest}}})
    assert rendered.container("gateway")["image"] == f"r.io/ponder-gateway@{digest}"


def test_air_gapped_nothing_is_fetched_from_elsewhere() -> None:
    rendered = chart("air-gapped")
    for pod in rendered.pods():
        assert pod.spec["imagePullSecrets"] == [{"name": "registry"}]
        for container in pod.containers:
            assert container["image"].startswith("registry.example.internal:5000/")
    for name in ENGINES:
        server = rendered.container(name)
        assert environment(server)["HF_HUB_OFFLINE"] == "1"
        assert server["args"][1].startswith("/models/")
        assert mounts(server)["/models"]["readOnly"] is True
    assert [c["name"] for c in rendered.pod("gateway").spec["initContainers"]] == ["wait"]


def test_what_the_user_adds_is_there() -> None:
    pod = chart("everything").pod("gateway")
    main = pod.spec["containers"][0]
    assert main["args"][-2:] == ["--set", "limits.queue=10"]
    assert environment(main)["EXTRA"] == "1" and main["envFrom"][0]["secretRef"]["name"] == "extra"
    assert mounts(main)["/extra"] and pod.spec["priorityClassName"] == "high"
    assert pod.spec["nodeSelector"] and pod.spec["tolerations"] and pod.spec["affinity"]
    assert (
        pod.labels["example.com/c"] == "d" and pod.metadata["annotations"]["example.com/a"] == "b"
    )
    assert pod.labels["team"] == "reasoning"
    assert [c["name"] for c in pod.spec["containers"]] == ["gateway", "beside"]


def test_spread_selects_the_part_s_own_pods() -> None:
    for spread in chart("replicas").pod("gateway").spec["topologySpreadConstraints"]:
        selector = spread["labelSelector"]["matchLabels"]
        assert selector["app.kubernetes.io/component"] == "gateway"


def test_other_settings_or_secrets_are_other_pods() -> None:
    def sums(values: Object) -> Object:
        found: Object = chart("default", values).pod("gateway").metadata["annotations"]
        return {name: value for name, value in found.items() if name.startswith("checksum/")}

    plain = sums({})
    assert plain == sums({"policy": {"tmpSize": "5Gi"}})
    limited = sums({"gateway": {"settings": {"limits": {"searches": 3}}}})
    assert limited["checksum/settings"] != plain["checksum/settings"]
    keyed = sums({"gateway": {"auth": {"apiKeys": ["a"], "probeKey": "b"}}})
    assert keyed["checksum/secrets"] != plain["checksum/secrets"]


def test_existing_accounts_are_used() -> None:
    account = {"serviceAccount": {"create": False, "name": "mine"}}
    rendered = chart("default", {"gateway": account})
    assert rendered.pod("gateway").spec["serviceAccountName"] == "mine"
    assert "gateway" not in rendered.of("ServiceAccount")
