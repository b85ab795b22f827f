"""WebSockets as an ASGI application and its clients see them, and what neither can make the server do."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import ipaddress
import logging
import queue
import random
import socket
import struct
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import aiohttp
import anyio
import pytest
import websockets.sync.client
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, Protocol, Side

from pkg.asgi.keepalive import WebSocketRules
from pkg.errors import ClientDisconnected
from pkg.http.server import Server
from tests.support.client import SLOWNESS, Connection, wait_for
from tests.support.peer import BINARY, CLOSE, CONT, FIN, PING, PONG, RSV1, TEXT, Peer, close_frame, frame
from tests.support.servers import serving_asgi

Scope = dict[str, Any]
Message = dict[str, Any]


class Application:
    """What it does is in the path.  What it is told at the end, and what it cannot send, goes into `told`."""

    def __init__(self) -> None:
        self.told: queue.Queue[Any] = queue.Queue()
        self.scopes: queue.Queue[Scope] = queue.Queue()
        self.running = 0
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})
            return
        path, *rest = scope["path"][1:].split("/")
        self.scopes.put(scope)
        self.running += 1
        try:
            assert await receive() == {"type": "websocket.connect"}
            await getattr(self, path.replace("-", "_"))(scope, receive, send, *rest)
        finally:
            self.running -= 1

    def hear(self) -> Any:
        return self.told.get(timeout=10 * SLOWNESS)

    async def echo(self, scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            with contextlib.suppress(ClientDisconnected):  # the close frame may have come with the message
                await send(message | {"type": "websocket.send"})
        assert await receive() == message  # it is said again
        with pytest.raises(ClientDisconnected):
            await send({"type": "websocket.send", "text": "too late"})
        with pytest.raises(OSError):
            await send({"type": "websocket.close"})
        self.told.put((message["code"], message["reason"]))

    async def accept(self, scope: Scope, receive: Any, send: Any, name: str = "") -> None:
        await send(
            {"type": "websocket.accept", "subprotocol": name or None, "headers": [(b"X-Mine", b"1"), (b"date", b"now")]}
        )

    async def close(self, scope: Scope, receive: Any, send: Any, code: str = "", reason: str = "") -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "reason": reason} | ({"code": int(code)} if code else {}))
        message = await receive()
        with pytest.raises(Exception, match="after the application had closed"):
            await send({"type": "websocket.send", "text": ""})
        self.told.put((message["type"], message["code"], message["reason"]))

    async def deny(self, scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "websocket.close"})
        self.told.put(await receive())

    async def deny_with(self, scope: Scope, receive: Any, send: Any) -> None:
        headers = [(b"x-why", b"because")]
        await send({"type": "websocket.http.response.start", "status": 451, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": b"not ", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b"here"})
        self.told.put(await receive())

    async def fails(self, scope: Scope, receive: Any, send: Any, when: str) -> None:
        if when == "open":
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": "one"})
        if when == "cancelled":
            task = asyncio.current_task()
            assert task is not None and task.cancel()
            await receive()
        raise ValueError("no such thing")

    async def returns(self, scope: Scope, receive: Any, send: Any, when: str) -> None:
        if when == "open":
            await send({"type": "websocket.accept"})

    async def sends(self, scope: Scope, receive: Any, send: Any, which: str) -> None:
        """What is not allowed, and then it goes on."""
        before, after = MISTAKES[which]
        for message in before:
            await send(message)
        try:
            await send(after)
        except Exception as error:
            self.told.put((type(error).__name__, str(error)))
        if not before:
            await send({"type": "websocket.accept"})

    async def pours(self, scope: Scope, receive: Any, send: Any, size: str) -> None:
        """Sends without end."""
        await send({"type": "websocket.accept"})
        n = 0
        try:
            while True:
                await send({"type": "websocket.send", "bytes": b"x" * int(size)})
                n += 1
        except ClientDisconnected:
            self.told.put((n, await receive()))

    async def sinks(self, scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            pass

    async def listens(self, scope: Scope, receive: Any, send: Any) -> None:
        """Receives when it is told to, by another thread."""
        await send({"type": "websocket.accept"})
        if self.go.is_set():
            self.go = asyncio.Event()  # of all of them
        self.loop = asyncio.get_running_loop()
        self.told.put("ready")
        await self.go.wait()
        n = 0
        while (message := await receive())["type"] == "websocket.receive":
            n += len(message.get("bytes") or message.get("text") or "")
        self.told.put((n, message["code"]))

    async def polls(self, scope: Scope, receive: Any, send: Any) -> None:
        """Receives with a timeout, again and again."""
        await send({"type": "websocket.accept"})
        n = 0
        while True:
            try:
                message = await asyncio.wait_for(receive(), 0.001)
            except TimeoutError:
                n += 1
                if n == 50:
                    await send({"type": "websocket.send", "text": str(len(receive.__self__.waiting))})
            else:
                if message["type"] == "websocket.disconnect":
                    return
                await send(message | {"type": "websocket.send"})

    async def collects(self, scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        found = []
        while (message := await receive())["type"] == "websocket.receive":
            found.append(message.get("text", message.get("bytes")))
        self.told.put((found, message["code"]))

    async def awaits(self, scope: Scope, receive: Any, send: Any, how: str) -> None:
        await send({"type": "websocket.accept"})
        self.told.put(await AWAITED[how][0](receive, send))

    async def hesitates(self, scope: Scope, receive: Any, send: Any) -> None:
        """Neither accepts nor denies it."""
        self.told.put("ready")
        self.told.put(await receive())


GO: Message = {"type": "websocket.send", "text": "go"}  # the client sends "a" and "b" then


async def in_tasks(receive: Any, send: Any) -> Any:
    """Two at a time, each of which gets a message."""
    tasks = [asyncio.create_task(receive()) for _ in range(2)]
    await asyncio.sleep(0)
    states = [inspect.getcoroutinestate(task.get_coro()) for task in tasks]  # type: ignore[arg-type]
    await send(GO)
    return [*states, *(message["text"] for message in await asyncio.gather(*tasks))]


async def shielded(receive: Any, send: Any) -> Any:
    inner = asyncio.ensure_future(receive())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(inner), 0.01)
    await send(GO)
    return [(await inner)["text"], (await asyncio.wait_for(receive(), 60))["text"]]


async def in_groups_of_anyio(receive: Any, send: Any) -> Any:
    found = []

    async def take() -> None:
        found.append((await receive())["text"])

    with anyio.move_on_after(0.01) as scope:
        await receive()
    async with anyio.create_task_group() as group:
        group.start_soon(take)
        group.start_soon(take)
        await send(GO)
    return [scope.cancelled_caught, *found]


async def cancelled(receive: Any, send: Any) -> Any:
    """Before it begins, while it waits, and when a message has just come: nothing is lost, and nothing is left."""
    for turns in (0, 1, 2):
        task = asyncio.create_task(receive())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel("enough")
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await task
    left = len(receive.__self__.waiting)
    task = asyncio.create_task(receive())
    await asyncio.sleep(0)
    await send(GO)
    while not receive.__self__.messages:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return [left, task.cancelled(), (await receive())["text"], (await receive())["text"]]


async def by_hand(receive: Any, send: Any) -> Any:
    """As Python itself uses coroutines."""
    receive().close()
    for error in (KeyError, KeyError("thrown")):
        with pytest.raises(KeyError):
            receive().throw(error)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        receive()
        gc.collect()
    receiving = receive()
    future = receiving.send(None)
    receiving.close()
    with pytest.raises(RuntimeError, match="cannot reuse"):
        receiving.send(None)
    left = future in receive.__self__.waiting
    await send(GO)
    receiving = receive()
    message = await receiving
    with pytest.raises(RuntimeError, match="cannot reuse"):
        await receiving
    return [str(found[0].message), left, message["text"], (await receive())["text"]]


async def inspected(receive: Any, send: Any) -> Any:
    coroutine, sending = receive(), send(GO)
    found = [
        *(asyncio.iscoroutinefunction(function) for function in (receive, send)),
        *(asyncio.iscoroutine(one) and inspect.isawaitable(one) for one in (coroutine, sending)),
        *(asyncio.isfuture(one) for one in (coroutine, sending)),
    ]
    await sending
    return [*found, (await coroutine)["text"]]


AWAITED: dict[str, tuple[Any, Any]] = {
    "tasks": (in_tasks, ["CORO_SUSPENDED"] * 2 + ["a", "b"]),
    "shield": (shielded, ["a", "b"]),
    "anyio": (in_groups_of_anyio, [True, "a", "b"]),
    "cancelled": (cancelled, [0, True, "a", "b"]),
    "hand": (by_hand, ["receive() was never awaited", False, "a", "b"]),
    "inspected": (inspected, [True] * 4 + [False] * 2 + ["a"]),
}

MISTAKES: dict[str, tuple[list[Message], Message]] = {
    "send-first": ([], {"type": "websocket.send", "text": "x"}),
    "unknown": ([], {"type": "http.response.start", "status": 200}),
    "no-type": ([], {}),
    "split": ([], {"type": "websocket.accept", "subprotocol": "a\r\nX-Split: 1"}),
    "split-header": ([], {"type": "websocket.accept", "headers": [(b"x", b"1\r\nY: 2")]}),
    "own-accept": ([], {"type": "websocket.accept", "headers": [(b"Sec-WebSocket-Accept", b"x")]}),
    "str-header": ([], {"type": "websocket.accept", "headers": [("x", "1")]}),
    "accept-twice": ([{"type": "websocket.accept"}], {"type": "websocket.accept"}),
    "nothing": ([{"type": "websocket.accept"}], {"type": "websocket.send"}),
    "str-bytes": ([{"type": "websocket.accept"}], {"type": "websocket.send", "bytes": "x"}),
    "surrogate": ([{"type": "websocket.accept"}], {"type": "websocket.send", "text": "\ud800"}),
    "number": ([{"type": "websocket.accept"}], {"type": "websocket.send", "bytes": 5}),
    "code-1005": ([{"type": "websocket.accept"}], {"type": "websocket.close", "code": 1005}),
    "code-999": ([{"type": "websocket.accept"}], {"type": "websocket.close", "code": 999}),
    "code-text": ([{"type": "websocket.accept"}], {"type": "websocket.close", "code": "x"}),
    "response-late": ([{"type": "websocket.accept"}], {"type": "websocket.http.response.start", "status": 200}),
}

RULES = WebSocketRules(max_size=1 << 20, ping_interval=0.0)


@pytest.fixture(scope="module")
def application() -> Application:
    return Application()


@pytest.fixture(scope="module")
def server(application: Application) -> Iterator[Server]:
    with serving_asgi(application, websockets=RULES) as server:
        yield server


@pytest.fixture(autouse=True)
def _nothing_is_left(application: Application) -> Iterator[None]:
    """What one test does not hear is not for the next."""
    yield
    wait_for(lambda: application.running == 0)
    for said in (application.told, application.scopes):
        with contextlib.suppress(queue.Empty):
            while True:
                said.get_nowait()


@pytest.fixture
def echo(server: Server) -> Iterator[Peer]:
    with Peer(server.server_address, "/echo") as peer:
        assert peer.status == 101
        yield peer


# -------------------------------------------------------------------------- the handshake


def test_the_scope_has_all_keys(server: Server, application: Application) -> None:
    headers = ["Sec-WebSocket-Protocol: a, b", "Sec-WebSocket-Protocol: c", "Origin: http://x"]
    with Peer(server.server_address, "/accept/b?q=1", headers) as peer:
        assert (peer.status, peer.headers["sec-websocket-protocol"], peer.headers["x-mine"]) == (101, "b", "1")
        assert peer.headers["date"] == "now" and peer.headers["x-request-id"]
        assert peer.closed() == (1000, "")
    scope = application.scopes.get()
    assert (b"origin", b"http://x") in scope.pop("headers")
    assert scope.pop("client")[0] == scope.pop("server")[0] == "127.0.0.1"
    assert scope == {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": "/accept/b",
        "raw_path": b"/accept/b",
        "query_string": b"q=1",
        "root_path": "",
        "subprotocols": ["a", "b", "c"],
        "state": {},
        "extensions": {"websocket.http.response": {}},
    }


def test_trusted_proxies_tell_the_scheme(application: Application) -> None:
    with (
        serving_asgi(application, proxies=[ipaddress.ip_network("127.0.0.0/8")], root_path="/v1") as server,
        Peer(server.server_address, "/accept", ["X-Forwarded-Proto: https", "X-Forwarded-For: 203.0.113.5"]) as peer,
    ):
        assert peer.status == 500  # the application does not know the path /v1/accept
    with serving_asgi(application, proxies=[ipaddress.ip_network("127.0.0.0/8")]) as server:
        for scheme in ("https", "wss", "http"):
            with Peer(server.server_address, "/accept", [f"X-Forwarded-Proto: {scheme}"]) as peer:
                assert peer.status == 101
    schemes = []
    with contextlib.suppress(queue.Empty):
        while True:
            schemes.append(application.scopes.get_nowait()["scheme"])
    assert schemes == ["wss", "wss", "wss", "ws"]


KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = f"Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n{KEY}\r\n"


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (f"POST /echo HTTP/1.1\r\n{UPGRADE}Content-Length: 3\r\n\r\nabc", 405),
        (f"GET /echo HTTP/1.1\r\n{UPGRADE}Content-Length: 3\r\n\r\nabc", 400),
        (f"GET /echo HTTP/1.1\r\n{UPGRADE}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (f"GET /echo HTTP/1.0\r\n{UPGRADE}\r\n", 400),
        (f"GET /echo HTTP/1.1\r\n{UPGRADE}\r\n".replace("Version: 13", "Version: 8"), 426),
        (f"GET /echo HTTP/1.1\r\n{UPGRADE}Sec-WebSocket-Version: 13\r\n\r\n", 426),
        (f"GET /echo HTTP/1.1\r\n{UPGRADE}\r\n".replace("dGhl", "!!!!"), 400),
        (f"GET /echo HTTP/1.1\r\n{UPGRADE}\r\n".replace("dGhl", ""), 400),
        (f"GET /echo HTTP/1.1\r\n{UPGRADE}{KEY}\r\n\r\n", 400),
        (f"GET /echo HTTP/1.1\r\n{UPGRADE}\r\n".replace("Upgrade: websocket", "Upgrade: h2c"), 200),
        (f"GET /echo HTTP/1.1\r\n{UPGRADE}\r\n".replace("Connection: Upgrade", "Connection: close"), 200),
        (f"OPTIONS * HTTP/1.1\r\n{UPGRADE}\r\n", 200),
    ],
)
def test_what_is_no_handshake_does_not_switch(server: Server, request_text: str, status: int) -> None:
    with Connection(server.server_address) as c:
        c.send(request_text.encode() + frame(TEXT, b"x") * (status != 200))
        answer = c.receive()
        assert answer.status == status
        assert answer.header("sec-websocket-version") == ("13" if status == 426 else None)
        if status != 200:
            assert answer.closes


def test_a_handshake_behind_other_requests_and_data_behind_it(server: Server) -> None:
    before = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    early = frame(TEXT, b"one") + frame(TEXT, b"two")[:5]
    with Peer(server.server_address, "/echo", first=before, early=early) as peer:
        assert peer.status == 200
        peer.skip()
        assert (peer.status, peer.text()) == (101, "one")
        peer.send(frame(TEXT, b"two")[5:])
        assert peer.text() == "two"


def test_data_in_place_of_http_is_no_request(server: Server) -> None:
    """What looks like one is data, and a violation."""
    with Peer(server.server_address, "/echo", early=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") as peer:
        assert peer.closed()[0] == 1002


def test_denied_by_close(server: Server, application: Application) -> None:
    with Peer(server.server_address, "/deny", early=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") as peer:
        assert (peer.status, peer.body) == (403, b"")
        assert peer.headers["connection"] == "close" and peer.ended()
    assert application.hear() == {"type": "websocket.disconnect", "code": 1006, "reason": ""}


def test_denied_by_a_response(server: Server, application: Application) -> None:
    with Connection(server.server_address) as c:
        c.send(f"GET /deny-with HTTP/1.1\r\n{UPGRADE}\r\n".encode())
        answer = c.receive()
        assert (answer.status, answer.body, answer.header("x-why")) == (451, b"not here", "because")
    assert application.hear()["code"] == 1006


@pytest.mark.parametrize("path", ["/fails/early", "/fails/cancelled", "/returns/early"])
def test_without_an_answer_it_is_500(server: Server, path: str) -> None:
    with Peer(server.server_address, path) as peer:
        assert peer.status == 500


def test_the_client_leaves_before_the_answer(server: Server, application: Application) -> None:
    with socket.create_connection(server.server_address) as c:
        c.sendall(f"GET /hesitates HTTP/1.1\r\n{UPGRADE}\r\n".encode())
        assert application.hear() == "ready"
    assert application.hear() == {"type": "websocket.disconnect", "code": 1006, "reason": ""}


def test_without_the_library_it_is_501(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "pkg.asgi.websocket", None)
    with caplog.at_level(logging.ERROR, "pkg.asgi"), serving_asgi(Application()) as server:
        for _ in range(2):
            with Peer(server.server_address, "/echo") as peer:
                assert (peer.status, peer.headers["connection"]) == (501, "close")
    (record,) = (r for r in caplog.records if r.name == "pkg.asgi")
    assert "pip install" in record.getMessage()


# -------------------------------------------------------------------------- messages


def test_messages_of_all_sizes(echo: Peer) -> None:
    for size in (0, 1, 125, 126, 127, 1014, 1015, 65535, 65536, 1 << 20):
        echo.send(frame(BINARY, b"x" * size))
        assert echo.read() == (FIN | BINARY, b"x" * size)
    for text in ("", "hé", "x" * 125, "é" * 63, "\N{GRINNING FACE}" * 30000, "\0"):
        echo.send(frame(TEXT, text.encode()))
        assert echo.text() == text


def test_a_byte_at_a_time(echo: Peer) -> None:
    for byte in frame(TEXT, b"slow") + frame(PING, b"p") + frame(BINARY, b"y" * 130):
        echo.send(bytes([byte]))
    got = [echo.read() for _ in range(3)]
    got.remove((FIN | PONG, b"p"))  # the server's, before or after the application's
    assert got == [(FIN | TEXT, b"slow"), (FIN | BINARY, b"y" * 130)]


@pytest.mark.parametrize("step", [1, 2, 5, 7, 64, 100_000])
def test_it_does_not_matter_how_frames_are_cut(server: Server, application: Application, step: int) -> None:
    """Whole messages, parts of them, and what only the library reads, in one packet or in many."""
    text, long = "h\u00e9 \N{GRINNING FACE}".encode(), bytes(range(256)) * 2
    frames = [
        frame(TEXT, text),
        frame(BINARY, long, mask=b"\xff\x00\x80\x7f"),
        frame(TEXT, b""),
        frame(TEXT, text[:2], bits=0),
        frame(CONT, text[2:]),
        frame(BINARY, b"x" * 126),
        frame(PONG, b"unasked"),
        frame(BINARY, long[:125]),
        frame(TEXT, text * 9),
    ]
    wanted = [
        (FIN | TEXT, text),
        (FIN | BINARY, long),
        (FIN | TEXT, b""),
        (FIN | TEXT, text),
        (FIN | BINARY, b"x" * 126),
    ]
    wanted += [(FIN | BINARY, long[:125]), (FIN | TEXT, text * 9)]
    sent = b"".join(frames) * 3
    with Peer(server.server_address, "/echo") as peer:
        for at in range(0, len(sent), step):
            peer.send(sent[at : at + step])
        assert [peer.read() for _ in range(3 * len(wanted))] == 3 * wanted
        # The first of these is as it should be, and the second is not; the mask of both is taken off first.
        peer.send(frame(TEXT, text) + frame(TEXT, b"\xff\xfe"))
        while (answer := peer.read())[0] == FIN | TEXT:
            assert answer[1] == text
        assert answer[1][:2] == struct.pack("!H", 1007)
        peer.send(close_frame(1007))
        assert peer.ended()
    assert application.hear()[0] == 1007


def test_many_messages_at_once_keep_their_order(echo: Peer) -> None:
    echo.send(b"".join(frame(TEXT, b"%d" % i) for i in range(1000)))
    assert [echo.text() for i in range(1000)] == [str(i) for i in range(1000)]


def test_a_receive_that_is_cancelled_loses_nothing_and_leaves_nothing(server: Server) -> None:
    with Peer(server.server_address, "/polls") as peer:
        assert peer.text() == "0"
        for i in range(100):
            peer.send(frame(TEXT, b"%d" % i))
            if i % 10 == 0:
                time.sleep(0.002)
        assert [peer.text() for _ in range(100)] == [str(i) for i in range(100)]


@pytest.mark.parametrize("how", AWAITED)
def test_what_an_application_may_do_with_receive(server: Server, application: Application, how: str) -> None:
    with Peer(server.server_address, f"/awaits/{how}") as peer:
        assert peer.text() == "go"
        peer.send(frame(TEXT, b"a") + frame(TEXT, b"b"))
        assert application.hear() == AWAITED[how][1]


def _by_the_library(data: bytes, max_size: int) -> tuple[list[Any], set[int]]:
    """The messages in what a client sends, and the codes with which it may end, without anything of ours."""
    protocol = Protocol(Side.SERVER, state=OPEN, max_size=max_size)
    messages: list[Any] = []
    parts, is_text = b"", False
    protocol.receive_data(data)
    protocol.receive_eof()
    by_itself = protocol.close_rcvd if protocol.parser_exc is None or protocol.close_rcvd else protocol.close_sent
    code = by_itself.code if by_itself is not None else 1006
    for event in protocol.events_received():
        assert isinstance(event, Frame)
        if event.opcode in (Opcode.TEXT, Opcode.BINARY):
            parts, is_text = b"", event.opcode is Opcode.TEXT
        elif event.opcode is not Opcode.CONT:
            continue
        parts += event.data
        if event.fin:
            try:
                messages.append(parts.decode() if is_text else parts)
            except UnicodeDecodeError:  # looked at after all that has come with it has been read
                return messages, {1007, code}
    return messages, {code}


def _some_frame(chance: random.Random) -> bytes:
    """What clients send, and, seldom, what they must not."""
    payload = chance.choice(
        [b"", b"x", "h\u00e9\u20ac\U0001f600".encode(), bytes(125), b"y" * 126, b"z" * 300, b"w" * 66_000]
    )
    mask = chance.randbytes(4)
    what = chance.randrange(40)
    if what == 0:
        return frame(chance.choice([TEXT, BINARY, CONT, PING, CLOSE, 3, 11]), payload, bits=chance.randrange(16) << 4)
    if what == 1:
        return frame(TEXT, payload[: chance.randrange(8)] + bytes([chance.randrange(256)]), mask=mask)
    if what == 2:
        return frame(TEXT, b"unmasked", mask=None)
    if what == 3:  # the length in more bytes than it needs
        return bytes([FIN | BINARY, 0x80 | 126, 0, 5]) + mask + b"abcde"
    if what == 4:
        return (
            bytes([FIN | BINARY, 0x80 | 127])
            + struct.pack("!Q", chance.choice([5, 300, 1 << 62, 1 << 63]))
            + mask
            + b"abcde"
        )
    if what == 5:
        return close_frame(chance.choice([1000, 1001, 1006, 3000, 5000]), b"bye")
    if what < 12:
        cuts = sorted(chance.randrange(len(payload) + 1) for _ in range(2))
        parts = [payload[: cuts[0]], payload[cuts[0] : cuts[1]], payload[cuts[1] :]]
        between = chance.choice(
            [b"", frame(PING, b"p"), frame(PONG), frame(TEXT, b"no") if chance.randrange(9) == 0 else b""]
        )
        begin = frame(chance.choice([TEXT, BINARY]), parts[0], bits=0, mask=mask)
        return begin + frame(CONT, parts[1], bits=0) + between + frame(CONT, parts[2], mask=mask)
    if what < 15:
        return frame(chance.choice([PING, PONG]), b"p" * chance.choice([0, 5, 125]))
    return frame(chance.choice([TEXT, BINARY]), payload, mask=mask)


@pytest.mark.parametrize("seed", range(8))
def test_frames_are_read_as_the_library_reads_them(server: Server, application: Application, seed: int) -> None:
    """Whatever comes, and however it is cut."""
    chance = random.Random(seed)
    for _ in range(12):
        data = b"".join(_some_frame(chance) for _ in range(chance.randrange(1, 12)))
        messages, codes = _by_the_library(data, 1 << 20)
        with Peer(server.server_address, "/collects", early=data[: (at := chance.choice([0, 1, 50]))]) as peer:
            with contextlib.suppress(OSError):  # after a violation it is closed
                while at < len(data):
                    step = chance.choice([1, 2, 6, 7, 13, 130, 1000, 100_000])
                    peer.send(data[at : at + step])
                    at += step
                peer.socket.shutdown(socket.SHUT_WR)
            found, code = application.hear()
            assert found == messages and code in codes, (seed, code, codes, data[:1000])


def test_fragments_with_control_frames_between(echo: Peer) -> None:
    parts = [
        frame(TEXT, "h\u00e9".encode()[:2], bits=0),
        frame(PING, b"1"),
        frame(CONT, b"", bits=0),
        frame(PONG, b"unasked"),
        frame(CONT, "h\u00e9".encode()[2:], bits=0),
        frame(PING, b"x" * 125),
        frame(CONT, b"!"),
    ]
    for part in parts:
        echo.send(part)
    assert echo.read() == (FIN | PONG, b"1")
    assert echo.read() == (FIN | PONG, b"x" * 125)
    assert echo.text() == "hé!"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(TEXT, b"x", mask=None), 1002),
        (frame(TEXT, b"x", bits=FIN | RSV1), 1002),
        (frame(TEXT, b"x", bits=FIN | 0x20), 1002),
        (frame(PING, b"x", bits=FIN | 0x10), 1002),
        (frame(0x3, b"x"), 1002),
        (frame(0x7), 1002),
        (frame(0xB, b"x"), 1002),
        (frame(0xF), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(PING, b"x", bits=0), 1002),
        (frame(CLOSE, b"\x03\xe8", bits=0), 1002),
        (frame(CONT, b"x"), 1002),
        (frame(CONT, b"x", bits=0), 1002),
        (frame(TEXT, b"x", bits=0) + frame(TEXT, b"y"), 1002),
        (frame(TEXT, b"x", bits=0) + frame(BINARY, b"y", bits=0), 1002),
        (frame(TEXT, b"x", bits=0) + close_frame(1000), 1002),
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, b"\xed\xa0\x80"), 1007),
        (frame(TEXT, b"\xf4\x90\x80\x80"), 1007),
        (frame(TEXT, b"\xce", bits=0) + frame(CONT, b"x"), 1007),
        (frame(TEXT, b"\xce"), 1007),
        (frame(BINARY, b"x" * ((1 << 20) + 1))[:14], 1009),
        (frame(BINARY, b"x" * (1 << 19), bits=0) + frame(CONT, b"x" * ((1 << 19) + 1))[:14], 1009),
        (b"\x82\xff" + b"\xff" * 8, 1009),
        (close_frame(1000), 1000),
        (close_frame(), 1005),
        (close_frame(1001, b"away"), 1001),
        (close_frame(3000, b"x" * 123), 3000),
        (close_frame(4999), 4999),
        (close_frame(1012), 1012),
        (frame(CLOSE, b"\x03"), 1002),
        (close_frame(1000, b"\xff"), 1007),
        (close_frame(0), 1002),
        (close_frame(999), 1002),
        (close_frame(1004), 1002),
        (close_frame(1005), 1002),
        (close_frame(1006), 1002),
        (close_frame(1015), 1002),
        (close_frame(2999), 1002),
        (close_frame(5000), 1002),
    ],
)
def test_close_codes(server: Server, application: Application, data: bytes, code: int) -> None:
    """Of the client and of violations: the client hears it, and so does the application, after what came before."""
    with Peer(server.server_address, "/echo", early=frame(TEXT, b"before") + data + frame(TEXT, b"behind")) as peer:
        first, payload = peer.read()
        if first != FIN | CLOSE:
            assert (first, payload) == (FIN | TEXT, b"before")
            first, payload = peer.read()
        assert first == FIN | CLOSE
        assert (struct.unpack("!H", payload[:2])[0] if payload else 1005) == code
        assert peer.ended()
    assert application.hear()[0] == code


def test_the_clients_reason(echo: Peer, application: Application) -> None:
    echo.send(close_frame(4000, "tschüß".encode()))
    assert echo.closed() == (4000, "tschüß") and echo.ended()
    assert application.hear() == (4000, "tschüß")


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_a_broken_connection_is_1006(echo: Peer, application: Application, how: str) -> None:
    echo.send(frame(TEXT, b"x")[:3])
    if how == "reset":
        echo.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        echo.close()
    else:
        echo.socket.shutdown(socket.SHUT_WR)
        assert echo.ended()
    assert application.hear() == (1006, "")


def test_an_error_of_the_server_ends_one_websocket(
    echo: Peer,
    server: Server,
    application: Application,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And not the event loop."""

    def take(self: Any, data: bytes) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("pkg.asgi.websocket.WebSocketExchange._take", take)
    echo.send(frame(PING))
    assert echo.ended()
    assert application.hear() == (1006, "")
    assert "no space left" in caplog.text
    with Connection(server.server_address) as c:
        assert c.request("GET", "/").status == 200


