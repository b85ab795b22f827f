"""HTTP as an ASGI application sees it: scope, receive and send, and what an application cannot make the server do."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import ipaddress
import logging
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.support.client import SLOWNESS, Connection, get, wait_for
from tests.support.servers import serving_asgi

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

START: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}


async def respond(send: Send, body: bytes = b"", **start: Any) -> None:
    await send(START | start)
    await send({"type": "http.response.body", "body": body})


async def read(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        body += message["body"]
        more = message["more_body"]
    return body


def sends(*messages: dict[str, Any]) -> Any:
    """An application that sends these messages, whatever it is asked."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


def body(data: Any = b"", more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


# ------------------------------------------------------------------------------ scope


def scope_of(request: bytes, **options: Any) -> Scope:
    """What the application gets for these bytes."""
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await respond(send)

    with serving_asgi(app, **options) as server, Connection(server.server_address) as c:
        c.send(request)
        assert c.receive().status == 200
    return scopes[0]


def test_the_scope_has_all_keys() -> None:
    scope = scope_of(b"GET /a%20b/%C3%A9?q=%41 HTTP/1.1\r\nHost: x\r\nX-Name: 1\r\nx-NAME:2\r\nSome_Name: 3\r\n\r\n")
    client, server = scope.pop("client"), scope.pop("server")
    assert client[0] == server[0] == "127.0.0.1" and isinstance(client[1], int) and isinstance(server[1], int)
    assert scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/a b/é",
        "raw_path": b"/a%20b/%C3%A9",
        "query_string": b"q=%41",
        "root_path": "",
        "headers": [(b"host", b"x"), (b"x-name", b"1"), (b"x-name", b"2"), (b"some_name", b"3")],
        "state": {},
        "extensions": {},
    }


@pytest.mark.parametrize(
    ("target", "path", "raw_path"),
    [
        ("/", "/", b"/"),
        ("/%zz%4", "/%zz%4", b"/%zz%4"),
        ("/%ff", "/\ufffd", b"/%ff"),
        ("/a%2Fb", "/a/b", b"/a%2Fb"),
        ("http://y", "/", b"/"),
        ("http://y/p?q", "/p", b"/p"),
    ],
)
def test_paths(target: str, path: str, raw_path: bytes) -> None:
    scope = scope_of(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert (scope["path"], scope["raw_path"]) == (path, raw_path)
    host = b"y" if target.startswith("http:") else b"x"  # RFC 9112 3.2.2
    assert [value for name, value in scope["headers"] if name == b"host"] == [host]


@pytest.mark.parametrize(
    ("target", "path"), [("/v1/x", "/v1/x"), ("/x", "/v1/x"), ("/v1", "/v1"), ("/v10", "/v1/v10"), ("/", "/v1/")]
)
def test_the_root_path_is_part_of_the_path(target: str, path: str) -> None:
    """Whether the proxy has removed it or not."""
    scope = scope_of(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), root_path="/v1")
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == ("/v1", path, path.encode())


def test_trusted_proxies_tell_client_and_scheme() -> None:
    request = b"GET / HTTP/1.0\r\nX-Forwarded-For: 203.0.113.5\r\nX-Forwarded-Proto: https\r\n\r\n"
    scope = scope_of(request, proxies=[ipaddress.ip_network("127.0.0.0/8")])
    assert (scope["client"], scope["scheme"], scope["http_version"]) == (("203.0.113.5", 0), "https", "1.0")


def test_what_is_mutable_in_a_scope_belongs_to_one_request() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen = [key for key in ("asgi", "headers", "state", "extensions") if "mine" in scope[key]]
        for key in ("asgi", "state", "extensions"):
            scope[key]["mine"] = True
        scope["headers"].append("mine")
        scope["mine"] = True
        await respond(send, repr(seen).encode())

    with serving_asgi(app) as server, Connection(server.server_address) as c:
        for _ in range(3):
            assert c.request("GET", "/").body == b"[]"


