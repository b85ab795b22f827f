"""The pages of tests/asgi/test_frameworks.py with Starlette."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator
from typing import Any

import psycopg_pool
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from tests.support.apps.events import happened, note


@contextlib.asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[dict[str, Any]]:
    """With a pool of its own, whose connections are opened by the event loop."""
    async with psycopg_pool.AsyncConnectionPool(os.environ["DATABASE_URL"], min_size=2, max_size=4, open=False) as pool:
        yield {"name": "starlette", "pool": pool}


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"hello from {request.state.name} at {request.url.path}")


async def upload(request: Request) -> JSONResponse:
    """Reads the body as it comes."""
    size, digest = 0, hashlib.sha256()
    async for part in request.stream():
        size += len(part)
        digest.update(part)
    return JSONResponse({"size": size, "sha256": digest.hexdigest()})


async def sse(request: Request) -> StreamingResponse:
    """Server-sent events without an end."""

    async def parts() -> AsyncIterator[str]:
        note("begun")
        try:
            for number in range(1000):
                yield f"data: {number}\n\n"
                await asyncio.sleep(0.01)
        finally:
            note("ended")

    return StreamingResponse(parts(), media_type="text/event-stream")


async def quiet(request: Request) -> StreamingResponse:
    """One event, and never another."""

    async def parts() -> AsyncIterator[str]:
        try:
            yield "data: 0\n\n"
            await asyncio.Event().wait()
        finally:
            note("quiet ended")

    return StreamingResponse(parts(), media_type="text/event-stream")


async def background(request: Request) -> PlainTextResponse:
    async def later() -> None:
        await asyncio.sleep(0.1)
        note("background")

    return PlainTextResponse("at once", background=BackgroundTask(later))


async def database(request: Request) -> JSONResponse:
    async with request.state.pool.connection() as conn:
        cursor = await conn.execute("SELECT %s::int + 1, pg_backend_pid(), pg_sleep(0.02)", [request.query_params["n"]])
        number, pid, _ = await cursor.fetchone()
        return JSONResponse({"number": number, "pid": pid})


async def form(request: Request) -> JSONResponse:
    """multipart/form-data, of which a long file is spooled by Starlette."""
    async with request.form() as fields:
        data = await fields["file"].read()
        return JSONResponse(
            {
                "note": fields["note"],
                "filename": fields["file"].filename,
                "size": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        )


async def lines(request: Request) -> StreamingResponse:
    """Of a generator in a thread, between which and the event loop each line goes to and fro."""
    return StreamingResponse(f"line {number}\n" for number in range(int(request.query_params["n"])))


async def file(request: Request) -> FileResponse:
    """Which knows HEAD, ranges and conditions."""
    return FileResponse(__file__)


async def told(request: Request) -> JSONResponse:
    return JSONResponse(happened())


async def fails(request: Request) -> PlainTextResponse:
    raise ValueError("no")


async def socket(websocket: WebSocket) -> None:
    """Returns what it gets, of either kind; notes why it has ended."""
    if websocket.query_params.get("deny"):
        await websocket.send_denial_response(PlainTextResponse("not you", 401, {"www-authenticate": "Basic"}))
        return
    await websocket.accept("chat" if "chat" in websocket.scope["subprotocols"] else None)
    try:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message["code"], message.get("reason"))
            if text := message.get("text"):
                await websocket.send_json({"text": text, "of": websocket.state.name, "at": websocket.url.path})
            else:
                await websocket.send_bytes(message["bytes"][::-1])
    except WebSocketDisconnect as end:
        note(f"disconnected {end.code}")


class Stamp(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["x-stamp"] = "stamped"
        return response


pages = [
    Route("/", hello),
    Route("/upload", upload, methods=["POST"]),
    Route("/sse", sse),
    Route("/quiet", quiet),
    Route("/background", background),
    Route("/events", told),
    Route("/database", database),
    Route("/form", form, methods=["POST"]),
    Route("/lines", lines),
    Route("/file", file),
    WebSocketRoute("/socket", socket),
    Route("/fails", fails),
]
routes = [*pages, Mount("/mounted", routes=pages)]
app = Starlette(routes=routes, lifespan=lifespan, middleware=[Middleware(Stamp)])
plain = Starlette(routes=routes, lifespan=lifespan)
