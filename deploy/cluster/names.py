"""Names of a cluster's Services, in a file that dnsmasq reads: a Service's address, or, where it is
headless, its ready pods'.

    python3 names.py API TOKENS HOSTS PIDFILE
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

SECONDS = 0.5


def main(api: str, tokens: Path, hosts: Path, pidfile: Path) -> None:
    token = tokens.read_text().partition(",")[0]
    while True:
        time.sleep(SECONDS)  # a process of its own, which only looks
        try:
            services, endpoints = (get(api, token, kind) for kind in ("services", "endpoints"))
        except OSError as error:
            print(error, flush=True)
            continue
        text = "".join(f"{address} {name}\n" for address, name in lines(services, endpoints))
        if text != hosts.read_text():
            hosts.write_text(text)
            os.kill(int(pidfile.read_text()), signal.SIGHUP)


def get(api: str, token: str, kind: str) -> list[dict[str, Any]]:
    request = Request(f"{api}/api/v1/{kind}", headers={"Authorization": f"Bearer {token}"})
    # The API server makes its own certificate at each start, in this machine.
    with urlopen(request, timeout=5, context=ssl._create_unverified_context()) as reply:
        items: list[dict[str, Any]] = json.load(reply)["items"]
    return items


def lines(
    services: list[dict[str, Any]], endpoints: list[dict[str, Any]]
) -> Iterator[tuple[str, str]]:
    ready = {name(found): list(addresses(found)) for found in endpoints}
    for service in services:
        own = service["spec"]["clusterIP"]
        for address in ready.get(name(service), []) if own == "None" else [own]:
            yield address, f"{name(service)}.svc.cluster.local"


def name(found: dict[str, Any]) -> str:
    return "{name}.{namespace}".format_map(found["metadata"])


def addresses(endpoints: dict[str, Any]) -> Iterator[str]:
    for subset in endpoints.get("subsets") or []:
        for address in subset.get("addresses") or []:
            yield address["ip"]


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
