"""Exits with 0 if the server of this container answers `/health`: an image without curl."""

import http.client
import os
import sys

SECONDS = 4


def main() -> None:
    port = int(os.environ.get("PONDER_SERVER__PORT", "8000"))
    server = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        server.request("GET", "/health")
        status = server.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"127.0.0.1:{port}/health: {error}")
    if status != http.client.OK:
        sys.exit(f"127.0.0.1:{port}/health: {status}")


if __name__ == "__main__":
    main()
