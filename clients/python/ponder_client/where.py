"""Where the server is, and who asks."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

import httpx

LOCAL = "http://127.0.0.1:8000"


def options(url: str | None, api_key: str | None) -> dict[str, Any]:
    """Of an httpx client for the server at `url`, with or without a trailing `/v1`."""
    base = url or os.environ.get("PONDER_URL") or LOCAL
    key = api_key or os.environ.get("PONDER_API_KEY")
    agent = {"user-agent": f"ponder-client/{version('ponder-client')}"}
    return {
        "base_url": base.rstrip("/").removesuffix("/v1"),
        # As many calls at once as the caller likes: none waits for another's connection.
        "limits": httpx.Limits(max_keepalive_connections=20),
        "headers": agent | ({"authorization": f"Bearer {key}"} if key else {}),
    }
