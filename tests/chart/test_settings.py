"""The settings in the ConfigMap, as the server itself reads them, with the pod's environment."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from server.config import HttpSettings, Settings, VllmSettings
from server.keys import hashed
from server.pod.settings import PodSettings, pod_settings
from server.settings import load_settings
from server.sources import OTHER_VARIABLES
from tests.chart.rendering import EVERY, ROOT, Chart, Object, chart, environment, mounts

KEYS = {"api-keys": '["a", "b"]', "admin-keys": '["c"]', "probe-key": "a", "api-key": "k"}
# What the images set: their Dockerfile's ENV.
IN_IMAGE = {
    name: value
    for name, value in re.findall(r"\b(PONDER_\w+)=(\S+)", (ROOT / "Dockerfile").read_text())
    if name not in OTHER_VARIABLES and "$" not in value and value and name != "PONDER_VERSION"
}


def secret(rendered: Chart, name: str) -> dict[str, str]:
    for found in rendered.objects:
        if found["kind"] == "Secret" and found["metadata"]["name"] == name:
            data: dict[str, str] = found["stringData"]
            return data
    return KEYS


def variables(rendered: Chart, container: Object) -> dict[str, str]:
    """PONDER_* as the process has them."""
    found = {}
    for name, value in environment(container).items():
        if isinstance(value, dict) and "secretKeyRef" in value:
            given = secret(rendered, value["secretKeyRef"]["name"])
            value = given.get(value["secretKeyRef"]["key"])
        if name.startswith("PONDER_") and value is not None:
            found[name] = str(value)
    kept = set(container["command"])
    image = {n: v for n, v in IN_IMAGE.items() if f"--unset={n}" not in kept}
    return image | found


def settings(rendered: Chart, folder: Path) -> Settings:
    container = rendered.container("gateway")
    file = folder / "settings.yaml"
    file.write_text(rendered.one("ConfigMap", "gateway")["data"]["settings.yaml"])
    assert container["args"][:3] == ["serve", "--config", "/etc/ponder/settings.yaml"]
    return load_settings(file, variables(rendered, container))


def test_the_images_set_what_is_reckoned_with() -> None:
    assert set(IN_IMAGE) == {"PONDER_SERVER__HOST", "PONDER_TRACES__FOLDER"}


@pytest.mark.parametrize("shape", EVERY)
def test_the_server_takes_them(shape: str, tmp_path: Path) -> None:
    rendered = chart(shape)
    found = settings(rendered, tmp_path)
    assert (found.server.host, found.server.port) == ("0.0.0.0", 8000)
    assert str(found.traces.folder) in mounts(rendered.container("gateway"))


@pytest.mark.parametrize("shape", EVERY)
def test_a_search_ends_before_its_pod_is_killed(shape: str, tmp_path: Path) -> None:
    rendered = chart(shape)
    found = settings(rendered, tmp_path)
    pod = rendered.pod("gateway")
    stop = int(re.findall(r"\d+", str(pod.spec["containers"][0]["lifecycle"]))[-1])
    assert found.server.drain_seconds >= found.limits.seconds
    assert pod.spec["terminationGracePeriodSeconds"] > stop + found.server.drain_seconds


@pytest.mark.parametrize("shape", EVERY)
def test_the_gateway_asks_servers_that_are_there_by_their_names(shape: str, tmp_path: Path) -> None:
    rendered = chart(shape)
    found = settings(rendered, tmp_path)
    assert found.prm is not None
    for name, engine in (("policy", found.policy), ("prm", found.prm.engine)):
        if not isinstance(engine, HttpSettings):
            assert shape == "one-gpu"
            continue
        assert engine.url == f"http://demo-ponder-{name}:8000/v1" and engine.resolve_seconds
        args = rendered.container(name)["args"]
        assert f"--served-model-name={engine.model}" in args
        assert engine.priority == ("--scheduling-policy=priority" in args)
        assert engine.tokenizer is not None
        folders = mounts(rendered.container("gateway"))
        assert any(engine.tokenizer.startswith(f"{folder}/") for folder in folders)


def test_policies_have_what_ponder_needs_of_them(tmp_path: Path) -> None:
    """As docs and `configs/remote.yaml` say."""
    policy, prm = (chart("two-gpus").container(name)["args"] for name in ("policy", "prm"))
    needed = {
        "--logprobs-mode=processed_logprobs",
        "--enable-prompt-tokens-details",
        "--enable-scale-out",
    }
    assert needed <= set(policy)
    pooler = next(a.partition("=")[2] for a in prm if a.startswith("--pooler-config="))
    assert json.loads(pooler)["task"] == "token_classify" and "--runner=pooling" in prm


def test_on_cpus_vllm_is_told_its_memory() -> None:
    args = chart("default").container("policy")["args"]
    assert {"--kv-cache-memory-bytes=536870912", "--enforce-eager", "--block-size=32"} <= set(args)
    assert not any(a.startswith("--gpu-memory-utilization") for a in args)
    threads = environment(chart("default").container("policy"))["OMP_NUM_THREADS"]
    assert threads["resourceFieldRef"]["resource"] == "requests.cpu"


def test_the_reference_pair_s_tokenizers_are_copied_from_its_image() -> None:
    """The gateway's image has none."""
    pod = chart("default").pod("gateway")
    copies = {c["name"]: (c["image"], c["command"][-2:]) for c in pod.spec["initContainers"][:2]}
    image = chart("default").container("policy")["image"]
    assert copies == {
        f"copy-{name}": (
            image,
            [f"/opt/ponder/models/{name}", f"/tokenizers/opt/ponder/models/{name}"],
        )
        for name in ("policy", "prm")
    }


