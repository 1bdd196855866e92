"""API keys. A dependency of the guarded routes themselves: no path is ever compared.

Some routes are for admins, whose keys open all the others, too.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Sequence

from fastapi import Request

from server.errors import Forbidden, Unauthorized
from server.keys import KeySettings, digest

Authorize = Callable[[Request], Awaitable[None]]


def authorizer(keys: Sequence[KeySettings]) -> Authorize:
    """A dependency that raises `Unauthorized` unless the request bears one of `keys`.

    It leaves the key's tenant in `request.state.tenant`; with no keys everyone may enter, and the
    tenant is None.
    """
    known = [(key.digest, key.tenant) for key in keys]

    async def authorize(request: Request) -> None:
        request.state.tenant = None
        if not known:
            return
        tenant = _found(digest(_bearer(request)), known)
        if tenant is None:
            raise Unauthorized("the API key is not known here")
        request.state.tenant = tenant

    return authorize


def for_admins(keys: Sequence[KeySettings]) -> Authorize:
    """A dependency that raises `Forbidden` unless the request bears one of `keys`; with no keys,
    always. It comes after `authorizer`'s."""
    known = [(key.digest, key.tenant) for key in keys]

    async def authorize(request: Request) -> None:
        if not known:
            raise Forbidden("this server has no admin: server.admin_keys is not set")
        if _found(digest(_bearer(request)), known) is None:
            raise Forbidden("this takes an admin's key")

    return authorize


def _found(given: bytes, known: Sequence[tuple[bytes, str]]) -> str | None:
    """Every key is compared, so that time does not tell which one came close."""
    same = [tenant for key, tenant in known if hmac.compare_digest(given, key)]
    return same[0] if same else None


def _bearer(request: Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthorized("send the API key as `Authorization: Bearer KEY`")
    return key.strip()
