"""The pages of tests/asgi/test_more_frameworks.py with Quart."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator
from typing import Any

from quart import Quart, abort, make_response, request, websocket

app = Quart(__name__)
state: dict[str, str] = {}


@app.before_serving
async def start() -> None:
    state["name"] = "quart"


@app.after_serving
async def stop() -> None:
    print("shut down", file=sys.stderr, flush=True)


@app.get("/")
async def hello() -> str:
    return f"hello from {state['name']}"


@app.get("/thread")
def thread() -> str:
    import threading

    return threading.current_thread().name


@app.post("/upload")
async def upload() -> dict[str, Any]:
    size, digest = 0, hashlib.sha256()
    async for part in request.body:
        size += len(part)
        digest.update(part)
    return {"size": size, "sha256": digest.hexdigest()}


@app.post("/refuse")
async def refuse() -> None:
    abort(401)


@app.get("/raise")
async def fail() -> None:
    raise ValueError("no such thing")


@app.get("/ticks")
async def ticks() -> Any:
    async def numbers() -> AsyncIterator[bytes]:
        for number in range(1000):
            yield f"data: {number}\r\n\r\n".encode()
            await asyncio.sleep(0.01)

    response: Any = await make_response(numbers(), {"Content-Type": "text/event-stream"})
    response.timeout = None
    return response


@app.websocket("/echo")
async def echo() -> None:
    await websocket.accept(subprotocol="b")
    try:
        while True:
            await websocket.send(await websocket.receive())
    except asyncio.CancelledError:
        print("left", file=sys.stderr, flush=True)
        raise


@app.websocket("/shout")
async def shout() -> None:
    while True:
        await websocket.send((await websocket.receive()).upper())


@app.get("/healthz")
async def shadowed() -> str:
    return "of the application"