def test_a_gateway_waits_until_its_servers_have_loaded() -> None:
    """Else it would end and be started again, with ever longer pauses."""
    wait = chart("default").pod("gateway").spec["initContainers"][-1]
    urls = [f"http://demo-ponder-{name}:8000/health" for name in ("policy", "prm")]
    assert wait["name"] == "wait" and wait["command"][3:] == urls
    compile(wait["command"][2], "wait", "exec")


def test_a_hub_s_model_is_of_one_revision_everywhere() -> None:
    rendered = chart("everything")
    args = rendered.container("policy")["args"]
    assert {"--revision=0123456789abcdef", "--tokenizer-revision=0123456789abcdef"} <= set(args)
    fetch = rendered.pod("gateway").spec["initContainers"][0]
    assert fetch["name"] == "fetch-policy" and "0123456789abcdef" in fetch["command"]
    assert environment(fetch)["HF_TOKEN"]["secretKeyRef"] == {"name": "hub", "key": "token"}
    assert environment(fetch)["HF_ENDPOINT"] == "https://mirror.example:8443"


def test_in_single_mode_the_models_are_in_the_process(tmp_path: Path) -> None:
    rendered = chart("one-gpu")
    found = settings(rendered, tmp_path)
    assert isinstance(found.policy, VllmSettings) and found.prm is not None
    assert isinstance(found.prm.engine, VllmSettings)
    assert found.policy.model == "/models/Qwen/Qwen2.5-Math-7B-Instruct"
    fetched = [c["command"][-1] for c in rendered.pod("gateway").spec["initContainers"]]
    assert fetched == [found.policy.model, found.prm.engine.model]
    assert {"policy", "prm"} & set(rendered.of("Deployment")) == set()


def test_redis_and_its_password(tmp_path: Path) -> None:
    rendered = chart("closed-loop")
    redis = settings(rendered, tmp_path).redis
    assert redis is not None
    assert redis.url.get_secret_value() == "redis://demo-ponder-redis:6379/0"
    projected = next(v for v in rendered.pod("gateway").spec["volumes"] if v["name"] == "settings")
    [source] = [s["secret"] for s in projected["projected"]["sources"] if "secret" in s]
    path = f"/etc/ponder/{source['items'][0]['path']}"
    assert (str(redis.password_file), source["name"]) == (path, "ponder-redis")
    assert "--requirepass" in rendered.container("redis")["args"]


