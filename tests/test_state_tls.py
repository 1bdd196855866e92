"""Redis by TLS: who signed is checked, and by which name it is called."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from server.state.connection import Connection
from server.state.settings import RedisSettings
from tests.tls import Authority, fronted
from tests.valkey import Valkey


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def answered(url: str, **settings: Any) -> str | None:
    """Why not; None: it did, and keeps what it is told."""
    connection = Connection(RedisSettings.model_validate({"url": url, **settings}))
    try:
        if await connection.check():
            await connection.redis.set("name", "value")
            assert await connection.redis.get("name") == b"value"
        return connection.error
    finally:
        await connection.redis.aclose()


@pytest.fixture
async def url(valkey: Valkey, authority: Authority) -> AsyncIterator[str]:
    async with fronted(valkey, authority.server("localhost", asks=False)) as url:
        yield url


async def test_who_signed_may_be_told(url: str, authority: Authority) -> None:
    assert await answered(url, ca_file=authority.ca_file) is None


async def test_who_is_not_known_to_have_signed_is_refused(url: str) -> None:
    assert "CERTIFICATE_VERIFY_FAILED" in (await answered(url) or "")


async def test_a_certificate_is_of_one_name(url: str, authority: Authority) -> None:
    other = url.replace("localhost", "127.0.0.1")
    assert "CERTIFICATE_VERIFY_FAILED" in (await answered(other, ca_file=authority.ca_file) or "")


async def test_clients_may_be_asked_for_a_certificate(valkey: Valkey, authority: Authority) -> None:
    """As Redis does unless `tls-auth-clients no`."""
    cert, key = authority.issue("gateway")
    known = {"ca_file": authority.ca_file}
    async with fronted(valkey, authority.server("localhost", asks=True)) as url:
        assert await answered(url, **known) is not None
        assert await answered(url, **known, cert_file=cert, key_file=key) is None


@pytest.mark.parametrize("name", ["ca_file", "password_file"])
def test_a_file_that_is_not_there_is_told_at_once(name: str) -> None:
    settings = RedisSettings.model_validate({"url": "rediss://localhost", name: "/not/there"})
    with pytest.raises(OSError, match="/not/there"):
        Connection(settings)
