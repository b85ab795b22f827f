"""What tests/asgi/test_clients.py asks for, as plain ASGI."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

left: list[str] = []  # paths of streams whose client has left

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await http(scope, receive, send)
    elif scope["type"] == "websocket":
        await socket(scope, receive, send)


async def http(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    name, _, rest = scope["path"][1:].partition("/")
    if name == "stream":
        await stream(scope["path"], int(rest), receive, send)
        return
    if name == "moved":
        await send({"type": "http.response.start", "status": 307, "headers": [(b"location", b"/upload")]})
        await send({"type": "http.response.body"})
        return
    size, digest, parts, more = 0, hashlib.sha256(), 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        parts += 1
        digest.update(message["body"])
        more = message["more_body"]
    told = {
        "method": scope["method"],
        "port": scope["client"][1],  # one for each connection
        "size": size,
        "sha256": digest.hexdigest(),
        "query": scope["query_string"].decode(),
        "left": left,
    }
    headers = [(b"content-type", b"application/json"), (b"set-cookie", b"a=b"), (b"set-cookie", b"c=d")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})


async def stream(path: str, count: int, receive: Receive, send: Send) -> None:
    """Kilobytes, each of its number; beyond a thousand of them with a pause between two."""
    await receive()
    leaves = asyncio.ensure_future(receive())
    await send({"type": "http.response.start", "status": 200})
    for number in range(count):
        if leaves.done():
            left.append(path)
            return
        await send({"type": "http.response.body", "body": b"%1023d\n" % number, "more_body": True})
        await asyncio.sleep(0 if count <= 1000 else 0.005)
    await send({"type": "http.response.body"})


async def socket(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Returns what it gets; `close CODE` closes it, and `count N` sends N messages."""
    await receive()
    await send({"type": "websocket.accept", "headers": [(b"set-cookie", b"a=b")]})
    while (message := await receive())["type"] != "websocket.disconnect":
        text = message.get("text")
        word, _, number = (text or "").partition(" ")
        if word == "close":
            await send({"type": "websocket.close", "code": int(number), "reason": "as asked"})
            return
        for value in range(int(number)) if word == "count" else ():
            await send({"type": "websocket.send", "text": str(value)})
        await send({"type": "websocket.send", "text": text, "bytes": message.get("bytes")})
    left.append(f"{scope['path']} {message['code']} {message['reason']}")
