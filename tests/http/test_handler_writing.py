"""How handler classes write: their bases called by name, the head's buffer, the client's socket, every kind of buffer.

What http.server does with each class is the oracle: the same requests go to both, and what came back is compared.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import http.client
import io
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pkg.http.handler import RequestHandler
from pkg.http.server import Server
from tests.support.client import Connection, get, wait_for
from tests.support.processes import ask, running
from tests.support.servers import serving

OURS_TO_SAY = {"server", "date", "connection", "transfer-encoding"}


@contextlib.contextmanager
def stock(handler: Any) -> Iterator[tuple[str, int]]:
    """The oracle: the standard library's server with the same class."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server.server_address[:2]  # type: ignore[misc]
        finally:
            server.shutdown()


def exchange(address: Any, method: str, target: str, body: bytes) -> tuple[int, str, list[tuple[str, str]], bytes]:
    connection = http.client.HTTPConnection(*address[:2], timeout=10)
    try:
        connection.request(method, target, body or None)
        response = connection.getresponse()
        headers = [(n.lower(), v) for n, v in response.getheaders() if n.lower() not in OURS_TO_SAY]
        return response.status, response.reason, sorted(headers), response.read()
    finally:
        connection.close()


class Quiet(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def hello(handler: Any, body: bytes = b"hello") -> None:
    handler.send_response(200)
    handler.send_header("X-First", "1")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


class ByName(Quiet):
    """Each method of writing overridden, each calling its base by name."""

    def send_response(self, code: int, message: str | None = None) -> None:
        BaseHTTPRequestHandler.send_response(self, code, message)

    def send_response_only(self, code: int, message: str | None = None) -> None:
        BaseHTTPRequestHandler.send_response_only(self, code, message)

    def send_header(self, keyword: str, value: str) -> None:
        BaseHTTPRequestHandler.send_header(self, keyword.title(), value)

    def end_headers(self) -> None:
        self.send_header("access-control-allow-origin", "*")
        BaseHTTPRequestHandler.end_headers(self)

    def flush_headers(self) -> None:
        BaseHTTPRequestHandler.flush_headers(self)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        BaseHTTPRequestHandler.send_error(self, code, message, explain)

    def do_GET(self) -> None:
        hello(self)

    def do_POST(self) -> None:
        self.send_error(418, "Short", "and stout")


class Buffer(Quiet):
    """The head's lines changed, added and removed where http.server keeps them."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("X-Removed", "1")
        self.send_header("X-Changed", "1")
        self._headers_buffer = [line for line in self._headers_buffer if not line.startswith(b"X-Removed")]
        self._headers_buffer[-1] = b"X-Changed: 2\r\n"
        self._headers_buffer.append(b"X-Appended: 3\r\n")
        self._headers_buffer.insert(1, b"Content-Length: 2\r\n")
        self.end_headers()
        self.wfile.write(b"ok")


class Flushed(Quiet):
    """A head that goes out in parts, and a body in the same write as its end."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.flush_headers()
        self.send_header("Content-Length", "8")
        self.flush_headers()
        self.wfile.write(b"X-By-Hand: yes\r\n\r\nbody")
        self.wfile.write(b"body")


class OwnHead(Quiet):
    """A head by hand, with the line ends that browsers forgive."""

    def do_GET(self) -> None:
        self.wfile.write(b"HTTP/1.0 203 By Hand\nX-Own: 1\nContent-Length: 3\n\nown")


class Informed(Quiet):
    def do_GET(self) -> None:
        self.send_response_only(100)
        self.end_headers()
        hello(self)


class OnSocket(Quiet):
    """The head by http.server, the body on the socket itself, by both its names."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "40")
        self.end_headers()
        self.request.sendall(b"0123456789")
        self.connection.send(memoryview(b"0123456789"))
        self.connection.sendmsg([b"01234", array.array("B", b"56789")])
        with self.request.makefile("wb") as file:
            file.write(b"0123456789")

    def do_POST(self) -> None:
        self.request.settimeout(5)
        assert self.request.gettimeout() == self.connection.timeout == 5
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert self.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert self.request.family == socket.AF_INET and self.request.type == socket.SOCK_STREAM
        assert self.request.getpeername() == self.client_address
        assert self.request.getsockname() == self.server.server_address
        body = bytearray(int(self.headers["Content-Length"]))
        self.rfile.readinto(body)
        hello(self, bytes(body))

    def do_PUT(self) -> None:
        file = io.BytesIO(b"__from a file")
        self.send_response(200)
        self.end_headers()
        self.connection.sendfile(file, 2)
        self.close_connection = True


class ReadsSocket(Quiet):
    def do_POST(self) -> None:
        # Under http.server the buffer of rfile has what came with the head, so the stock oracle cannot be asked.
        peeked = self.request.recv(3, socket.MSG_PEEK)
        into = array.array("h", [0, 0])
        n = self.connection.recv_into(into)
        rest = self.connection.recv(100)
        hello(self, peeked + b"|" + into.tobytes()[:n] + b"|" + rest)


class Buffers(Quiet):
    """Everything that is contiguous in memory."""

    def do_GET(self) -> None:
        parts: list[Any] = [
            array.array("h", [1, 2, 3]),
            memoryview(bytes(range(12))).cast("B", (3, 4)),
            memoryview(array.array("d", [0.5])),
            (ctypes.c_int * 2)(7, 8),
            bytearray(b"bytes"),
        ]
        self.send_response(200)
        self.send_header("Content-Length", str(sum(memoryview(part).nbytes for part in parts)))
        self.end_headers()
        for part in parts:
            assert self.wfile.write(part) == memoryview(part).nbytes

    def do_POST(self) -> None:
        into = array.array("i", [0, 0])
        assert self.rfile.readinto(into) == 8
        assert self.rfile.peek(1)[:1] == b"x"
        rest = bytearray(1)
        assert self.rfile.readinto1(rest) == 1
        hello(self, into.tobytes() + rest)

    def do_PUT(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        for wrong in (5, "text", memoryview(b"0123")[::2]):
            with contextlib.suppress(TypeError, BufferError):
                self.wfile.write(wrong)
                raise AssertionError(wrong)
        self.wfile.write(b"ok")


CLASSES = [ByName, Buffer, Flushed, OwnHead, Informed, OnSocket, Buffers]
BODY = array.array("i", [5, 6]).tobytes() + b"x"


@pytest.mark.parametrize("handler", CLASSES, ids=lambda c: c.__name__)
def test_as_http_server_does(handler: Any) -> None:
    for method in ("GET", "POST", "PUT"):
        if not hasattr(handler, f"do_{method}"):
            continue
        body = b"" if method == "GET" else BODY
        with stock(handler) as address:
            expected = exchange(address, method, "/", body)
        with serving(handler) as server:
            assert exchange(server.server_address, method, "/", body) == expected, method
        mixed = type("Mixed", (handler, RequestHandler), {})  # the same on our own class, where it is not the socket
        if handler is not OnSocket:
            with serving(mixed) as server:
                assert exchange(server.server_address, method, "/", body) == expected, method
        replayed = type("Replayed", (handler,), {"handle": lambda self: BaseHTTPRequestHandler.handle(self)})
        with serving(replayed) as server:
            assert exchange(server.server_address, method, "/", body) == expected, method


def test_reading_from_the_socket() -> None:
    with serving(ReadsSocket) as server:
        assert get(server.server_address, "/", method="POST", body=b"abcdefgh").body == b"abc|abcd|efgh"


def test_connections_persist_although_the_class_is_of_http_1_0_by_default() -> None:
    with serving(ByName) as server, Connection(server.server_address) as c:
        for _ in range(3):
            assert c.request("GET", "/").body == b"hello"


@pytest.mark.parametrize("base", [Quiet, RequestHandler])
def test_a_class_that_says_http_1_0_gets_it(base: Any) -> None:
    class Old(base):  # type: ignore[misc]
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            for _ in range(3):
                self.wfile.write(b"part")

    with serving(Old) as server, Connection(server.server_address) as c:
        c.send(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
        response = http.client.HTTPResponse(c.socket)
        response.begin()
        assert (response.version, response.getheader("transfer-encoding")) == (10, None)
        assert response.read() == b"part" * 3
        assert c.is_closed()


@pytest.mark.parametrize("base", [Quiet, RequestHandler])
def test_no_header_becomes_two_by_a_base_called_by_name(base: Any) -> None:
    class Split(base):  # type: ignore[misc]
        def do_GET(self) -> None:
            BaseHTTPRequestHandler.send_response(self, 200)
            BaseHTTPRequestHandler.send_header(self, "X-A", "b\r\nX-Smuggled: yes")
            BaseHTTPRequestHandler.end_headers(self)

    with serving(Split) as server:
        answer = get(server.server_address, "/")
    assert (answer.status, answer.header("x-smuggled")) == (500, None)


def test_a_head_that_never_ends_is_500() -> None:
    class Unfinished(Quiet):
        def do_GET(self) -> None:
            self.send_response(200)
            self.flush_headers()

    class NoStatusLine(Quiet):
        def do_GET(self) -> None:
            self.send_header("X-A", "b")
            self.end_headers()

    for handler in (Unfinished, NoStatusLine):
        with serving(handler) as server:
            assert get(server.server_address, "/").status == 500


def test_what_follows_101_is_passed_on() -> None:
    class Upgrading(Quiet):
        def do_GET(self) -> None:
            self.send_response(101)
            self.send_header("Upgrade", "echo")
            self.send_header("Connection", "Upgrade")
            self.end_headers()
            self.request.sendall(b"raw")

    with serving(Upgrading) as server, Connection(server.server_address) as c:
        c.send(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
        received = b""
        while data := c.socket.recv(65536):
            received += data
        head, _, rest = received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert rest == b"raw"


def test_a_writer_put_before_wfile_is_flushed() -> None:
    class Wrapped(Quiet):
        def do_GET(self) -> None:
            self.wfile = io.BufferedWriter(self.wfile)  # type: ignore[assignment, arg-type]
            hello(self)

    with serving(Wrapped) as server:
        assert get(server.server_address, "/").body == b"hello"


# ------------------------------------------------------------------ through the process

APPLICATION = """
import array
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler

class Files(SimpleHTTPRequestHandler):
    def end_headers(self):
        self.send_header("Access-Control-Allow-Origin", "*")
        SimpleHTTPRequestHandler.end_headers(self)

    def do_POST(self):
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(array.array("h", [1, 2, 3]))
"""


def test_in_the_service(tmp_path: Path) -> None:
    with running(tmp_path, APPLICATION, app="application:Files", PKG_ADMIN="off") as process:
        (tmp_path / "page.html").write_text("<p>page")
        status, headers, text = ask(process.address, "/page.html")
        assert (status, headers["access-control-allow-origin"], text) == (200, "*", "<p>page")
        status, headers, text = ask(process.address, "/", "POST")
        assert (status, text.encode()) == (200, array.array("h", [1, 2, 3]).tobytes())
        assert not [line for line in process.lines() if line["severity"] == "ERROR"]


# ------------------------------------------------------------------ handle_request()


class Greeting(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        hello(self)


@pytest.mark.parametrize("said", [b"", b"GET / HT", b"nonsense\r\n\r\n"], ids=["nothing", "half", "nonsense"])
def test_handle_request_returns_when_a_client_leaves(said: bytes) -> None:
    with Server(("127.0.0.1", 0), Greeting) as server:
        for _ in range(2):
            thread = threading.Thread(target=server.handle_request, daemon=True)
            thread.start()
            with Connection(server.server_address) as c:
                if said:
                    c.send(said)
            thread.join(10)
            assert not thread.is_alive()
        client: list[bytes] = []
        thread = threading.Thread(target=lambda: client.append(get(server.server_address, "/").body))
        thread.start()
        server.handle_request()  # and serves who comes next, once
        thread.join(10)
        assert client == [b"hello"]


def test_handle_request_waits_while_nobody_leaves() -> None:
    with Server(("127.0.0.1", 0), Greeting) as server:
        for _ in range(3):  # those that were served do not count as having left
            client = threading.Thread(target=get, args=(server.server_address, "/"))
            client.start()
            server.handle_request()
            client.join(10)
        front = server.front
        assert front is not None
        wait_for(lambda: front.stats().connections == 0)
        thread = threading.Thread(target=server.handle_request, daemon=True)
        thread.start()
        with Connection(server.server_address) as c:
            end = time.monotonic() + 0.3
            while time.monotonic() < end:
                assert thread.is_alive()
                time.sleep(0.02)
            assert c.request("GET", "/").body == b"hello"
        thread.join(10)
        assert not thread.is_alive()
