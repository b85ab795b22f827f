"""The pages of tests/asgi/test_more_frameworks.py with Litestar."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sys
from collections.abc import AsyncIterator
from typing import Any

from litestar import Litestar, Request, WebSocket, get, post, websocket, websocket_listener
from litestar.datastructures import State
from litestar.exceptions import NotAuthorizedException, WebSocketDisconnect
from litestar.response import ServerSentEvent


@contextlib.asynccontextmanager
async def lifespan(app: Litestar) -> AsyncIterator[None]:
    app.state.name = "litestar"
    yield
    print("shut down", file=sys.stderr, flush=True)


@get("/")
async def hello(state: State) -> str:
    return f"hello from {state.name}"


@get("/thread", sync_to_thread=True)
def thread() -> str:
    import threading

    return threading.current_thread().name


@post("/upload")
async def upload(request: Request[Any, Any, Any]) -> dict[str, Any]:
    size, digest = 0, hashlib.sha256()
    async for part in request.stream():
        size += len(part)
        digest.update(part)
    return {"size": size, "sha256": digest.hexdigest()}


@post("/refuse")
async def refuse() -> None:
    raise NotAuthorizedException


@get("/raise")
async def fail() -> None:
    raise ValueError("no such thing")


@get("/ticks")
async def ticks() -> ServerSentEvent:
    async def numbers() -> AsyncIterator[int]:
        for number in range(1000):
            yield number
            await asyncio.sleep(0.01)

    return ServerSentEvent(numbers())


@websocket("/echo")
async def echo(socket: WebSocket[Any, Any, Any]) -> None:
    await socket.accept(subprotocols="b")
    try:
        while True:
            await socket.send_text(await socket.receive_text())
    except WebSocketDisconnect as left:
        print(f"left {left.code}", file=sys.stderr, flush=True)


@websocket_listener("/shout")
async def shout(data: str) -> str:
    return data.upper()


@get("/healthz")
async def shadowed() -> str:
    return "of the application"


app = Litestar(
    [hello, thread, upload, refuse, fail, ticks, echo, shout, shadowed], lifespan=[lifespan], openapi_config=None
)
