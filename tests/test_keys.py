"""API keys: random, hashed wherever they are kept, never told."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from server.config import ServerSettings
from server.keys import KeySettings, digest, hashed, new_key
from server.settings import load_settings
from server.sources import SettingsError

POLICY = "policy: {kind: vllm, model: m}\n"


def key(value: Any) -> KeySettings:
    return KeySettings.model_validate(value)


def test_a_new_key_is_long_and_new() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(k.startswith("ponder-") and len(k) >= 50 for k in keys)


def test_a_key_and_its_hash_are_the_same_key() -> None:
    plain, other = key("secret"), key(hashed("secret"))
    assert plain == other == key({"key": "secret"})
    assert plain.digest == digest("secret") and plain.tenant == other.tenant
    assert plain.tenant.startswith("key-") and len(plain.tenant) == 16


def test_only_the_hash_is_kept() -> None:
    held = key({"key": "hush", "name": "bob"})
    assert held.key.get_secret_value() == hashed("hush")
    for text in (repr(held), str(held), held.model_dump_json(), f"{held.__dict__}"):
        assert "hush" not in text and digest("hush").hex() not in text


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("", "nothing at all"),
        (" hush", "spaces"),
        ("sha256:12", "64 digits"),
        ("sha256:" + "A" * 64, "64 digits"),
        ({"name": "bob"}, "key"),
        ({"key": "hush", "name": "key-1"}, "does not begin key-"),
        ({"key": "hush", "name": "a b"}, "letters, digits"),
        ({"key": "hush", "name": ""}, "letters, digits"),
        ({"key": "hush", "names": "bob"}, "names"),
        ({"key": "hush", "quota": {"tokens_per_day": 0}}, "greater than or equal to 1"),
        ({"key": "hush", "quota": {"tokens": 1}}, "tokens"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named_and_its_key_is_not(wrong: Any, told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        key(wrong)
    errors = str(caught.value.errors(include_input=False, include_url=False))
    assert told in errors and "hush" not in errors


def test_entries_may_not_contradict_each_other() -> None:
    rich, poor = {"tokens_per_day": 2}, {"tokens_per_day": 1}
    for api, admin, told in (
        ([{"key": "a", "name": "x"}], [{"key": "a", "name": "y"}], "two names: x, y"),
        ([{"key": "a", "name": "x", "quota": rich}, {"key": "b", "name": "x", "quota": poor}], [],
         "keys of x differ"),
    ):  # fmt: skip
        with pytest.raises(ValidationError, match=told):
            ServerSettings.model_validate({"api_keys": api, "admin_keys": admin})
    both = [{"key": "a", "name": "x"}, {"key": "b", "name": "x"}]  # one is to replace the other
    assert len(ServerSettings.model_validate({"api_keys": both}).keys) == 2


def test_keys_of_files_and_the_environment(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "ponder.yaml"
    quota = "quota: {requests_per_minute: 3}"
    file.write_text(
        POLICY
        + f"server:\n  api_keys:\n  - plain\n  - {{key: '{hashed('b')}', name: bob, {quota}}}\n"
    )
    with caplog.at_level(logging.DEBUG):
        settings = load_settings(file, {})
    first, second = settings.server.api_keys
    assert first.digest == digest("plain") and second.digest == digest("b")
    assert second.quota is not None and second.quota.requests_per_minute == 3
    assert "plain" not in repr(settings) + caplog.text
    env = {"PONDER_SERVER__API_KEYS": f'["{hashed("c")}", {{"key": "d", "name": "dora"}}]'}
    assert [k.tenant for k in load_settings(file, env).server.api_keys][1] == "dora"


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("{key: hush, nam: bob}", "allowed at server.api_keys: key, name, quota"),
        ("{key: hush, quota: {tokens_per_hour: 1}}", "allowed at server.api_keys.quota: requests_"),
        ("sha256:hush", "64 digits"),
        ("{key: 5}", "server.api_keys.0.key"),
    ],
)
def test_a_wrong_entry_names_its_place(tmp_path: Path, entry: str, told: str) -> None:
    file = tmp_path / "ponder.yaml"
    file.write_text(POLICY + f"server: {{api_keys: [{entry}]}}\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(file, {})
    (problem,) = caught.value.problems
    assert problem.startswith("server.api_keys.0") and told in problem and "hush" not in problem
