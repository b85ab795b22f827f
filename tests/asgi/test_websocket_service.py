"""WebSockets in the whole service, with the frameworks that most applications use: records, metrics, the drain."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import websockets.sync.client
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.client import SLOWNESS, get, wait_for
from tests.support.peer import Peer
from tests.support.ports import free_port
from tests.support.processes import ask, running

APPLICATION = """
import asyncio, sys
from fastapi import Depends, FastAPI, WebSocket, WebSocketDisconnect
from starlette.applications import Starlette
from starlette.endpoints import WebSocketEndpoint
from starlette.routing import Mount, WebSocketRoute

class Echo(WebSocketEndpoint):
    encoding = "text"

    async def on_connect(self, websocket):
        await websocket.accept("b" if "b" in websocket.scope["subprotocols"] else None)

    async def on_receive(self, websocket, data):
        await websocket.send_text(data)

    async def on_disconnect(self, websocket, close_code):
        print("left", close_code, file=sys.stderr, flush=True)

async def denies(websocket):
    await websocket.close(4403)

async def raises(websocket):
    await websocket.accept()
    raise ValueError("no such thing")

app = FastAPI()
app.mount("/starlette", Starlette(routes=[
    WebSocketRoute("/echo", Echo), WebSocketRoute("/denies", denies), WebSocketRoute("/raises", raises),
]))

async def named(name: str):
    yield name.upper()

@app.websocket("/chat/{name}")
async def chat(websocket: WebSocket, who: str = Depends(named)):
    await websocket.accept()
    try:
        while True:
            message = await websocket.receive_json()
            await websocket.send_json({"who": who, "said": message["say"]})
    except WebSocketDisconnect as left:
        print(who, "left", left.code, file=sys.stderr, flush=True)

@app.websocket("/ticks")
async def ticks(websocket: WebSocket):
    await websocket.accept()
    n = 0
    while True:
        await websocket.send_text(str(n))
        n += 1
        await asyncio.sleep(0.01)

@app.get("/")
def index():
    return "here"
"""


def url(process: Any, path: str) -> str:
    return f"ws://127.0.0.1:{process.address[1]}{path}"


def test_starlette_and_fastapi_and_their_end(tmp_path: Path) -> None:
    admin = free_port()
    drain = {"PKG_DRAIN_DELAY": "0", "PKG_DRAIN_TIMEOUT": "4"}
    with (
        running(tmp_path, APPLICATION, PKG_ADMIN=f"127.0.0.1:{admin}", **drain) as process,
        contextlib.ExitStack() as stack,
    ):

        def connect(path: str, **options: Any) -> Any:
            return stack.enter_context(websockets.sync.client.connect(url(process, path), **options))

        client = connect("/starlette/echo", subprotocols=["a", "b"])
        assert client.subprotocol == "b"
        for text in ("x", "é" * 10_000):
            client.send(text)
            assert client.recv(10 * SLOWNESS) == text
        client.close(4000)
        client = connect("/chat/bo")
        client.send(json.dumps({"say": "hi"}))
        assert json.loads(client.recv(10 * SLOWNESS)) == {"who": "BO", "said": "hi"}
        client.close()
        for path in ("/starlette/denies", "/nowhere"):
            with pytest.raises(InvalidStatus) as denied:
                connect(path)
            assert denied.value.response.status_code == 403
        client = connect("/starlette/raises")
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(10 * SLOWNESS)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1011
        wait_for(lambda: {"left 4000", "BO left 1000"} <= set(process.errors().splitlines()))
        wait_for(lambda: any(line.get("url.path") == "/starlette/echo" for line in process.lines()))
        (record,) = (line for line in process.lines() if line.get("url.path") == "/starlette/echo")
        assert (record["http.response.status_code"], len(record["request_id"])) == (101, 32)
        assert record["duration"] > 0.0 and record["http.request.body.size"] > 0

        clients = [connect(f"/chat/{i}") for i in range(10)] + [connect("/ticks")]
        page = ask(("127.0.0.1", admin), "/metrics")[2]
        assert "pkg_websockets 11\n" in page and "pkg_websockets_opened_total 14" in page
        assert "http_server_active_requests 0\n" in page
        assert re.search("/chat/3 +event-loop +waiting, WebSocket", ask(("127.0.0.1", admin), "/debug/requests")[2])
        page = ask(("127.0.0.1", admin), "/statusz")[2]
        assert re.search(r"Requests in flight\n +none\n", page)
        assert re.search(r"WebSockets open +11, the oldest for [0-9.]+ m?s\n +WebSockets opened +14\n", page)

        begun = time.monotonic()
        codes: list[tuple[float, int]] = []

        def hear(client: Any) -> None:
            try:
                while True:
                    client.recv(10 * SLOWNESS)
            except ConnectionClosed as closed:
                assert closed.rcvd is not None
                codes.append((time.monotonic() - begun, closed.rcvd.code))

        threads = [threading.Thread(target=hear, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        assert process.stop(signal.SIGTERM, 15 * SLOWNESS) == 0
        for thread in threads:
            thread.join(10 * SLOWNESS)
        assert [code for _, code in codes] == [1001] * 11
        assert max(codes)[0] - min(codes)[0] > 0.5  # of the first 2 s
        assert {f"{i} left 1001" for i in range(10)} <= set(process.errors().splitlines())
        assert any("0 aborted" in text for text in process.messages())
        assert not any(line["severity"] == "ERROR" and "ticks" in line["message"] for line in process.lines())


MISSING = "raise ModuleNotFoundError(\"No module named 'websockets'\", name='websockets')\n"


def test_without_the_library(tmp_path: Path) -> None:
    source = """
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body"})
"""
    (tmp_path / "websockets.py").write_text(MISSING)
    with running(tmp_path, source, PKG_ADMIN="off") as process:
        for _ in range(3):
            with Peer(process.address) as peer:
                assert peer.status == 501
        assert get(process.address, "/").status == 200
        process.await_message(r"pip install 'pkg-service\[websockets\]'")
        assert sum("WebSocket" in text for text in process.messages()) == 1
