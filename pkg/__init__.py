"""A Python microservice, and a host for one: truthful health probes, a PostgreSQL pool, a drain that loses nothing.

It is not a framework: the application inside is an `http.server` handler class or a WSGI callable.

    connection(timeout=None)        a connection of the pool, for a `with` block
    check(name, interval=5, ...)    decorator: a readiness check
    set_ready(ready, reason="")     readiness as the application sees it
    fail_liveness(reason)           "restart me"
    Server, RequestHandler          the parts, usable like those of `http.server`

Names are imported when they are first used (PEP 562): `python -m pkg probe` must not load psycopg.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # importing typing would take a quarter of the probe's own time
if TYPE_CHECKING:
    from typing import Any

    from pkg._api import check, connection, fail_liveness, set_ready
    from pkg.errors import (
        BodyError,
        ClientDisconnected,
        ConfigurationError,
        DatabaseUnavailable,
        Error,
        NotRunningError,
        ResponseError,
        StartupError,
    )
    from pkg.handler import RequestHandler
    from pkg.server import Server

__all__ = [
    "BodyError",
    "ClientDisconnected",
    "ConfigurationError",
    "DatabaseUnavailable",
    "Error",
    "NotRunningError",
    "RequestHandler",
    "ResponseError",
    "Server",
    "StartupError",
    "check",
    "connection",
    "fail_liveness",
    "set_ready",
]

_HOMES = {
    "RequestHandler": "handler",
    "Server": "server",
    "check": "_api",
    "connection": "_api",
    "fail_liveness": "_api",
    "set_ready": "_api",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value  # found without us from now on: `pkg.connection()` is said in each request
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
