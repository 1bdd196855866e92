"""What verifiers work with: pools of processes that can be killed, and a client for webhooks.

Nothing is started before it is first needed. The server owns them and closes them.
"""

from __future__ import annotations

import httpx

from server.config import VerifierSettings
from server.sandbox.lockdown import Limits
from server.sandbox.pool import Kind, Pool


class Tools:
    def __init__(self, settings: VerifierSettings | None = None):
        self.settings = settings or VerifierSettings()
        self.math = self._pool("math", self.settings.seconds)
        self.text = self._pool("text", self.settings.seconds)
        self.code = self._pool("code", self.settings.python_seconds)
        self._client: httpx.AsyncClient | None = None

    def _pool(self, kind: Kind, seconds: float) -> Pool:
        settings = self.settings
        limits = Limits(seconds, settings.memory_bytes, settings.sandbox == "strict")
        return Pool(kind, settings.workers, limits)

    @property
    def client(self) -> httpx.AsyncClient:
        """For webhooks: no redirects, no proxies of the environment."""
        if self._client is None:
            self._client = httpx.AsyncClient(
                transport=httpx.AsyncHTTPTransport(retries=1),  # of connecting
                timeout=self.settings.webhook_seconds,
                trust_env=False,
            )
        return self._client

    async def close(self) -> None:
        for pool in (self.math, self.text, self.code):
            await pool.close()
        if self._client is not None:
            await self._client.aclose()
