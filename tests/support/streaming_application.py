"""An ASGI application of streams without an end, for tests of rolling restarts.

`/events` asks with pkg.draining() whether to end; `/patient` only learns from http.disconnect that it should; `/socket`
is a WebSocket that returns what it gets and learns nothing.  `/echo/TOKEN` is that of rolling_application.

An event is a number, one more than the one before; the last of a stream that ends in order is `end`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pkg
from tests.support import rolling_application

INTERVAL = 0.02  # seconds between two events
HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx passes on each event at once
]

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await socket(receive, send)
    elif scope["type"] == "http" and scope["path"] in ("/events", "/patient"):
        await events(receive, send, asks=scope["path"] == "/events")
    else:
        await rolling_application.asgi(scope, receive, send)


async def events(receive: Receive, send: Send, *, asks: bool) -> None:
    async def client_leaves() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    leaves = asyncio.ensure_future(client_leaves())
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    number = 0
    while not leaves.done() and not (asks and pkg.draining()):
        await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
        number += 1
        await asyncio.wait((leaves,), timeout=INTERVAL)
    await send({"type": "http.response.body", "body": b"data: end\n\n"})


async def socket(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] != "websocket.disconnect":
        await send({"type": "websocket.send", "text": message["text"]})
