"""API keys. A dependency of the guarded routes themselves: no path is ever compared.

Some routes are for admins, whose keys open all the others, too.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence

from fastapi import Request
from pydantic import SecretStr

from server.errors import Forbidden, Unauthorized

Authorize = Callable[[Request], Awaitable[None]]


def digest(key: str) -> bytes:
    """Keys are compared by digest, so that lengths tell nothing either."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def authorizer(keys: Sequence[SecretStr]) -> Authorize:
    """A dependency that raises `Unauthorized` unless the request bears one of `keys`.

    It leaves the key's short name in `request.state.tenant`; with no keys everyone may enter,
    and the tenant is None.
    """
    known = _digests(keys)

    async def authorize(request: Request) -> None:
        request.state.tenant = None
        if not known:
            return
        given = digest(_bearer(request))
        if not _among(given, known):
            raise Unauthorized("the API key is not known here")
        request.state.tenant = f"key-{given.hex()[:12]}"

    return authorize


def for_admins(keys: Sequence[SecretStr]) -> Authorize:
    """A dependency that raises `Forbidden` unless the request bears one of `keys`; with no keys,
    always. It comes after `authorizer`'s."""
    known = _digests(keys)

    async def authorize(request: Request) -> None:
        if not known:
            raise Forbidden("this server has no admin: server.admin_keys is not set")
        if not _among(digest(_bearer(request)), known):
            raise Forbidden("this takes an admin's key")

    return authorize


def _digests(keys: Sequence[SecretStr]) -> list[bytes]:
    return [digest(key.get_secret_value()) for key in keys]


def _among(given: bytes, known: Sequence[bytes]) -> bool:
    """Every key is compared, so that time does not tell which one came close."""
    return sum(hmac.compare_digest(given, key) for key in known) > 0


def _bearer(request: Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthorized("send the API key as `Authorization: Bearer KEY`")
    return key.strip()
