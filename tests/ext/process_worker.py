"""A worker process for test_processes.py: process_worker.py AREA BELL THREADS MODE LIMITS"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pkg._core import Front, WSGIHandler
from pkg.asgi.eventloop import EventLoop

# ---------------------------------------------------------------------------- WSGI


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    path, request = environ["PATH_INFO"], current.request
    if path == "/die":
        os._exit(3)
    if path == "/wait-or-repeated" and not request.is_repeated:
        time.sleep(60)
    if path == "/slow":
        time.sleep(0.3)
    if path == "/stage-of-the-drain":
        while front.stage == 0:
            time.sleep(0.002)
    if path == "/die-half-way":
        start_response("200 OK", [("Content-Length", "100000")])
        return die_half_way()
    if path == "/no-end":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return no_end()
    answers = {
        "/hello": lambda: b"hello",
        "/echo": lambda: environ["wsgi.input"].read(),
        "/big": lambda: b"x" * (1 << 20),
        "/wait-or-repeated": lambda: b"repeated",
        "/slow": lambda: b"slow",
        "/stage-of-the-drain": lambda: b"%d" % front.stage,
    }
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answers[path]()]


def die_half_way() -> Iterator[bytes]:
    yield b"half"
    time.sleep(0.1)
    os._exit(3)


def no_end() -> Iterator[bytes]:
    try:
        while True:
            yield b"x" * 1000
            time.sleep(0.002)
    finally:
        print("its client has left", flush=True)


def before(request: Any) -> None:
    current.request = request


def failed(request: Any, client_address: Any) -> None:
    sys.excepthook(*sys.exc_info())


# ---------------------------------------------------------------------------- ASGI


async def asgi(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    if scope["type"] == "websocket":
        await websocket(receive, send)
    elif scope["type"] == "http":
        await http(scope, receive, send)


async def http(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    path = scope["path"]
    if path == "/until-left":
        while (await receive())["type"] != "http.disconnect":
            pass
        print("its client has left", flush=True)
        return
    if path == "/block":
        time.sleep(0.5)
    if path == "/slow":
        await asyncio.sleep(5)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if path == "/echo":  # as it comes
        more = True
        while more:
            message = await receive()
            more = message["more_body"]
            await send({"type": "http.response.body", "body": message["body"], "more_body": True})
    if path == "/big":
        for _ in range(64):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
    body = b"hello" if path == "/hello" else b""
    await send({"type": "http.response.body", "body": body})


async def websocket(receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"].upper()})


# ----------------------------------------------------------------------- the process

current = threading.local()
area, bell, n_threads = map(int, sys.argv[1:4])
mode, limits = sys.argv[4], json.loads(sys.argv[5])
front = Front.remote(area, bell, **limits)
os.close(area)
front.renew(3, 100)
if mode == "threads":
    handler = WSGIHandler(app, {})
    for _ in range(n_threads):
        threading.Thread(target=front.work, args=(handler, failed, None, None, before), daemon=True).start()
if mode == "tasks":
    eventloop = EventLoop(
        asgi, front, addresses=[("localhost", 80)], failed=failed, new_loop=asyncio.SelectorEventLoop, lifespan="off"
    )
    eventloop.start()
    eventloop.startup()
    eventloop.open()
print("ready", flush=True)
front.run()
if mode == "tasks":
    print("slow turns:", front.turns()[0][-8:], flush=True)
