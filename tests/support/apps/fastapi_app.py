"""The pages of tests/asgi/test_frameworks.py with FastAPI."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel

state: dict[str, str] = {}


@contextlib.asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    state["name"] = "fastapi"
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
