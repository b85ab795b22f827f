"""The client of the admin listener: which command requests which page, and how.

It prints nothing; `cli` does.
"""

from __future__ import annotations

import http.client
from collections.abc import Mapping

from pkg.errors import Error

__all__ = ["PAGES", "ask"]

# For each command: method, path and help text.
PAGES = {
    "status": (
        "GET",
        "/statusz",
        "show version, phase, settings, checks with their reasons, the pool, and who sends probes",
    ),
    "threads": ("GET", "/debug/threads", "show every thread's stack"),
    "requests": ("GET", "/debug/requests", "show requests in flight"),
    "pool": ("GET", "/debug/pool", "show the database pool"),
    "metrics": ("GET", "/metrics", "show metrics in Prometheus' text format or JSON"),
    "memory": ("GET", "/debug/memory", "show what allocated memory; --seconds turns tracing (tracemalloc) on"),
    "profile": (
        "GET",
        "/debug/profile",
        "sample stacks for some seconds; prints folded stacks, or with --json a speedscope file",
    ),
    "log-level": ("POST", "/debug/log-level", "change the log level for a while; then it reverts"),
    "drain": ("POST", "/drain", "drain and exit, like SIGTERM"),
}
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def ask(
    address: tuple[str, int], method: str, target: str, headers: Mapping[str, str], timeout: float
) -> tuple[int, bytes]:
    """Status and body of the response.  Raises Error if there is none."""
    host, port = _WILDCARDS.get(address[0], address[0]), address[1]
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request(method, target, headers=dict(headers))
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise Error(f"no response from the admin listener at {host} port {port}: {error}") from None
    finally:
        connection.close()
