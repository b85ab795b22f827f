"""The pages of tests/asgi/test_frameworks.py with FastAPI."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator
from typing import Annotated, Any

import psycopg
import psycopg_pool
from fastapi import (
    BackgroundTasks,
    Depends,
    FastAPI,
    Form,
    HTTPException,
    Query,
    Request,
    UploadFile,
    WebSocket,
    WebSocketDisconnect,
    WebSocketException,
    status,
)
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel

from tests.support.apps.events import happened, note

state: dict[str, Any] = {}


@contextlib.asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    state["name"] = "fastapi"
    async with psycopg_pool.AsyncConnectionPool(os.environ["DATABASE_URL"], min_size=2, max_size=4, open=False) as pool:
        state["pool"] = pool
        yield
    state.clear()


app = FastAPI(lifespan=lifespan)


class Item(BaseModel):
    name: str
    price: float


async def name() -> str:
    return state["name"]


@app.get("/")
async def hello(of: str = Depends(name)) -> dict[str, str]:
    return {"hello": of}


@app.post("/items", status_code=201)
async def create(item: Item) -> Item:
    return item


@app.get("/thread")
def in_thread() -> dict[str, bool]:
    """Runs in one of anyio's threads."""
    time.sleep(0.05)
    return {"main": threading.current_thread().name == "event-loop"}


@app.get("/missing")
async def missing() -> None:
    raise HTTPException(404, "not here")


async def connection() -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A dependency with `yield`: its connection goes back to the pool after the response."""
    async with state["pool"].connection() as conn:
        yield conn
    note("returned")


@app.get("/database")
async def database(n: int, conn: Annotated[psycopg.AsyncConnection[Any], Depends(connection)]) -> dict[str, int]:
    cursor = await conn.execute("SELECT %s::int + 1, pg_backend_pid(), pg_sleep(0.02)", [n])
    number, pid, _ = await cursor.fetchone()  # type: ignore[misc]
    return {"number": number, "pid": pid}


@app.post("/form")
async def form(note: Annotated[str, Form()], file: UploadFile) -> dict[str, Any]:
    data = await file.read()
    return {
        "note": note,
        "filename": file.filename,
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


@app.get("/sse", response_class=EventSourceResponse)
async def sse(request: Request) -> AsyncIterable[ServerSentEvent]:
    first = int(request.headers.get("last-event-id", "-1")) + 1
    for number in range(first, first + 3):
        yield ServerSentEvent(data={"number": number}, id=str(number))
        await asyncio.sleep(0.01)


@app.get("/ticks", response_class=EventSourceResponse)
async def ticks() -> AsyncIterable[int]:
    """Without an end."""
    for number in itertools.count():
        yield number
        await asyncio.sleep(0.01)


@app.get("/lines")
async def lines(n: int) -> StreamingResponse:
    async def parts() -> AsyncIterator[str]:
        for number in range(n):
            yield f"line {number}\n"

    return StreamingResponse(parts(), media_type="text/plain")


def write_down(text: str) -> None:
    """Runs in one of anyio's threads, after the response."""
    note(text)


@app.post("/notify/{address}")
async def notify(address: str, tasks: BackgroundTasks) -> dict[str, str]:
    tasks.add_task(write_down, f"mail to {address}")
    return {"message": "sent in the background"}


@app.get("/events")
async def told() -> list[str]:
    return happened()


members: list[WebSocket] = []


async def token(token: Annotated[str | None, Query()] = None) -> str:
    if token is None:
        raise WebSocketException(status.WS_1008_POLICY_VIOLATION, "no token")
    return token


@app.websocket("/chat/{name}")
async def chat(websocket: WebSocket, name: str, of: Annotated[str, Depends(token)]) -> None:
    """Sends to everybody what anybody says."""
    await websocket.accept()
    members.append(websocket)
    try:
        while True:
            said = await websocket.receive_text()
            if said == "query":  # while the WebSocket is open
                async with state["pool"].connection() as conn:
                    said = (await (await conn.execute("SELECT 'answer'")).fetchone())[0]
            for member in members:
                await member.send_text(f"{name} ({of}): {said}")
    except WebSocketDisconnect:
        members.remove(websocket)
        for member in members:
            await member.send_text(f"{name} has left")
