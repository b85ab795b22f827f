"""The applications of the drills: each path is a fault that real ones have."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pkg

_kept: list[Any] = []


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    match environ["PATH_INFO"]:
        case "/broken":
            raise ValueError("no such article")
        case "/slow":
            time.sleep(0.5)
        case "/slower":
            time.sleep(1.5)
        case "/endless":
            time.sleep(3600)
        case "/burn":
            end = time.monotonic() + 0.2
            while time.monotonic() < end:
                pass
        case "/hold_the_lock":
            ctypes.PyDLL(None).usleep(1_500_000)  # an extension that does not let go of the interpreter lock
        case "/descriptors":
            _kept.append(open(os.devnull))  # noqa: SIM115 - that is the fault
        case "/memory":
            _kept.append(b"x" * (1 << 20))
        case "/child":
            if os.fork() == 0:
                taken = [b"x" * (1 << 20) for _ in range(1 << 10)]
                os._exit(len(taken) & 1)
            os.wait()
        case "/query":
            with pkg.connection(timeout=2) as connection:
                connection.execute("select 1")
        case "/slow_query":
            with pkg.connection(timeout=20) as connection:
                connection.execute("select pg_sleep(0.5)")
    start_response("200 OK", [("Content-Length", "3")])
    return [b"ok\n"]


async def blocking(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[..., Any]) -> None:
    assert scope["type"] == "http"
    if scope["path"] == "/block":
        time.sleep(0.3)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
    await send({"type": "http.response.body", "body": b"ok\n"})
