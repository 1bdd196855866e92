"""Settings: three sources, one order, nothing unknown, every problem named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from server.config import HttpSettings, VllmSettings
from server.keys import digest
from server.settings import load_settings
from server.sources import SettingsError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
MINIMAL = "policy: {kind: vllm, model: m}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ponder.yaml"


def problems(
    file: Path | None,
    text: str = MINIMAL,
    env: dict[str, str] | None = None,
    flags: dict[str, Any] | None = None,
) -> list[str]:
    if file is not None:
        file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(file, env or {}, flags or {})
    return caught.value.problems


@pytest.mark.parametrize("model", ["prm", "orm"])
def test_a_reward_model_drafts_nothing(file: Path, model: str) -> None:
    text = f"{MINIMAL}{model}: {{engine: {{kind: vllm, model: m, draft_tokens: 2}}}}\n"
    (problem,) = problems(file, text)
    assert problem.startswith(f"{model}.engine") and "is for a policy" in problem


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.stem)
def test_every_shipped_config_is_valid(config: Path) -> None:
    assert load_settings(config, {}).policy.model


def test_what_a_shipped_config_suggests_is_valid(file: Path) -> None:
    text = Path("configs/remote.yaml").read_text()
    parts = ("orm", "judge", "verifiers", "scheduling", "redis", "quotas", "idempotency")
    for key in ("priority", "urls", "resolve_seconds", *parts):
        text, found = re.subn(rf"# (?={key}: )", "", text)
        assert found == 1
    file.write_text(text)
    assert set(parts) <= load_settings(file, {}).model_fields_set


def test_the_reference_config_names_models_that_are_there() -> None:
    settings = load_settings(Path("configs/reference.yaml"), {})
    assert settings.prm is not None
    for engine in (settings.policy, settings.prm.engine):
        assert Path(engine.model, "model.safetensors").is_file()


def test_a_later_source_wins_key_by_key(file: Path) -> None:
    file.write_text(MINIMAL + "limits: {tokens: 1, width: 1, depth: 1}\n")
    env = {"PONDER_LIMITS__TOKENS": "2", "PONDER_LIMITS__WIDTH": "2"}
    limits = load_settings(file, env, {"limits.tokens": 3}).limits
    assert (limits.tokens, limits.width, limits.depth) == (3, 2, 1)


def test_no_file_is_needed() -> None:
    env = {"PONDER_POLICY__KIND": "http", "PONDER_POLICY__URL": "http://p/v1"}
    policy = load_settings(None, env, {"policy.model": "m"}).policy
    assert isinstance(policy, HttpSettings)
    assert (policy.url, policy.model) == ("http://p/v1", "m")


def test_text_stays_text_and_the_rest_is_json(file: Path) -> None:
    file.write_text(MINIMAL)
    env = {
        "PONDER_POLICY__MODEL": "123",
        "PONDER_SERVER__DOCS": "false",
        "PONDER_SERVER__API_KEYS": '["a", "b"]',
        "PONDER_POLICY__EXTRA__BLOCK_SIZE": "32",
        "PONDER_TRACES__FOLDER": "here",
    }
    settings = load_settings(file, env)
    assert isinstance(settings.policy, VllmSettings)
    assert settings.policy.model == "123"
    assert settings.policy.extra == {"block_size": 32}
    assert settings.server.docs is False
    assert [k.digest for k in settings.server.api_keys] == [digest("a"), digest("b")]
    assert settings.traces.folder == Path("here")


def test_null_clears_a_setting_that_may_be_unset(file: Path) -> None:
    file.write_text(MINIMAL + "profile: default\nprm: {engine: {kind: vllm, model: p}}\n")
    settings = load_settings(file, {"PONDER_PRM": "null", "PONDER_PROFILE": "null"})
    assert settings.prm is None
    assert settings.profile is None


def test_null_is_a_name_where_something_must_be_set(file: Path) -> None:
    file.write_text(MINIMAL)
    assert load_settings(file, {"PONDER_POLICY__MODEL": "null"}).policy.model == "null"


def test_an_object_takes_the_place_of_its_whole_key(file: Path) -> None:
    file.write_text("policy: {kind: vllm, model: m, max_num_seqs: 4}\n")
    whole = '{"kind": "http", "url": "http://p/v1", "model": "n"}'
    env = {"PONDER_POLICY": whole, "PONDER_POLICY__MODEL": "o"}
    policy = load_settings(file, env).policy
    assert isinstance(policy, HttpSettings)
    assert policy.model == "o"


def test_paths_with_a_dot_are_relative_to_the_file(file: Path, tmp_path: Path) -> None:
    file.write_text("policy: {kind: vllm, model: ./m}\ntraces: {folder: ../t}\n")
    settings = load_settings(file, {})
    assert settings.policy.model == str(tmp_path / "m")
    assert settings.traces.folder == tmp_path.parent / "t"
    file.write_text("policy: {kind: vllm, model: Qwen/Q}\ntraces: {folder: t}\n")
    settings = load_settings(file, {})
    assert settings.policy.model == "Qwen/Q"
    assert settings.traces.folder == Path("t")


def test_an_unknown_variable_is_refused_with_the_nearest(file: Path) -> None:
    (problem,) = problems(file, env={"PONDER_LIMITS__TOKNES": "1"})
    assert "environment, PONDER_LIMITS__TOKNES" in problem
    assert "did you mean limits.tokens?" in problem
    assert "allowed at limits: body_bytes, calls" in problem


def test_unknown_keys_of_every_source_come_in_one_error(file: Path) -> None:
    found = problems(
        file, MINIMAL + "limit: {tokens: 1}\n", {"PONDER_X": "1"}, {"server.prot": "1"}
    )
    assert [re.match(r"\S+", p)[0] for p in found] == ["limit.tokens", "x", "server.prot"]  # type: ignore[index]
    assert str(file) in found[0]
    assert "did you mean limits.tokens?" in found[0]
    assert "flag, server.prot" in found[2]
    assert "did you mean server.port?" in found[2]


def test_variables_of_the_set_up_are_left_alone(file: Path) -> None:
    file.write_text(MINIMAL)
    load_settings(file, {"PONDER_EXTRA": "gpu", "PONDER_URL": "http://x", "HOME": "/"})


@pytest.mark.parametrize("value", ["", "12x", "[1", "NaN", "Infinity", "true", '"7"', "1.5", "0"])
def test_a_malformed_variable_is_an_error(file: Path, value: str) -> None:
    (problem,) = problems(file, env={"PONDER_LIMITS__TOKENS": value})
    assert "limits.tokens (environment, PONDER_LIMITS__TOKENS)" in problem


@pytest.mark.parametrize("value", [".nan", ".inf", "-1", "'3'", "yes", "[1]", "2001-01-01"])
def test_a_malformed_number_in_the_file_is_an_error(file: Path, value: str) -> None:
    (problem,) = problems(file, MINIMAL + f"limits: {{seconds: {value}}}\n")
    assert f"limits.seconds ({file})" in problem


def test_the_marks_of_the_cache_stand_in_order(file: Path) -> None:
    (problem,) = problems(file, MINIMAL + "scheduling: {kv_high: 0.7, kv_low: 0.75}\n")
    assert problem.startswith(f"scheduling.kv_low ({file}): ") and "0.75 is above" in problem
    (problem,) = problems(file, MINIMAL + "scheduling: {weights: {key-1: 0}}\n")
    assert "scheduling.weights.key-1" in problem


def test_a_problem_says_what_is_allowed(file: Path) -> None:
    (problem,) = problems(file, "policy: {kind: vllm, model: m, dtype: int4}\n")
    assert problem.startswith(f"policy.dtype ({file}): ")
    assert "'auto', 'bfloat16', 'float16' or 'float32'" in problem


def test_a_missing_key_says_how_to_set_it(file: Path) -> None:
    (problem,) = problems(file, "policy: {kind: http, model: m}\n")
    assert "policy.url" in problem
    assert "PONDER_POLICY__URL" in problem
    (problem,) = problems(None)
    assert "policy" in problem
    assert "required" in problem


def test_the_other_kinds_keys_are_refused(file: Path) -> None:
    (problem,) = problems(file, "policy: {kind: http, url: http://p, model: m, max_num_seqs: 3}\n")
    assert problem.startswith(f"policy.max_num_seqs ({file}): not a setting of kind 'http'")
    assert "capacity" in problem
    assert "dtype" not in problem.partition("allowed")[2]


def test_a_nested_engine_is_named_in_full(file: Path) -> None:
    (problem,) = problems(
        file, MINIMAL + "prm: {engine: {kind: vllm, model: p, max_num_seqs: 0}}\n"
    )
    assert problem.startswith(f"prm.engine.max_num_seqs ({file})")


def test_switching_the_kind_says_why_not(file: Path) -> None:
    env = {"PONDER_POLICY__KIND": "http", "PONDER_POLICY__URL": "http://p/v1"}
    for found in (problems(file, env=env), problems(file, flags={"policy.kind": "http"})):
        (problem,) = found
        assert problem.startswith("policy.kind (")
        assert f"{file} says 'vllm'" in problem
        assert 'PONDER_POLICY=\'{"kind": "http", ...}\'' in problem


def test_saying_the_same_kind_again_is_fine(file: Path) -> None:
    file.write_text(MINIMAL)
    assert load_settings(file, {"PONDER_POLICY__KIND": "vllm"}).policy.kind == "vllm"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("policy: {kind: vllm, model: m, model: n}", "'model' stands there twice"),
        ("limits: {tokens: 1}\nlimits: {tokens: 2}", "'limits' stands there twice"),
        ("- policy", "must be a mapping, not a list"),
        ("policy", "must be a mapping, not a str"),
        ("policy: [", "expected the node content"),
        ("policy: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_mapping_of_unique_keys(file: Path, text: str, told: str) -> None:
    (problem,) = problems(file, text)
    assert problem.startswith(str(file))
    assert told in problem


def test_a_file_that_cannot_be_read(file: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load_settings(file, {})
    file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(SettingsError, match=re.escape(str(file))):
        load_settings(file, {})


def test_an_unknown_profile_names_those_there_are(file: Path) -> None:
    (problem,) = problems(file, MINIMAL + "profile: llama\n")
    assert problem.startswith(f"profile ({file})")
    assert "default" in problem
    assert "reference" in problem


def test_a_secret_is_never_told(file: Path) -> None:
    file.write_text("policy: {kind: http, url: http://p/v1, model: m, api_key: hush}\n")
    assert "hush" not in repr(load_settings(file, {}))
    for value in ('["hush"', '"hush"', '[["hush"]]'):
        assert "hush" not in " ".join(problems(file, env={"PONDER_SERVER__API_KEYS": value}))


SERVERS = "policy: {kind: http, model: m, url: http://a:8000/v1, "


def test_several_servers_of_one_model(file: Path) -> None:
    file.write_text(SERVERS + "urls: [http://b:8000/v1], resolve_seconds: 5}\n")
    env = {"PONDER_POLICY__ROUTING__FLOOR": "8", "PONDER_POLICY__URLS": '["https://c/v1"]'}
    policy = load_settings(file, env).policy
    assert isinstance(policy, HttpSettings)
    assert policy.all_urls == ("http://a:8000/v1", "https://c/v1")
    assert (policy.routing.floor, policy.routing.factor, policy.resolve_seconds) == (8, 1.5, 5)


@pytest.mark.parametrize(
    ("wrong", "key", "told"),
    [
        ("urls: [ftp://b/v1]", "policy.urls.0", "is not like http://policy:8000/v1"),
        ("urls: [http:///v1]", "policy.urls.0", "is not like http://policy:8000/v1"),
        ('urls: ["http://b/v1?a=b"]', "policy.urls.0", "is not like http://policy:8000/v1"),
        ("urls: [http://me:hush@b/v1]", "policy.urls.0", "there is api_key for those"),
        ("urls: [http://a:8000/v1/]", "policy.urls", "named twice, with url: http://a:8000/v1"),
        ("urls: http://b/v1", "policy.urls", "valid array"),
        ("resolve_seconds: 0", "policy.resolve_seconds", "greater than 0"),
        ("routing: {factor: 0.9}", "policy.routing.factor", "greater than or equal to 1"),
        ("routing: {floor: 0}", "policy.routing.floor", "greater than or equal to 1"),
        ("routing: {kv_high: 1.1}", "policy.routing.kv_high", "less than or equal to 1"),
        ("routing: {moves: -1}", "policy.routing.moves", "greater than or equal to 0"),
        ("routing: {failures: 0}", "policy.routing.failures", "greater than or equal to 1"),
        ("routing: {probe_seconds: 0}", "policy.routing.probe_seconds", "greater than 0"),
        ("routing: {by: load}", "policy.routing.by", "allowed at policy.routing: factor, failures"),
    ],
)
def test_what_several_servers_cannot_be(file: Path, wrong: str, key: str, told: str) -> None:
    (problem,) = problems(file, SERVERS + wrong + "}\n")
    assert problem.startswith(f"{key} ({file}): ")
    assert told in problem
    assert "hush" not in problem
