"""The application that every server in the benchmark serves, as WSGI and as ASGI.  It imports nothing else of bench/.

    /          hello world
    /healthz   a probe: `ok`, as a peer's user would write it (our server answers it before the application)
    /readyz    the same with `SELECT 1` on a pooled connection, the hand-written view of every peer
    /64k       64 KiB
    /upload    reads the body, says how long it was
    /query     one row from PostgreSQL as JSON
    /busy      50 ms of CPU
    /short     0.3 ms of CPU
    /long      10 ms of CPU
    /sleep     sleeps for 50 ms
    /hold      holds the interpreter lock for 3 s, burning CPU, as a C extension may

and only as ASGI, in the event loop:

    /stream    64 KiB in four parts, as they come
    /starlette /fastapi   hello world of these frameworks; JSON of the latter
    a WebSocket on any path says what it is told
    /loop/block      sleeps for 3 s
    /loop/hold       /hold
    /loop/callbacks  2 s of CPU in callbacks of 0.1 to 10 ms

The WSGI side is one function because that is the least all servers can host; work is the same code on both sides.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

BUSY, SHORT, LONG = 0.05, 0.0003, 0.01  # seconds of CPU
HOLD = 3.0  # seconds
THREADS = int(os.environ.get("BENCH_THREADS", "8"))

_BIG = b"0123456789abcdef" * 4096
_QUARTER = _BIG[:16384]


def _connection() -> contextlib.AbstractContextManager[Any]:
    """A connection from our pool under our server, otherwise from a psycopg_pool of the same size."""
    if os.environ.get("BENCH_SERVER") == "pkg":
        import pkg

        return pkg.connection()
    connection: contextlib.AbstractContextManager[Any] = _pool().connection(timeout=5)
    return connection


@functools.cache
def _pool() -> Any:
    from psycopg_pool import ConnectionPool

    return ConnectionPool(os.environ["DATABASE_URL"], min_size=2, max_size=10, open=True)


def _query() -> bytes:
    with _connection() as connection:
        row = connection.execute("SELECT 42 AS id, 'a name' AS name, now()::text AS at").fetchone()
    return json.dumps({"id": row[0], "name": row[1], "at": row[2]}).encode()


def _ready() -> bytes:
    with _connection() as connection:
        connection.execute("SELECT 1")
    return b"ok"


def _busy(seconds: float) -> bytes:
    """Uses CPU time, not wall time, because a thread that waits for the lock or for a core does no work."""
    until = time.thread_time() + seconds
    n = 0
    while time.thread_time() < until:
        n += sum(range(1000))
    return b"busy"


def _sleep() -> bytes:
    time.sleep(0.05)
    return b"slept"


def _hold() -> bytes:
    """One call into C that never releases the lock; first measures how much work takes 3 s."""
    begin = time.thread_time()
    collections.deque(itertools.repeat(None, 1_000_000), maxlen=0)
    count = int(HOLD / (time.thread_time() - begin) * 1_000_000)
    collections.deque(itertools.repeat(None, count), maxlen=0)
    return b"held"


WORK: dict[str, Callable[[], bytes]] = {
    "/": lambda: b"Hello, world!\n",
    "/healthz": lambda: b"ok",
    "/64k": lambda: _BIG,
    "/readyz": _ready,
    "/query": _query,
    "/busy": functools.partial(_busy, BUSY),
    "/short": functools.partial(_busy, SHORT),
    "/long": functools.partial(_busy, LONG),
    "/sleep": _sleep,
    "/hold": _hold,
}
IN_LOOP: dict[str, Callable[[], bytes]] = {
    "/loop/block": lambda: b"%r" % time.sleep(HOLD),  # type: ignore[func-returns-value]
    "/loop/hold": _hold,
}
AT_ONCE = {
    "/",
    "/healthz",
    "/64k",
    "/short",
    "/long",
}  # served by the ASGI application in its loop; other paths go to threads


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path == "/upload":
        body = b"%d" % len(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    else:
        body = WORK[path]()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


@functools.cache
def _threads() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(THREADS)


async def _callbacks() -> bytes:
    import asyncio

    end = time.monotonic() + 2
    for length in itertools.cycle((0.0001, 0.0003, 0.001, 0.003, 0.01)):
        until = time.monotonic() + length
        while time.monotonic() < until:
            pass
        await asyncio.sleep(0)
        if time.monotonic() > end:
            break
    return b"done"


def _starlette() -> Any:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def hello(request: Any) -> Any:
        return PlainTextResponse(WORK["/"]())

    return Starlette(routes=[Route("/starlette", hello)])


def _fastapi() -> Any:
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/fastapi")
    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    return app


FRAMEWORKS: dict[str, Callable[[], Any]] = {
    "/starlette": functools.cache(_starlette),
    "/fastapi": functools.cache(_fastapi),
}


async def _stream(send: Send) -> None:
    headers = [(b"content-type", b"application/octet-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(4):
        await send({"type": "http.response.body", "body": _QUARTER, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _echo(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def asgi(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    path = scope["path"]
    if path in AT_ONCE:
        body = WORK[path]()
    elif path == "/upload":
        size, more = 0, True
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        body = b"%d" % size
    elif path == "/loop/callbacks":
        body = await _callbacks()
    elif path in IN_LOOP:
        body = IN_LOOP[path]()
    elif path in FRAMEWORKS:
        await FRAMEWORKS[path]()(scope, receive, send)
        return
    elif path == "/stream":
        await _stream(send)
        return
    elif scope["type"] == "websocket":
        await _echo(receive, send)
        return
    else:
        import asyncio  # imported here, so that WSGI servers do not have it in memory

        body = await asyncio.get_running_loop().run_in_executor(_threads(), WORK[path])
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
