"""A Python microservice, and a host for one: truthful health probes, a PostgreSQL pool, a drain that loses no request.

It is not a framework: the application is a WSGI or ASGI callable, or an `http.server` handler class.

    connection("name", timeout=None)
                                    a pooled database connection, for a `with` block; the name is for one of several
    connect("name", timeout=None)   one whose close() gives it back, for an ORM
    aconnection(...), aconnect(...)
                                    the same for `async with` and `await`: psycopg's AsyncConnection
    check(name, interval=5, ...)    decorator: registers a readiness check
    on_start, on_stop               decorators: run a function before the first request, and after the last one
    set_ready(ready, reason="")     takes this instance out of rotation, or puts it back
    draining()                      whether the service has been told to stop
    request_id()                    the id of the request that is being served
    outage(error)                   the DatabaseUnavailable that has caused an error, or None
    running(DATABASE_URL=...)       the pool and the checks for code that is not served, for a `with` block
    fail_liveness(reason)           makes the liveness page fail, so that the platform restarts the process
    Database(url, name=...)         a pool of its own, without settings
    Server, RequestHandler          the server and its handler class, usable like those of `http.server`

Names are imported when they are first used (PEP 562), so that `python -m pkg probe` does not load psycopg.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # importing typing would take a quarter of the time of a probe
if TYPE_CHECKING:
    from typing import Any

    from pkg.api import (
        aconnect,
        aconnection,
        check,
        connect,
        connection,
        draining,
        fail_liveness,
        on_start,
        on_stop,
        set_ready,
    )
    from pkg.database.database import Database
    from pkg.errors import (
        BodyError,
        ClientDisconnected,
        ConfigurationError,
        DatabaseUnavailable,
        Error,
        NotRunningError,
        ResponseError,
        StartupError,
        outage,
    )
    from pkg.http.handler import RequestHandler
    from pkg.http.server import Server
    from pkg.logs.context import request_id
    from pkg.service.outside import running

__all__ = [
    "BodyError",
    "ClientDisconnected",
    "ConfigurationError",
    "Database",
    "DatabaseUnavailable",
    "Error",
    "NotRunningError",
    "RequestHandler",
    "ResponseError",
    "Server",
    "StartupError",
    "aconnect",
    "aconnection",
    "check",
    "connect",
    "connection",
    "draining",
    "fail_liveness",
    "on_start",
    "on_stop",
    "outage",
    "request_id",
    "running",
    "set_ready",
]

_HOMES = {
    "Database": "database.database",
    "RequestHandler": "http.handler",
    "Server": "http.server",
    "aconnect": "api",
    "aconnection": "api",
    "check": "api",
    "connect": "api",
    "connection": "api",
    "draining": "api",
    "fail_liveness": "api",
    "on_start": "api",
    "on_stop": "api",
    "request_id": "logs.context",
    "running": "service.outside",
    "set_ready": "api",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value  # from now on found without this function, as `pkg.connection()` runs in each request
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
