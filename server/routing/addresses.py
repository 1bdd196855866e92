"""A name's addresses, and connections to one of them.

A headless Kubernetes Service is a name that resolves to the address of each ready pod.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult

PORTS = {"http": 80, "https": 443}
Lookup = Callable[[str, int], Awaitable[list[str]]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is. Gateways that name it alike route alike."""

    name: str
    url: str
    address: str | None = None  # of the many that the URL's name has


class Pinned(AbstractResolver):
    """Every name is at one address: that of the server, whose certificate and virtual host are
    still those of the name."""

    def __init__(self, address: str):
        self._address = address

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        return [
            ResolveResult(
                hostname=host,
                host=self._address,
                port=port,
                family=family,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
        ]

    async def close(self) -> None:
        """Nothing is open."""


async def lookup(host: str, port: int) -> list[str]:
    """All addresses of a name, as the system resolves it. Raises `OSError` if it has none."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # longer than a name may be
        raise OSError(f"{host} is no name: {error}") from error
    return sorted({str(entry[4][0]) for entry in found})


async def places(url: str, look_up: Lookup | None) -> list[Place]:
    """The servers at a URL: one, or with `look_up` one at each of its name's addresses. Raises
    `OSError` if it has none."""
    if look_up is None:
        return [Place(_short(url), url)]
    parts = urlsplit(url)
    assert parts.hostname is not None
    port = parts.port or PORTS[parts.scheme]
    path = _short(url).removeprefix(parts.netloc)
    found = await look_up(parts.hostname, port)
    if not found:
        raise OSError(f"{parts.hostname} has no address")
    return [
        Place(f"[{a}]:{port}{path}" if ":" in a else f"{a}:{port}{path}", url, a) for a in found
    ]


def _short(url: str) -> str:
    return url.partition("://")[2].rstrip("/").removesuffix("/v1")
