"""An ASGI application of streams without an end, for tests of rolling restarts.

`/events` asks with pkg.draining() whether to end; `/patient` only learns from http.disconnect that it should; `/socket`
is a WebSocket that returns what it gets and learns nothing.  `/page` is a page for browsers that holds both open, and
connects again when they end.  `/echo/TOKEN` is that of rolling_application.

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

# What it sees is in `told`: how often it has connected, what has come, and what should not be.
PAGE = b"""<!doctype html>
<title>streams</title>
<script>
const told = {streams: 0, events: 0, sockets: 0, echoes: 0, codes: [], faults: []};
const source = new EventSource('/events?retry=50');
let number = 0;
source.onopen = () => { told.streams++; number = 0; };
source.onmessage = event => {
  if (event.data === 'end') return;
  if (event.data !== String(number)) told.faults.push(`event ${event.data} instead of ${number}`);
  number++; told.events++;
};
source.onerror = () => { if (source.readyState === EventSource.CLOSED) told.faults.push('the stream does not go on'); };
function talk() {
  const socket = new WebSocket(`ws://${location.host}/socket`);
  let number = 0;
  socket.onopen = () => { told.sockets++; socket.send('0'); };
  socket.onmessage = message => {
    if (message.data !== String(number)) told.faults.push(`echo ${message.data} instead of ${number}`);
    number++; told.echoes++;
    setTimeout(() => { if (socket.readyState === WebSocket.OPEN) socket.send(String(number)); }, 10);
  };
  socket.onerror = () => told.faults.push('an error of the socket');
  socket.onclose = event => { told.codes.push(event.code); setTimeout(talk, 50); };
}
talk();
</script>
"""

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await socket(receive, send)
    elif scope["type"] == "http" and scope["path"] in ("/events", "/patient"):
        await events(receive, send, asks=scope["path"] == "/events", retry=scope["query_string"][6:])
    elif scope["type"] == "http" and scope["path"] == "/page":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": PAGE})
    else:
        await rolling_application.asgi(scope, receive, send)


async def events(receive: Receive, send: Send, *, asks: bool, retry: bytes) -> None:
    """`retry`: the milliseconds after which EventSource connects again, or nothing."""

    async def client_leaves() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    leaves = asyncio.ensure_future(client_leaves())
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    if retry:
        await send({"type": "http.response.body", "body": b"retry: %s\n\n" % retry, "more_body": True})
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