# ---------------------------------------------------------------------------- receive


def test_a_body_that_has_arrived_is_one_message() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, repr(await receive()).encode())

    with serving_asgi(app) as server, Connection(server.server_address) as c:
        for data in (b"", b"hello", b"x" * 1000):
            expected = repr({"type": "http.request", "body": data, "more_body": False}).encode()
            assert c.request("POST", "/", body=data).body == expected


@pytest.mark.parametrize("framing", ["Content-Length: 6", "Transfer-Encoding: chunked"])
def test_a_body_comes_as_it_is_sent(framing: str) -> None:
    """The client waits for the response to each part before it sends the next one."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        more = True
        while more:
            message = await receive()
            more = message["more_body"]
            await send(body(b"<" + message["body"] + b">", more))

    chunked = framing.startswith("Transfer")
    with serving_asgi(app) as server, Connection(server.server_address) as c:
        c.send(f"POST / HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode())
        for part in (b"ab", b"cd", b"ef"):
            c.send(b"2\r\n" + part + b"\r\n" if chunked else part)
            wait_for(lambda part=part: c._fill() and b"<" + part + b">" in c._buffer)
        if chunked:
            c.send(b"0\r\n\r\n")
        assert c.receive().body == (b"<ab><cd><ef><>" if chunked else b"<ab><cd><ef>")


def test_a_long_body() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"%d" % len(await read(receive)))

    with serving_asgi(app) as server, Connection(server.server_address) as c:
        for _ in range(3):
            assert c.request("POST", "/", body=b"x" * 5_000_000).body == b"5000000"
        assert server.front is not None and server.front.stats().spooled == 0


def test_continue_is_sent_with_the_first_receive() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"no" if scope["path"] == "/refuse" else await read(receive))

    with serving_asgi(app) as server, Connection(server.server_address) as c:
        c.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert b"100 Continue" in c.socket.recv(100)
        c.send(b"abc")
        assert c.receive().body == b"abc"
        c.send(b"POST /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        answer = c.receive()
        assert (answer.body, answer.interim, answer.closes) == (b"no", [], True)


UNREAD = {  # head, what has arrived when the response is sent, the rest of the body
    "nothing of it": ("Content-Length: 10", b"", b"GET / HTTP"),
    "a part of it": ("Content-Length: 10", b"GET / ", b"HTTP"),
    "as much as is read away": ("Content-Length: 65536", b"", b"x" * 65536),
    "in chunks": ("Transfer-Encoding: chunked", b"3\r\nGET\r\n", b"2;x=y\r\n /\r\n0\r\nA: b\r\n\r\n"),
    "in many chunks": ("Transfer-Encoding: chunked", b"", (b"1000\r\n" + b"x" * 0x1000 + b"\r\n") * 50 + b"0\r\n\r\n"),
    "only the last chunk": ("Transfer-Encoding: chunked", b"3\r\nGET\r\n", b"0\r\n\r\n"),
}


def test_the_end_does_not_wait_for_what_is_read_away() -> None:
    """However fast it comes, as nobody needs it."""
    with (
        serving_asgi(refuses, body_timeout=0.3, min_body_rate=1) as server,
        Connection(server.server_address) as c,
    ):
        c.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert not c.receive().closes
        begun = time.monotonic()
        while time.monotonic() < begun + 0.7:  # twice the time in which it has to bring something
            c.send(b"1\r\nx\r\n")
            time.sleep(0.02)
        server.close_listener()
        with contextlib.suppress(OSError):
            while time.monotonic() < begun + 10 * SLOWNESS and not server.join(0.0):
                c.send(b"1\r\nx\r\n")
                time.sleep(0.02)
        assert server.join(1.0 * SLOWNESS) and time.monotonic() < begun + 10 * SLOWNESS


async def refuses(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers a POST without a look at its body, or after the first part of it."""
    if scope["path"] == "/after":
        await receive()
    await respond(send, scope["method"].encode(), status=401)


