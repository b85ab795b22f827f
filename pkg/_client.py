"""The client of the admin listener: which command asks for which page, and how.

It prints nothing: `cli` does.
"""

from __future__ import annotations

import http.client
from collections.abc import Mapping

from pkg.errors import Error

__all__ = ["PAGES", "ask"]

# By command: method, path, what it is for.
PAGES = {
    "status": ("GET", "/statusz", "version, phase, settings, checks with reasons, pool, who probes"),
    "threads": ("GET", "/debug/threads", "every thread's stack"),
    "requests": ("GET", "/debug/requests", "requests in flight"),
    "pool": ("GET", "/debug/pool", "the database pool"),
    "metrics": ("GET", "/metrics", "metrics, in Prometheus' text format or JSON"),
    "memory": ("GET", "/debug/memory", "who holds memory; --seconds switches tracing on (tracemalloc)"),
    "profile": ("GET", "/debug/profile", "stacks sampled for some seconds: folded, or with --json for speedscope"),
    "log-level": ("POST", "/debug/log-level", "another log level; it reverts by itself"),
    "drain": ("POST", "/drain", "drain and exit, as SIGTERM does"),
}
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def ask(
    address: tuple[str, int], method: str, target: str, headers: Mapping[str, str], timeout: float
) -> tuple[int, bytes]:
    """Status and body of the answer.  Error: there is none."""
    host, port = _WILDCARDS.get(address[0], address[0]), address[1]
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request(method, target, headers=dict(headers))
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise Error(f"no answer from the admin listener at {host} port {port}: {error}") from None
    finally:
        connection.close()
