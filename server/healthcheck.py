"""Asks the server on this machine whether it takes requests: ``python -m redraft.server.healthcheck``, for containers.

It finds the server by the variables that ``redraft serve`` reads, ``REDRAFT_HOST``, ``REDRAFT_PORT`` and, where the
probes are guarded, ``REDRAFT_API_KEY`` or ``REDRAFT_API_KEY_FILE``; options on the command line are not seen from here.
It loads nothing but the standard library: it runs every few seconds beside a server that has better use for the
processor.
"""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Mapping
from pathlib import Path

SECONDS = 4.0
"""Less than the image's own limit, so that the reason is still told."""
EVERY_ADDRESS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses to listen on that a client cannot connect to, and what it takes instead."""


def complaint(environment: Mapping[str, str]) -> str | None:
    """Why the server cannot be used now; None where it takes requests."""
    host = environment.get("REDRAFT_HOST", "127.0.0.1")
    try:
        headers = _authorization(environment)
        port = int(environment.get("REDRAFT_PORT", "") or 8000)
        connection = http.client.HTTPConnection(EVERY_ADDRESS.get(host, host), port, timeout=SECONDS)
        try:
            connection.request("GET", "/ready", headers=headers)
            reply = connection.getresponse()
            text = reply.read(200).decode(errors="replace")
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    return None if reply.status == http.client.OK else f"{reply.status} {text}"


def _authorization(environment: Mapping[str, str]) -> dict[str, str]:
    keys = environment.get("REDRAFT_API_KEY", "").split()
    if not keys and (file := environment.get("REDRAFT_API_KEY_FILE")):
        keys = Path(file).read_text().split()
    return {"Authorization": f"Bearer {keys[0]}"} if keys else {}


def main() -> None:
    """Exit code 0 where the server takes requests, else 1 and the reason."""
    reason = complaint(os.environ)
    sys.exit(f"not ready: {reason}" if reason else 0)


if __name__ == "__main__":
    main()
