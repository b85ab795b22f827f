"""The application for tests of rolling restarts: `/echo/TOKEN` returns what it was sent; as WSGI and as ASGI.

It knows no server; `/readyz` is for those which leave that page to the application.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

WORK = 0.002  # seconds that a request takes, so that some are always in flight


def _answer(method: str, path: str, length: int) -> bytes:
    return f"{method} {path.rpartition('/')[2]} {length}".encode()


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    size = int(environ.get("CONTENT_LENGTH") or 0)
    length = len(environ["wsgi.input"].read(size))
    if environ["PATH_INFO"].startswith("/echo/"):
        time.sleep(WORK)
    body = _answer(environ["REQUEST_METHOD"], environ["PATH_INFO"], length)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


async def asgi(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    if scope["type"] != "http":
        return
    length, more = 0, True
    while more:
        event = await receive()
        length += len(event.get("body", b""))
        more = bool(event.get("more_body"))
    if scope["path"].startswith("/echo/"):
        await asyncio.sleep(WORK)
    body = _answer(scope["method"], scope["path"], length)
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