@pytest.mark.parametrize(("framing", "first", "rest"), UNREAD.values(), ids=UNREAD)
def test_a_short_body_that_is_left_unread_does_not_cost_the_connection(framing: str, first: bytes, rest: bytes) -> None:
    with serving_asgi(refuses) as server, Connection(server.server_address) as c:
        for target in ("/", "/after" if first else "/", "/"):
            c.send(f"POST {target} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode() + first)
            answer = c.receive()
            assert (answer.status, answer.closes, answer.body) == (401, False, b"POST")
            for part in in_parts(rest):
                c.send(part)
            assert c.request("GET", "/").body == b"GET"


def in_parts(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))] if len(data) < 100 else [data[:30000], data[30000:]]


def test_the_next_request_may_come_with_the_rest_of_a_body() -> None:
    with serving_asgi(refuses) as server, Connection(server.server_address) as c:
        c.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1234")
        assert c.receive().body == b"POST"
        c.send(b"56789PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n1")
        assert c.receive().body == b"PUT"
        c.send(b"2GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert c.receive().body == b"GET"
    assert server.front is None or server.front.stats().buffered == 0


@pytest.mark.parametrize(
    "head",
    ["Content-Length: 65537", "Content-Length: 3\r\nExpect: 100-continue", "Content-Length: 3\r\nConnection: close"],
)
def test_a_body_that_is_long_or_may_not_come_costs_the_connection(head: str) -> None:
    with serving_asgi(refuses) as server, Connection(server.server_address) as c:
        c.send(f"POST / HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
        answer = c.receive()
        assert (answer.status, answer.closes, answer.interim) == (401, True, [])
        assert c.is_closed()


@pytest.mark.parametrize("rest", [b"20000\r\n" + b"x" * 0x20000, b"zz\r\n", b""], ids=["long", "malformed", "none"])
def test_what_follows_a_response_is_not_read_away_without_end(rest: bytes) -> None:
    with (
        serving_asgi(refuses, body_timeout=0.3, max_body_size=100_000) as server,
        Connection(server.server_address) as c,
    ):
        c.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert not c.receive().closes
        c.send(rest)
        assert c.is_closed()


@pytest.mark.parametrize(
    ("rest", "status"), [(b"zz\r\n", 400), (b"200000\r\n" + b"x" * 0x200000 + b"\r\n", 413), (b"", 408)]
)
def test_a_body_that_is_not_what_it_should_be(rest: bytes, status: int) -> None:
    """The client is told, and for the application it has left."""
    messages: list[Any] = []
    called = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        called.set()
        while not messages or messages[-1]["type"] == "http.request":
            messages.append(await receive())
        with pytest.raises(OSError):
            await respond(send)
        messages.append("raised")

    with (
        serving_asgi(app, body_timeout=0.2, max_body_size=1_000_000) as server,
        Connection(server.server_address) as c,
    ):
        c.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert called.wait(10 * SLOWNESS)  # what comes with the head is refused by the front
        c.send(rest)
        answer = c.receive()
        assert (answer.status, answer.closes) == (status, True)
        wait_for(lambda: messages and messages[-1] == "raised")
    assert messages[-2] == {"type": "http.disconnect"}


def test_after_the_response_there_is_only_the_disconnect() -> None:
    messages: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        waits = asyncio.create_task(until_left(receive))
        await asyncio.sleep(0)
        await respond(send)
        await waits
        messages.append(await receive())

    async def until_left(receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    with serving_asgi(app) as server, Connection(server.server_address) as c:
        assert c.request("GET", "/").status == 200
        wait_for(lambda: messages == [{"type": "http.disconnect"}])
        assert c.request("GET", "/").status == 200


# ------------------------------------------------------------------------- disconnect


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_the_application_is_told_at_once_that_the_client_has_left(how: str) -> None:
    """Also while it waits for something else, and before it has begun to wait."""
    left: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/late":
            await asyncio.sleep(0.1)

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            left.append(time.monotonic())

        await asyncio.gather(watch(), asyncio.sleep(0.2))

    with serving_asgi(app) as server:
        for target in ("/", "/late"):
            left.clear()
            c = Connection(server.server_address)
            c.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            time.sleep(0.05)
            if how == "reset":
                c.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            began = time.monotonic()
            c.close()
            wait_for(lambda: left)
            assert left[0] - began < 0.15 * SLOWNESS


def test_asking_again_and_again_whether_the_client_has_left_takes_no_memory() -> None:
    """As frameworks do: receive() is cancelled if it does not return at once."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        for _ in range(100):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(receive(), 0.0001)
        await respond(send, str(len(receive.__self__.waiting)).encode())  # type: ignore[attr-defined]

    with serving_asgi(app) as server:
        assert get(server.server_address, "/").body == b"0"


def test_sending_to_a_client_that_has_left_raises_oserror() -> None:
    errors: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        try:
            while True:
                await send(body(b"x" * 10_000, True))
                await asyncio.sleep(0)
        except OSError as error:
            errors.append(error)
            with pytest.raises(OSError):
                await send(body(b"x", True))
            raise

    with serving_asgi(app) as server:
        c = Connection(server.server_address)
        c.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        c.socket.recv(1000)
        c.close()
        wait_for(lambda: errors)


def test_a_half_closed_client_gets_its_response() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.05)
        await respond(send, await read(receive))

    with serving_asgi(app) as server, Connection(server.server_address) as c:
        c.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
        c.socket.shutdown(socket.SHUT_WR)
        assert c.receive().body == b"abc"
        assert c.is_closed()


# ------------------------------------------------------------------------------- send


def test_a_response_of_unknown_length_is_chunked() -> None:
    app = sends(START, body(b"a", True), body(b"", True), body(b"bc", True), body())
    with serving_asgi(app) as server, Connection(server.server_address) as c:
        for _ in range(3):
            answer = c.request("GET", "/")
            assert (answer.body, answer.header("transfer-encoding")) == (b"abc", "chunked")
        answer = c.request("GET", "/", version="1.0")
        assert (answer.body, answer.header("transfer-encoding"), answer.closes) == (b"abc", None, True)


def test_a_response_in_one_part_has_a_length() -> None:
    with serving_asgi(sends(START, body(b"abc"))) as server, Connection(server.server_address) as c:
        answer = c.request("GET", "/")
        assert (answer.status, answer.reason, answer.body) == (200, "OK", b"abc")
        assert answer.header("content-length") == "3" and answer.header("content-type") == "text/plain"
        head = c.request("HEAD", "/")
        assert head.header("content-length") == "3"
        assert c.request("GET", "/").body == b"abc"


@pytest.mark.parametrize("status", [204, 304])
def test_a_response_without_content(status: int) -> None:
    app = sends({"type": "http.response.start", "status": status}, body(b"abc"))
    with serving_asgi(app) as server, Connection(server.server_address) as c:
        for _ in range(2):
            assert c.request("GET", "/").status == status


@pytest.mark.parametrize("data", [bytearray(b"abc"), memoryview(b"abc")])
def test_a_body_may_be_any_buffer(data: Any) -> None:
    with serving_asgi(sends(START, body(data))) as server:
        assert get(server.server_address, "/").body == b"abc"


def test_keys_that_may_be_missing() -> None:
    app = sends({"type": "http.response.start", "status": 299}, {"type": "http.response.body"})
    with serving_asgi(app) as server:
        answer = get(server.server_address, "/")
        assert (answer.status, answer.reason, answer.body) == (299, "", b"")


def headers(*pairs: Any) -> dict[str, Any]:
    return {"type": "http.response.start", "status": 200, "headers": list(pairs)}


REFUSED = {
    "no start": [body(b"x")],
    "two starts": [START, START],
    "no message": [],
    "only a start": [START],
    "an unknown message": [{"type": "websocket.accept"}],
    "no type": [{}],
    "a status that is none": [{"type": "http.response.start", "status": "200"}, body()],
    "an interim status": [{"type": "http.response.start", "status": 100}, body()],
    "no status": [{"type": "http.response.start"}, body()],
    "text for a body": [START, body("x")],
    "a header of text": [headers(("a", "b")), body()],
    "a line in a header": [headers((b"a", b"b\r\nc: d")), body()],
    "a line in a name": [headers((b"a\r\nb", b"c")), body()],
    "an empty name": [headers((b"", b"c")), body()],
    "two lengths": [headers((b"content-length", b"1"), (b"content-length", b"2")), body(b"x")],
    "a length that is none": [headers((b"content-length", b"+1")), body(b"x")],
    "a body longer than its length": [headers((b"content-length", b"1")), body(b"xy")],
    "a body shorter than its length": [headers((b"content-length", b"3")), body(b"xy")],
}


@pytest.mark.parametrize("messages", REFUSED.values(), ids=REFUSED)
def test_what_http_does_not_allow_is_500(messages: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    with serving_asgi(sends(*messages)) as server, Connection(server.server_address) as c:
        answer = c.request("GET", "/")
        assert (answer.status, answer.body) == (500, b"Internal Server Error\n")
    assert any("invalid response" in record.getMessage() for record in caplog.records)


BROKEN_OFF = {
    "no end": [START, body(b"x", True)],
    "more than the length": [headers((b"content-length", b"3")), body(b"xy", True), body(b"zz")],
    "less than the length": [headers((b"content-length", b"3")), body(b"x", True), body(b"y")],
    "a start in the body": [START, body(b"x", True), START],
}


@pytest.mark.parametrize("messages", BROKEN_OFF.values(), ids=BROKEN_OFF)
def test_a_response_that_goes_wrong_later_is_broken_off(messages: list[Any]) -> None:
    with (
        serving_asgi(sends(*messages)) as server,
        Connection(server.server_address) as c,
        pytest.raises((EOFError, ConnectionResetError)),
    ):
        c.request("GET", "/")


def test_a_message_after_the_end_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    app = sends(START, body(b"abc"), body(b"HTTP/1.1 200 OK\r\n\r\n"))
    with serving_asgi(app) as server, Connection(server.server_address) as c:
        for _ in range(3):
            assert c.request("GET", "/").body == b"abc"
    assert any("after the end of the response" in record.getMessage() for record in caplog.records)


def test_the_server_frames_the_body_whatever_the_application_says() -> None:
    app = sends(headers((b"transfer-encoding", b"chunked"), (b"connection", b"keep-alive")), body(b"abc"))
    with serving_asgi(app) as server, Connection(server.server_address) as c:
        for _ in range(2):
            answer = c.request("GET", "/")
            assert (answer.body, answer.header("content-length"), answer.header("transfer-encoding")) == (
                b"abc",
                "3",
                None,
            )
    app = sends(headers((b"connection", b"close")), body())
    with serving_asgi(app) as server, Connection(server.server_address) as c:
        assert c.request("GET", "/").closes and c.is_closed()


def test_sending_waits_for_a_slow_reader_and_nobody_else_does() -> None:
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        if scope["path"] == "/":
            await respond(send)
            return
        await send(START)
        for _ in range(32):
            await send(body(b"x" * 1_000_000, True))
            sent += 1
        await send(body())

    with serving_asgi(app) as server, Connection(server.server_address) as slow:
        slow.send(b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
        slow.socket.recv(10, socket.MSG_PEEK)
        for _ in range(20):
            assert get(server.server_address, "/").status == 200
        before = sent
        assert before < 30
        time.sleep(0.1)
        assert sent == before
        assert len(slow.receive().body) == 32_000_000


def test_a_rest_that_fits_into_its_buffer_does_not_hold_the_task() -> None:
    ended = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"x" * 16_000_000)
        ended.set()

    with (
        serving_asgi(app, response_buffer_size=32_000_000, buffer_size=64_000_000) as server,
        Connection(server.server_address) as c,
    ):
        c.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert ended.wait(10 * SLOWNESS)
        assert len(c.receive().body) == 16_000_000


def test_readers_that_stop_are_given_up_but_not_too_soon() -> None:
    waited: list[float] = []
    long = b"x" * 20_000_000

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        began = time.monotonic()
        with pytest.raises(OSError):
            await respond(send, long)
        waited.append(time.monotonic() - began)

    with (
        serving_asgi(app, write_timeout=0.4) as server,
        Connection(server.server_address) as first,
        Connection(server.server_address) as second,
    ):
        first.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.15)  # readers are looked at together
        second.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: len(waited) == 2)
        assert min(waited) >= 0.4
        for c in (first, second):
            with pytest.raises((EOFError, ConnectionResetError)):
                c.receive()


# ------------------------------------------------------------------------------ tasks


def test_each_request_is_a_task_with_a_context_of_its_own() -> None:
    seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")
    tasks: set[Any] = set()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        before = seen.get()
        seen.set(scope["path"])
        tasks.add(asyncio.current_task())
        async with asyncio.timeout(5):
            await asyncio.sleep(0.01)
        assert seen.get() == scope["path"]
        await respond(send, before.encode())

    with serving_asgi(app) as server, Connection(server.server_address) as c:
        for i in range(5):
            assert c.request("GET", f"/{i}").body == b"nothing"
    assert len(tasks) == 5


def test_many_requests_run_at_a_time() -> None:
    running = most = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.2)
        running -= 1
        await respond(send, b"x")

    with serving_asgi(app) as server:
        connections = [Connection(server.server_address) for _ in range(100)]
        for c in connections:
            c.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        for c in connections:
            assert c.receive().body == b"x"
            c.close()
    assert most == 100


def test_a_background_task_does_not_hold_the_connection() -> None:
    """What the application does after its response is its own business."""
    done = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"x")
        if scope["path"] == "/background":
            await asyncio.sleep(0.3)
            done.set()

    with serving_asgi(app) as server, Connection(server.server_address) as c:
        c.request("GET", "/background")
        for _ in range(3):
            assert c.request("GET", "/").body == b"x"
        assert not done.is_set()
        assert done.wait(10)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
def test_what_the_application_raises_is_500(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/":
            raise error
        await respond(send)

    with serving_asgi(app) as server:
        assert get(server.server_address, "/").status == 500
        assert get(server.server_address, "/x").status == 200
    assert any(record.exc_info for record in caplog.records)


def test_pipelined_requests_are_answered_in_order() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.002)
        await respond(send, scope["path"].encode() + await read(receive))

    with serving_asgi(app) as server, Connection(server.server_address) as c:
        c.send(
            b"".join(
                b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab" % i
                if i % 2
                else b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % i
                for i in range(20)
            )
        )
        for i in range(20):
            assert c.receive().body == b"/%d" % i + b"ab" * (i % 2)


def test_threads_and_other_descriptors_work_beside_the_front() -> None:
    """run_in_executor() wakes the event loop through its own descriptor, whoever leads the front."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, functools.partial(time.sleep, 0.001))
        _, writer = await asyncio.open_connection(*scope["server"])
        writer.close()
        await writer.wait_closed()
        await respond(send, b"x")

    with serving_asgi(app) as server, Connection(server.server_address) as c:
        began = time.monotonic()
        for _ in range(50):
            assert c.request("GET", "/").body == b"x"
        assert time.monotonic() - began < 5 * SLOWNESS


def test_the_log_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    """A client that leaves is no error of the application."""
    done = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await receive()
        done.set()

    with serving_asgi(app) as server:
        c = Connection(server.server_address)
        c.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        c.close()
        assert done.wait(10)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
