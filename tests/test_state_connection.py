"""The connection to Redis: its settings, and its health."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from server.errors import StateError
from server.settings import load_settings
from server.state.connection import Connection, connect
from server.state.settings import RedisSettings
from tests.serving import until
from tests.valkey import Valkey


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"url": "http://hush@host"}, "redis://host:6379/0"),
        ({"url": "redis://"}, "redis://host:6379/0"),
        ({"url": "unix://"}, "unix:///path"),
        ({"url": "redis://host:hush"}, "redis://host:6379/0"),
        ({"url": "redis://host?password=hush"}, "no ?query"),
        ({"url": "redis://:hush@host", "password": "hush"}, "only one of password"),
        ({"url": "redis://host", "password": "hush", "password_file": "x"}, "only one of password"),
        ({"url": "redis://bob:hush@host", "username": "bob"}, "only one of username"),
        ({"url": "redis://host", "ca_file": "x"}, "ca_file is for rediss:// only"),
        ({"url": "rediss://host", "cert_file": "x"}, "cert_file and key_file go together"),
        ({"url": "redis://host", "prefix": "a b"}, "pattern"),
        ({"url": "redis://host", "timeout": 1}, "timeout"),
        ({"url": "redis://host", "seconds": 0}, "greater than 0"),
    ],
)
def test_settings_that_cannot_be_used(wrong: Any, told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        RedisSettings.model_validate(wrong)
    errors = str(caught.value.errors(include_input=False, include_url=False))
    assert told in errors and "hush" not in errors


def test_one_variable_turns_it_on() -> None:
    env = {"PONDER_POLICY__KIND": "vllm", "PONDER_POLICY__MODEL": "m"}
    assert load_settings(None, env).redis is None
    redis = load_settings(None, {**env, "PONDER_REDIS__URL": "rediss://:hush@host:6380/2"}).redis
    assert redis is not None and "hush" not in repr(redis)
    pool = connect(redis).connection_pool
    known = pool.connection_kwargs
    assert (known["host"], known["port"], known["db"]) == ("host", 6380, 2)
    assert known["password"] == "hush" and "SSL" in pool.connection_class.__name__


async def test_a_password_may_be_in_a_file(valkey: Valkey, tmp_path: Path) -> None:
    admin = connect(valkey.settings())
    await admin.acl_setuser(
        "bob", enabled=True, passwords=["+secret"], categories=["+@all"], keys=["*"]
    )
    await admin.aclose()
    file = tmp_path / "password"
    file.write_text("secret\n")
    told = {"username": "bob", "password_file": file}
    connection = Connection(valkey.settings(**told))
    assert await connection.check()
    assert await connection.redis.acl_whoami() == "bob"
    await connection.redis.aclose()
    file.write_text("wrong")
    connection = Connection(valkey.settings(**told))
    assert not await connection.check()
    assert connection.error is not None and "wrong" not in connection.error
    await connection.redis.aclose()


async def test_it_says_when_the_server_dies_and_when_it_is_back(valkey: Valkey) -> None:
    connection, turns = Connection(valkey.settings()), list[bool]()
    connection.listeners.append(turns.append)
    async with connection.watched():
        with connection.asking("a test") as redis:
            await redis.set(connection.key("a", "b"), "1")
            assert await redis.keys() == [b"ponder:a:b"]
        valkey.kill()
        with pytest.raises(StateError, match="a test: "), connection.asking("a test") as redis:
            await redis.get("x")
        assert not connection.up
        with pytest.raises(StateError, match="Redis does not answer"), connection.asking("more"):
            raise AssertionError("it was asked")
        valkey.start()
        await until(lambda: connection.up)
    assert turns == [False, True]


async def test_a_command_that_is_wrong_does_not_bring_it_down(valkey: Valkey) -> None:
    connection = Connection(valkey.settings())
    async with connection.watched():
        with connection.asking("a test") as redis:
            await redis.set("text", "x")
        with pytest.raises(StateError, match="not an integer"), connection.asking("a") as redis:
            await redis.incr("text")
        assert connection.up


async def test_a_server_that_hangs_is_given_up(valkey: Valkey) -> None:
    """It takes connections and does not answer, as one does whose disk is stuck."""
    connection = Connection(valkey.settings(seconds=0.1))
    assert valkey.process is not None
    await connection.check()
    valkey.process.send_signal(19)  # SIGSTOP
    try:
        with pytest.raises(StateError), connection.asking("a test") as redis:
            async with asyncio.timeout(5):
                await redis.get("x")
        assert not connection.up
    finally:
        valkey.process.send_signal(18)
    await connection.redis.aclose()


async def test_more_commands_than_connections_wait_their_turn(valkey: Valkey) -> None:
    connection = Connection(valkey.settings(connections=2))
    async with connection.watched():
        with connection.asking("a test") as redis:
            numbers = await asyncio.gather(*(redis.incr("n") for _ in range(100)))
        assert sorted(numbers) == list(range(1, 101))


async def test_a_cancellation_is_never_lost(valkey: Valkey) -> None:
    """redis-py does lose some, which left this waiting for ever."""
    for i in range(50):
        connection = Connection(valkey.settings(check_seconds=1e-4))
        async with asyncio.timeout(10), connection.watched():
            await asyncio.sleep(i * 4e-5)