def test_an_external_redis_by_tls(tmp_path: Path) -> None:
    tls = {"existingSecret": "redis-tls", "certKey": "tls.crt", "privateKey": "tls.key"}
    rendered = chart("replicas", {"redis": {"external": {"tls": tls}}})
    redis = settings(rendered, tmp_path).redis
    assert redis is not None
    wanted = {str(redis.ca_file): "ca.crt", str(redis.cert_file): "tls.crt"}
    wanted |= {str(redis.key_file): "tls.key"}
    for name in ("gateway", "compactor"):
        volumes = {v["name"]: v for v in rendered.pod(name).spec["volumes"]}
        sources = volumes["settings"]["projected"]["sources"]
        [found] = [s["secret"] for s in sources if s.get("secret", {}).get("name") == "redis-tls"]
        assert {f"/etc/ponder/{i['path']}": i["key"] for i in found["items"]} == wanted
    plain = settings(chart("replicas"), tmp_path).redis
    assert plain is not None and plain.ca_file is None


def test_without_redis_there_is_none(tmp_path: Path) -> None:
    assert settings(chart("default"), tmp_path).redis is None
    assert "redis" not in chart("default").of("StatefulSet")


def test_no_secret_is_in_a_config_map() -> None:
    for found in chart("everything").of("ConfigMap").values():
        for word in ("secret", "one", "two", "three", "four"):
            assert not re.search(rf"(key|password): .*\b{word}\b", str(found["data"]))


def test_keys_of_the_chart_s_own_secret_are_hashes(tmp_path: Path) -> None:
    rendered = chart("everything")
    found = settings(rendered, tmp_path)
    keys = [key.key.get_secret_value() for key in found.server.api_keys]
    assert keys == [hashed("one"), hashed("two"), hashed("four")]
    assert found.server.api_keys[1].quota is not None and found.server.api_keys[1].name == "team-a"
    assert [k.key.get_secret_value() for k in found.server.admin_keys] == [hashed("three")]
    data = rendered.one("Secret", "gateway")["stringData"]
    assert data["probe-key"] == "four" and '"one"' not in str(data)


def test_one_s_own_settings_go_before_the_chart_s(tmp_path: Path) -> None:
    over = {"gateway": {"settings": {"limits": {"searches": 7}, "policy": {"capacity": 9}}}}
    found = settings(chart("default", over), tmp_path)
    assert found.limits.searches == 7
    assert isinstance(found.policy, HttpSettings) and found.policy.capacity == 9


def test_a_policy_that_is_there_already(tmp_path: Path) -> None:
    external = {"url": "https://api.example.com/v1", "existingSecret": "their-key"}
    values = {
        "policy": {
            "enabled": False,
            "external": external,
            "model": {"name": "some/model", "servedName": "", "profile": ""},
        },
        "prm": {"enabled": False},
        "gateway": {"settings": {"policy": {"dialect": "chat"}}},
    }
    rendered = chart("default", values)
    found = settings(rendered, tmp_path)
    assert isinstance(found.policy, HttpSettings) and found.prm is None
    assert found.policy.url == external["url"] and found.policy.api_key is not None
    assert found.policy.model == "some/model" and found.policy.tokenizer is None
    assert {"policy", "prm"} & set(rendered.of("Deployment")) == set()
    assert "initContainers" not in rendered.pod("gateway").spec


def test_servers_follow_published_weights(tmp_path: Path) -> None:
    rendered = chart("closed-loop")
    assert settings(rendered, tmp_path).weights.folder == Path("/weights")
    for name in ("policy", "prm"):
        container = rendered.container(name)
        assert container["command"][-2:] == ["-m", "server.pod"]
        found: PodSettings = pod_settings(variables(rendered, container))
        assert (found.part, found.weights.folder) == (name, Path("/weights"))
        assert found.redis is not None and str(found.redis.password_file) in files(container)
        assert mounts(container)["/weights"]["readOnly"] is True
        assert f"--model=/opt/ponder/models/{name}" in container["args"]


def files(container: Object) -> list[str]:
    return [f"{path}/redis/password" for path in mounts(container)]


def test_the_test_pod_asks_through_the_service() -> None:
    rendered = chart("everything")
    test = rendered.one("Pod", "test")
    [ask] = test["spec"]["containers"]
    assert test["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert (
        ask["command"] == ["ponder", "ask"] and "--url=http://demo-ponder-gateway:80" in ask["args"]
    )
    assert environment(ask)["PONDER_API_KEY"]["secretKeyRef"]["key"] == "probe-key"