# -------------------------------------------------------------------------- the application's end


@pytest.mark.parametrize(
    ("path", "code", "reason"),
    [("/close", 1000, ""), ("/close/4001/bye", 4001, "bye"), ("/close/1000/" + "é" * 100, 1000, "é" * 61)],
)
def test_the_application_closes(server: Server, application: Application, path: str, code: int, reason: str) -> None:
    path = path.replace("é", "%C3%A9")
    with Peer(server.server_address, path) as peer:
        assert peer.closed() == (code, reason)
        assert application.hear() == ("websocket.disconnect", code, reason)
        peer.send(frame(TEXT, b"under way") + frame(PING) + close_frame(code))
        assert peer.ended()
    wait_for(lambda: server.front is not None and server.front.stats().websockets == 0)


def test_a_client_that_does_not_answer_a_close_frame(
    server: Server, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pkg.asgi.keepalive.CLOSE_TIMEOUT", 0.1)
    monkeypatch.setattr("pkg.asgi.keepalive.TICK", 0.05)
    with serving_asgi(application, websockets=RULES) as own, Peer(own.server_address, "/close") as peer:
        assert peer.closed() == (1000, "") and peer.ended()
    application.hear()


def test_an_exception_is_1011(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with Peer(server.server_address, "/fails/open") as peer:
        assert peer.text() == "one"
        assert peer.closed() == (1011, "")
    assert "no such thing" in caplog.text


def test_returning_is_1000(server: Server) -> None:
    with Peer(server.server_address, "/returns/open") as peer:
        assert peer.closed() == (1000, "")


@pytest.mark.parametrize("which", MISTAKES)
def test_mistakes_of_the_application(server: Server, application: Application, which: str) -> None:
    """They raise ResponseError, nothing of them is sent, and it may go on."""
    with Peer(server.server_address, f"/sends/{which}") as peer:
        assert peer.status == 101
        assert application.hear()[0] == "ResponseError"
        assert peer.closed() == (1000, "")
        assert "x-split" not in peer.headers and "y" not in peer.headers


# -------------------------------------------------------------------------- limits


def test_an_application_that_does_not_receive_makes_its_client_wait(server: Server, application: Application) -> None:
    with Peer(server.server_address, "/listens") as peer:
        assert application.hear() == "ready"
        sent = 0
        data = frame(BINARY, b"x" * 1000) * 50 + frame(BINARY, b"", bits=0) + frame(CONT, b"") * 1
        peer.socket.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while sent < 64 << 20:
                sent += peer.socket.send(data[sent % len(data) :])
        assert sent < 64 << 20  # what the sockets hold, and not more
        assert server.front is not None
        peer.socket.settimeout(10 * SLOWNESS)
        application.loop.call_soon_threadsafe(application.go.set)
        if rest := sent % len(data):
            peer.send(data[rest:])
        peer.send(close_frame(1000))
        assert peer.closed() == (1000, "")
    n, code = application.hear()
    assert (n, code) == ((sent + len(data) - 1) // len(data) * 50000, 1000)


@pytest.mark.parametrize("path", ["/sinks", "/pours/1000"])
def test_a_fast_client_leaves_others_their_turn(server: Server, path: str) -> None:
    """The application never has to wait for a client that sends, or reads, faster than it does the opposite."""
    data = frame(TEXT, b"x" * 1000) * 100
    ends = threading.Event()
    with Peer(server.server_address, path) as peer:

        def keep_on() -> None:
            with contextlib.suppress(OSError):
                while not ends.is_set():
                    if path == "/sinks":
                        peer.send(data)
                    else:
                        peer.socket.recv(1 << 20)

        thread = threading.Thread(target=keep_on)
        thread.start()
        try:
            with Connection(server.server_address) as c:
                for _ in range(5):
                    assert c.request("GET", "/").status == 200
        finally:
            ends.set()
            thread.join(10 * SLOWNESS)


def test_endless_fragments_take_no_memory(echo: Peer) -> None:
    echo.send(frame(TEXT, b"a", bits=0))
    for _ in range(10):
        echo.send(frame(CONT, b"", bits=0) * 3000)
    echo.send(frame(CONT, b"b"))
    assert echo.text() == "ab"


HALVES = {  # the first part of a message of 100,000 bytes, its rest, and whether the application receives
    "a frame": (frame(TEXT, b"a" * 100_000)[:80_000], frame(TEXT, b"a" * 100_000)[80_000:], True),
    "fragments": (
        frame(TEXT, b"a" * 40_000, bits=0) + frame(CONT, b"a" * 40_000, bits=0),
        frame(CONT, b"a" * 20_000),
        True,
    ),
    "not received": (frame(TEXT, b"a" * 100_000) + close_frame(1000), b"", False),
}


@pytest.mark.parametrize(("first", "rest", "receives"), HALVES.values(), ids=HALVES)
def test_messages_count_against_the_size_of_all_buffers(
    application: Application, caplog: pytest.LogCaptureFixture, first: bytes, rest: bytes, receives: bool
) -> None:
    """The one that asks for more than there is gets 1013; the others go on, and nothing is left of any."""
    path = "/echo" if receives else "/listens"
    with (
        serving_asgi(application, websockets=RULES, buffer_size=210_000) as server,
        contextlib.ExitStack() as stack,
    ):
        assert server.front is not None
        stats = server.front.stats
        peers = [stack.enter_context(Peer(server.server_address, path)) for _ in range(3)]
        for n, peer in enumerate(peers[:2]):
            peer.send(first)
            wait_for(lambda n=n: stats().buffered > (n + 1) * 75_000)
        with contextlib.suppress(OSError):
            peers[2].send(first)
        assert peers[2].closed() == (1013, "no buffer is free")
        wait_for(lambda: stats().buffered < 200_000)
        if receives:
            assert application.hear() == (1013, "no buffer is free")
            for peer in peers[:2]:
                peer.send(rest)
                assert peer.text() == "a" * 100_000
            peers[0].send(first)
        else:
            assert peers[0].closed() == peers[1].closed() == (1000, "")
            assert stats().buffered > 150_000  # the application has not received them yet
            for _ in range(3):
                assert application.hear() == "ready"
            application.loop.call_soon_threadsafe(application.go.set)
        for peer in peers[:2]:
            peer.close()
        wait_for(lambda: stats().buffered == 0 and stats().websockets == 0)
    assert sum("closed with 1013" in text for text in caplog.messages) == 1


def test_a_client_that_does_not_read_is_given_up(application: Application) -> None:
    with (
        serving_asgi(application, websockets=RULES, write_timeout=0.5) as server,
        Peer(server.server_address, "/pours/100000", buffer=4096),
    ):
        n, message = application.hear()
    assert n < 200 and message["code"] == 1006


def test_pings_do_not_pile_up_for_a_client_that_does_not_read(server: Server, application: Application) -> None:
    """Behind a message that it has not taken there is one pong (RFC 6455 5.5.3); and the close frame is sent."""
    with Peer(server.server_address, "/pours/8000000", buffer=65536) as peer:
        for i in range(2000):
            peer.send(frame(PING, b"%d" % i))
        pongs = []
        while (got := peer.read())[0] == FIN | BINARY:
            if len(pongs) == 0:
                peer.send(frame(PING, b"last"))
            pongs.append(got)
        assert got[0] == FIN | PONG
        peer.send(close_frame(1000))
        while (got := peer.read())[0] != FIN | CLOSE:
            pass
    assert application.hear()[1]["code"] == 1000


def test_a_silent_client_is_pinged_and_then_given_up(application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pkg.asgi.keepalive.TICK", 0.05)
    rules = WebSocketRules(ping_interval=0.1, ping_timeout=0.25)
    with serving_asgi(application, websockets=rules) as server:
        with Peer(server.server_address, "/echo") as peer:
            for _ in range(3):
                assert peer.read() == (FIN | PING, b"")
                peer.send(frame(PONG))
            assert peer.read() == (FIN | PING, b"")
            assert peer.closed()[0] == 1011 and peer.ended()
        assert application.hear() == (1006, "")


# -------------------------------------------------------------------------- compression

OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"


def packed(data: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-12)
    return (deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]


BOMB = packed(b"\0" * (1800 << 10))  # each half of it is less than max_size


def test_compressed_messages(server: Server) -> None:
    with Peer(server.server_address, "/echo", [OFFER]) as peer:
        assert "server_max_window_bits=12" in peer.headers["sec-websocket-extensions"]
        peer.send(frame(TEXT, packed(b"short"), bits=FIN | RSV1))
        assert peer.text() == "short"
        inflate = zlib.decompressobj(wbits=-12)
        whole = frame(TEXT, packed(b"long" * 1000), bits=FIN | RSV1)
        for data in (
            whole,
            frame(TEXT, packed(b"long" * 1000)[:10], bits=RSV1) + frame(CONT, packed(b"long" * 1000)[10:]),
        ):
            with Peer(server.server_address, "/echo", [OFFER]) as other:
                other.send(data)
                first, payload = other.read()
                assert first == FIN | RSV1 | TEXT and len(payload) < 200
                inflate = zlib.decompressobj(wbits=-12)
                assert inflate.decompress(payload + b"\0\0\xff\xff") == b"long" * 1000


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(BINARY, packed(b"\0" * ((1 << 20) + 1)), bits=FIN | RSV1), 1009),
        (frame(BINARY, BOMB[:1000], bits=RSV1) + frame(CONT, BOMB[1000:]), 1009),
        (frame(BINARY, b"\xff" * 10, bits=FIN | RSV1), 1002),
        (frame(BINARY, b"", bits=RSV1) + frame(CONT, b"", bits=FIN | RSV1), 1002),
        (frame(PING, b"x", bits=FIN | RSV1), 1002),
        (frame(TEXT, packed(b"\xff"), bits=FIN | RSV1), 1007),
    ],
)
def test_what_is_wrong_with_compressed_messages(
    server: Server, application: Application, data: bytes, code: int
) -> None:
    with Peer(server.server_address, "/echo", [OFFER]) as peer:
        peer.send(data)
        assert peer.closed()[0] == code
    assert application.hear()[0] == code


def test_compression_can_be_turned_off(application: Application) -> None:
    with (
        serving_asgi(application, websockets=WebSocketRules(compression=False)) as server,
        Peer(server.server_address, "/echo", [OFFER]) as peer,
    ):
        assert "sec-websocket-extensions" not in peer.headers
        peer.send(frame(TEXT, b"x", bits=FIN | RSV1))
        assert peer.closed()[0] == 1002
    assert application.hear()[0] == 1002


# -------------------------------------------------------------------------- clients of the field


def test_the_websockets_client(server: Server, application: Application) -> None:
    port = server.server_address[1]
    with websockets.sync.client.connect(f"ws://127.0.0.1:{port}/echo", max_size=None) as client:
        for message in ("hé", b"\0", "x" * 100_000, b"y" * 500_000, "z" * 1025):
            client.send(message)
            assert client.recv(10 * SLOWNESS) == message
        client.send(["frag", "ment", "s"])
        assert client.recv(10 * SLOWNESS) == "fragments"
        assert client.ping().wait(10 * SLOWNESS)
        client.close(4000, "bye")
    assert application.hear() == (4000, "bye")
    with websockets.sync.client.connect(f"ws://127.0.0.1:{port}/close/4001/why") as client:
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(10 * SLOWNESS)
        assert closed.value.rcvd is not None and (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "why")
    application.hear()


def test_the_aiohttp_client(server: Server, application: Application) -> None:
    async def talk() -> None:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(url + "/echo", compress=15) as client:
                for text in ("x", "y" * 100_000):
                    await client.send_str(text)
                    assert await client.receive_str() == text
                await client.close(code=4002, message=b"bye")
            with pytest.raises(aiohttp.WSServerHandshakeError) as denied:
                await session.ws_connect(url + "/deny")
            assert denied.value.status == 403

    asyncio.run(talk())
    assert application.hear() == (4002, "bye")
    application.hear()


# -------------------------------------------------------------------------- in the front


def test_it_is_no_request_in_flight(echo: Peer, server: Server) -> None:
    assert server.front is not None
    wait_for(lambda: server.front.stats().websockets == 1)  # type: ignore[union-attr]
    stats = server.front.stats()
    assert (stats.in_flight, stats.queued) == (0, 0) and stats.websockets_opened > 0
    assert server.front.requests() == []
    assert [flight.target for flight in server.front.websockets()] == ["/echo"]


def test_no_time_limit_of_requests_ends_it(application: Application) -> None:
    limits = dict.fromkeys(("idle_timeout", "body_timeout", "header_timeout", "request_timeout", "write_timeout"), 0.3)
    with (
        serving_asgi(application, websockets=RULES, **limits) as server,
        Peer(server.server_address, "/echo", early=frame(TEXT, b"x")[:1]) as peer,
    ):
        time.sleep(0.8)
        peer.send(frame(TEXT, b"x")[1:])
        assert peer.text() == "x"
        peer.send(close_frame())
        assert peer.closed()[0] == 1005
    assert application.hear()[0] == 1005


def test_the_drain_spreads_1001(application: Application) -> None:
    loops: list[Any] = []
    with serving_asgi(application, websockets=RULES, prepare=loops.append) as server, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(Peer(server.server_address, "/echo")) for _ in range(20)]
        at: list[float] = []

        def close(peer: Peer) -> None:
            assert peer.closed() == (1001, "")
            at.append(time.monotonic())
            peer.send(close_frame(1001))
            assert peer.ended()

        threads = [threading.Thread(target=close, args=(peer,)) for peer in peers]
        for thread in threads:
            thread.start()
        begun = time.monotonic()
        loops[0].end_websockets(0.6)
        for thread in threads:
            thread.join(10 * SLOWNESS)
        assert len(at) == 20 and at[-1] - begun > 0.2
        assert sum(t - begun < 0.2 for t in at) < 15
        for _ in peers:
            assert application.hear() == (1001, "")
