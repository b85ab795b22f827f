"""Handler classes of http.server: ours, stock ones adapted, and those that read for themselves and so are replayed.

WSGI is in test_wsgi.py; CPython's own tests of these classes run in test_stdlib_suites.py.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import http.client
import http.server
import io
import logging
import os
import re
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from pkg.errors import StartupError
from pkg.http.adapt import adapt
from pkg.http.handler import RequestHandler
from pkg.http.server import Server
from tests.support.client import Answer, Connection, get, wait_for
from tests.support.servers import serving

# ------------------------------------------------------------------ one handler, made in every way


class Echo:
    """What the tests below ask for; written as for http.server, knowing nothing of us."""

    seen: dict[str, Any]

    def do_GET(self: Any) -> None:
        name = self.path.partition("?")[0].strip("/") or "plain"
        getattr(self, f"answer_{name}")()

    do_HEAD = do_GET

    def do_POST(self: Any) -> None:
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length is not None else self.rfile.read()
        self.answer(body)

    def do_LINES(self: Any) -> None:
        length = int(self.headers["Content-Length"])
        lines = []
        while length:
            lines.append(self.rfile.readline())
            length -= len(lines[-1])
        self.answer(b"|".join(lines))

    def answer(self: Any, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_plain(self: Any) -> None:
        self.answer(b"plain")

    def answer_facts(self: Any) -> None:
        facts = (self.command, self.path, self.request_version, self.requestline, self.client_address[0])
        self.answer(repr((*facts, self.headers["X-Test"], self.headers.get_all("X-Many"))).encode())

    def answer_unread(self: Any) -> None:
        self.answer(b"not read")

    def answer_large(self: Any) -> None:
        self.answer(LARGE)

    def answer_nolength(self: Any) -> None:
        self.send_response(200)
        self.end_headers()
        for part in (b"a", b"", b"bc", bytearray(b"de"), memoryview(b"f")):
            self.wfile.write(part)

    def answer_error(self: Any) -> None:
        self.send_error(404, "Nothing <here>", "Explained & escaped")

    def answer_fail(self: Any) -> None:
        raise RuntimeError("secret")

    def answer_exit(self: Any) -> None:
        sys.exit(3)

    def answer_half(self: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"half")
        self.wfile.flush()
        raise RuntimeError("in the middle")

    def answer_nothing(self: Any) -> None:
        pass

    def answer_own(self: Any) -> None:
        self.close_connection = True
        self.wfile.write(b"HTTP/1.0 299 Mine\r\nX-Own: yes\r\n\r\nown body")

    def answer_socket(self: Any) -> None:
        self.connection.sendall(b"HTTP/1.1 298 Socket\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        self.close_connection = True

    def answer_hints(self: Any) -> None:
        self.send_response_only(103)
        self.send_header("Link", "</style.css>")
        self.end_headers()
        self.answer(b"after hints")

    def answer_split(self: Any) -> None:
        self.send_response(200)
        self.send_header("X-A", "b\r\nX-Smuggled: yes")
        self.end_headers()

    def answer_reason(self: Any) -> None:
        self.send_response(200, "O\r\nX-Smuggled: yes")
        self.end_headers()

    def answer_close(self: Any) -> None:
        self.close_connection = True
        self.answer(b"closing")

    def answer_text(self: Any) -> None:
        self.send_response(200)
        self.end_headers()
        text = io.TextIOWrapper(self.wfile, encoding="utf-8", write_through=True)
        text.write("gr\u00fc\u00df")
        text.detach()
        self.close_connection = True

    def answer_nocontent(self: Any) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


LARGE = hashlib.shake_128(b"large").digest(3_000_000)


class Ours(Echo, RequestHandler):
    pass


class Stock(Echo, BaseHTTPRequestHandler):  # protocol_version is HTTP/1.0
    pass


class Stock11(Stock):
    protocol_version = "HTTP/1.1"


class Replayed(Stock):
    def handle(self) -> None:
        super().handle()


class Replayed11(Stock11):
    def parse_request(self) -> bool:
        return super().parse_request()


EVERY = [Ours, Stock, Stock11, Replayed, Replayed11]
FRAMED = [Ours, Stock, Stock11]  # by us: the others write what they like


@pytest.fixture(params=EVERY, ids=lambda c: c.__name__)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@contextlib.contextmanager
def connected(handler: Any, **options: Any) -> Iterator[Connection]:
    with serving(handler, **options) as server, Connection(server.server_address) as c:
        yield c


def ask(connection: Connection, target: str, method: str = "GET", headers: str = "", body: bytes = b"") -> Answer:
    """Like Connection.request, for answers that may say HTTP/1.0."""
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    connection.send(f"{method} {target} HTTP/1.1\r\nHost: t\r\n{headers}{length}\r\n".encode() + body)
    return receive(connection, method)


def receive(connection: Connection, method: str = "GET") -> Answer:
    response = http.client.HTTPResponse(connection.socket, method=method)
    response.begin()
    body = response.read()
    return Answer(response.status, response.reason, response.getheaders(), body)


def test_how_classes_are_served() -> None:
    assert adapt(Ours) is Ours
    for plain in (Stock, Stock11):
        adapted = adapt(plain)
        assert issubclass(adapted, RequestHandler), plain
        assert (adapted.__name__, adapted.__module__) == (plain.__name__, plain.__module__)
    assert adapt(BaseHTTPRequestHandler) is RequestHandler
    for replayed in (Replayed, Replayed11):
        assert isinstance(adapt(replayed), partial), replayed
    assert adapt(print) is print


def test_facts(kind: Any) -> None:
    with connected(kind) as c:
        answer = ask(c, "/facts?a=b", headers="X-Test: \xe9\r\nX-Many: 1\r\nx-many: 2\r\n")
    line = "GET /facts?a=b HTTP/1.1"
    expected = ("GET", "/facts?a=b", "HTTP/1.1", line, "127.0.0.1", "\xc3\xa9", ["1", "2"])
    assert answer.body == repr(expected).encode()


def test_get_and_head(kind: Any) -> None:
    with serving(kind) as server:
        for method in ("GET", "HEAD"):
            with Connection(server.server_address) as c:
                answer = ask(c, "/", method)
                assert (answer.status, answer.header("content-length")) == (200, "5")
                assert answer.body == (b"plain" if method == "GET" else b"")
                assert answer.header("server")
                assert answer.header("date")


@pytest.mark.parametrize("kind", [Ours, Stock, Stock11, Replayed11], ids=lambda c: c.__name__)
def test_connections_persist(kind: Any) -> None:
    with connected(kind) as c:
        for n in range(5):
            assert ask(c, "/", "POST", body=b"%d" % n).body == b"%d" % n
        assert ask(c, "/", headers="Connection: close\r\n").body == b"plain"
        assert c.is_closed()


def test_a_replayed_handler_of_http_1_0_closes() -> None:
    with connected(Replayed) as c:
        assert ask(c, "/").body == b"plain"
        assert c.is_closed()


def test_pipelined_requests_are_answered_in_order() -> None:
    for kind in (Ours, Stock11, Replayed11):
        with connected(kind) as c:
            c.send(b"".join(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n\r\n%03d" % n for n in range(50)))
            assert [c.receive().body for _ in range(50)] == [b"%03d" % n for n in range(50)]


@pytest.mark.parametrize("size", [1, 65_536, 65_537, 2_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_uploads(kind: Any, size: int, chunked: bool) -> None:
    if chunked and kind in (Replayed, Replayed11):
        pytest.skip("http.server itself does not decode chunks")
    if chunked and kind is Stock and size > 65_536:
        kind = Stock11
    body = hashlib.shake_128(b"upload").digest(size)
    with connected(kind) as c:
        if chunked:
            data = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (body[i : i + 7000] for i in range(0, size, 7000)))
            message = b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n" + data + b"0\r\n\r\n"
        else:
            message = b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n" % size + body
        sender = threading.Thread(target=c.send, args=(message,))
        sender.start()
        answer = receive(c)
        sender.join()
        assert answer.body == body


def test_replayed_handlers_see_chunks_as_chunks() -> None:
    class Chunks(Replayed11):
        def do_POST(self) -> None:
            assert self.headers["Transfer-Encoding"] == "chunked"
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                assert self.rfile.readline() == b"\r\n"
            assert self.rfile.readline() == b"\r\n"
            self.answer(b"".join(parts))

    with connected(Chunks) as c:
        for _ in range(2):
            c.send(
                b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
            )
            assert receive(c).body == b"abcde"


def test_lines(kind: Any) -> None:
    with connected(kind) as c:
        assert ask(c, "/", "LINES", body=b"one\ntwo\n\nthree").body == b"one\n|two\n|\n|three"


@pytest.mark.parametrize("kind", [Ours, Stock11, Replayed11], ids=lambda c: c.__name__)
def test_a_body_left_unread_is_no_request(kind: Any) -> None:
    """Neither what had arrived of it nor what comes later is taken for the next request."""
    hidden = b"GET /facts HTTP/1.1\r\nHost: t\r\n\r\n"

    class Deaf(kind):  # type: ignore[misc]
        def do_POST(self) -> None:
            self.answer(b"deaf")

    with connected(Deaf) as c:
        c.send(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n" % len(hidden) + hidden)
        assert receive(c).body == b"deaf"
        assert ask(c, "/").body == b"plain"
    with connected(Deaf, body_buffer_size=0, stream_bodies=True) as c:
        c.send(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 100000\r\n\r\n" + hidden * 10)
        assert receive(c).body == b"deaf"
        with contextlib.suppress(ConnectionError):
            c.send(hidden * 100)
        assert c.is_closed()


def test_large_responses(kind: Any) -> None:
    with connected(kind) as c:
        assert ask(c, "/large").body == LARGE


@pytest.mark.parametrize("kind", FRAMED, ids=lambda c: c.__name__)
def test_a_response_without_length(kind: Any) -> None:
    with connected(kind) as c:
        for _ in range(2):
            answer = c.request("GET", "/nolength")
            assert (answer.body, answer.header("transfer-encoding")) == (b"abcdef", "chunked")
        assert c.request("HEAD", "/nolength").body == b""
        answer = c.request("GET", "/nolength", version="1.0")
        assert (answer.body, answer.header("transfer-encoding"), answer.closes) == (b"abcdef", None, True)
        assert c.is_closed()


def test_a_replayed_response_without_length_ends_with_the_connection() -> None:
    with connected(Replayed) as c:
        assert ask(c, "/nolength").body == b"abcdef"


def test_send_error(kind: Any) -> None:
    with connected(kind) as c:
        answer = ask(c, "/error")
        assert (answer.status, answer.reason) == (404, "Nothing <here>")
        assert b"Nothing &lt;here&gt;" in answer.body
        assert b"Explained &amp; escaped" in answer.body
        assert answer.closes
        assert c.is_closed()


def test_an_unknown_method(kind: Any) -> None:
    with connected(kind) as c:
        answer = ask(c, "/", "BREW")
        assert answer.status == 501
        assert b"BREW" in answer.body


@pytest.mark.parametrize("target", ["/fail", "/exit", "/nothing"])
def test_handlers_that_fail(kind: Any, target: str, caplog: pytest.LogCaptureFixture) -> None:
    with serving(kind, threads=1) as server:
        with Connection(server.server_address) as c:
            answer = ask(c, target)
            assert answer.status == 500
            assert b"secret" not in answer.body
            assert answer.closes
            assert c.is_closed()
        with Connection(server.server_address) as c:  # the worker has survived
            assert ask(c, "/").body == b"plain"
    errors = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert target in errors[0].getMessage()


def test_a_handler_that_fails_half_way(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    with connected(kind) as c, pytest.raises((http.client.IncompleteRead, ConnectionError)):
        ask(c, "/half")
    assert "in the middle" in caplog.text


def test_a_handler_that_writes_its_own_status_line(kind: Any) -> None:
    seen: list[int] = []
    with connected(kind, on_response=lambda request: seen.append(request.status)) as c:
        answer = ask(c, "/own")
        assert (answer.status, answer.reason, answer.header("x-own"), answer.body) == (299, "Mine", "yes", b"own body")
        assert c.is_closed()
    assert seen == [299]


def test_a_handler_that_writes_to_its_socket(kind: Any) -> None:
    seen: list[int] = []
    with connected(kind, on_response=lambda request: seen.append(request.status)) as c:
        answer = ask(c, "/socket")
        assert (answer.status, answer.body) == (298, b"ok")
        assert c.is_closed()
    assert seen == [298]


def test_a_handler_that_reads_from_its_socket() -> None:
    class Reading(Ours):
        def do_POST(self) -> None:
            parts = []
            while data := self.connection.recv(4):
                parts.append(data)
            self.connection.settimeout(1)
            self.answer(b"|".join(parts) + b" " + self.connection.getpeername()[0].encode())

    with connected(Reading) as c:
        assert ask(c, "/", "POST", body=b"0123456789").body == b"0123|4567|89 127.0.0.1"


def test_interim_responses(kind: Any) -> None:
    with connected(kind) as c:
        c.send(b"GET /hints HTTP/1.1\r\nHost: t\r\n\r\n")
        received = b""
        while b"after hints" not in received:
            received += c.socket.recv(65536)
        assert re.match(
            rb"HTTP/1\.[01] 103 Early Hints\r\nLink: </style\.css>\r\n\r\nHTTP/1\.[01] 200 OK\r\n", received
        )


@pytest.mark.parametrize("target", ["/split", "/reason"])
def test_no_header_can_be_smuggled(kind: Any, target: str, caplog: pytest.LogCaptureFixture) -> None:
    with connected(kind) as c:
        answer = ask(c, target)
        assert answer.status == 500
        assert answer.header("x-smuggled") is None
        assert c.is_closed()
    assert "invalid response" in caplog.text


def test_a_handler_closes(kind: Any) -> None:
    with connected(kind) as c:
        answer = ask(c, "/close")
        assert answer.body == b"closing"
        assert c.is_closed()
        if kind in FRAMED:
            assert answer.closes


def test_wfile_as_text(kind: Any) -> None:
    with connected(kind) as c:
        assert ask(c, "/text").body == "gr\u00fc\u00df".encode()


def test_204_has_no_body_and_no_length(kind: Any) -> None:
    with connected(kind) as c:
        answer = ask(c, "/nocontent")
        assert (answer.status, answer.body, answer.header("content-length")) == (204, b"", None)
        assert answer.header("transfer-encoding") is None


# ------------------------------------------------------------------ Expect


@pytest.mark.parametrize("kind", [Ours, Stock11, Replayed11], ids=lambda c: c.__name__)
def test_expect_continue(kind: Any) -> None:
    head = b"POST / HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    with connected(kind) as c:
        for _ in range(2):
            c.send(head)
            assert c.socket.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
            c.send(b"hello")
            assert receive(c).body == b"hello"


@pytest.mark.parametrize("kind", [Ours, Stock11, Replayed11], ids=lambda c: c.__name__)
def test_handle_expect_100_may_refuse(kind: Any) -> None:
    class Refusing(kind):  # type: ignore[misc]
        def handle_expect_100(self) -> bool:
            self.send_error(417)
            return False

    with connected(Refusing) as c:
        c.send(b"POST / HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        answer = receive(c)
        assert (answer.status, answer.closes) == (417, True)
        assert c.is_closed()


# ------------------------------------------------------------------ what subclasses override


@pytest.mark.parametrize("kind", [Ours, Stock11, Replayed11], ids=lambda c: c.__name__)
def test_log_methods_are_called(kind: Any) -> None:
    calls: list[Any] = []

    class Logging(kind):  # type: ignore[misc]
        def log_request(self, code: Any = "-", size: Any = "-") -> None:
            calls.append(("request", int(code), size))

        def log_error(self, format: str, *args: Any) -> None:
            calls.append(("error", format % args))

        def log_message(self, format: str, *args: Any) -> None:
            calls.append(("message", format % args))

        def answer_log(self) -> None:
            self.log_message("%s", "by hand")
            self.answer(b"logged")

    with connected(Logging) as c:
        ask(c, "/")
        ask(c, "/log")
        ask(c, "/error")
    assert calls == [
        ("request", 200, "-"),
        ("message", "by hand"),
        ("request", 200, "-"),
        ("error", "code 404, message Nothing <here>"),
        ("request", 404, "-"),
    ]


@pytest.mark.parametrize("base", [RequestHandler, BaseHTTPRequestHandler, "replayed"])
def test_log_request_says_nothing_and_log_message_logs(
    base: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    class Plain(BaseHTTPRequestHandler if base == "replayed" else base):  # type: ignore[misc]
        def do_GET(self) -> None:
            self.log_message("said %s", "once\n\x1b[31mtwice \\ \x9b")
            self.send_response(204)
            self.end_headers()

        if base == "replayed":

            def handle(self) -> None:
                super().handle()

    with caplog.at_level(logging.INFO), connected(Plain) as c:
        assert ask(c, "/").status == 204
    said = r"127.0.0.1 said once\x0a\x1b[31mtwice \\ \x9b"
    assert [r.getMessage() for r in caplog.records if r.name == "pkg.handler"] == [said]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("base", [RequestHandler, BaseHTTPRequestHandler])
def test_names_that_classes_set(base: Any) -> None:
    class Named(base):  # type: ignore[misc]
        server_version = "Name/1.2"
        sys_version = ""
        error_message_format = "%(code)d: %(message)s"
        error_content_type = "text/plain"

        def do_GET(self) -> None:
            self.send_error(410, "Gone")

        def date_time_string(self, timestamp: float | None = None) -> str:
            return "Thu, 01 Jan 1970 00:00:00 GMT"

    with connected(Named) as c:
        answer = ask(c, "/")
    assert answer.header("server") == "Name/1.2"
    assert answer.header("date") == "Thu, 01 Jan 1970 00:00:00 GMT"
    assert (answer.body, answer.header("content-type")) == (b"410: Gone", "text/plain")


def test_setup_and_finish_of_a_stock_handler_are_called() -> None:
    calls: list[str] = []

    class Staged(Stock11):
        timeout = 5
        disable_nagle_algorithm = True

        def setup(self) -> None:
            calls.append("setup")
            super().setup()
            self.request.settimeout(3)

        def finish(self) -> None:
            super().finish()
            calls.append("finish")

    with connected(Staged) as c:
        assert ask(c, "/").body == b"plain"
        assert ask(c, "/", "POST", body=b"x").body == b"x"
    wait_for(lambda: calls == ["setup", "finish"] * 2)


def test_a_handler_that_parses_for_itself() -> None:
    """socketserver's own kind, which knows no HTTP."""

    class Raw(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            line = self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(line), line))

    class Rawest(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data = b""
            while not data.endswith(b"\r\n\r\n"):
                data += self.request.recv(7)
            self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data))
            self.request.send(data)

    with connected(Raw) as c:
        assert ask(c, "/x").body == b"GET /x HTTP/1.1\r\n"
    with connected(Rawest) as c:
        assert ask(c, "/x").body == b"GET /x HTTP/1.1\r\nHost: t\r\n\r\n"


def test_what_the_front_refuses_reaches_no_handler() -> None:
    calls: list[Any] = []

    class Counting(Replayed11):
        def handle(self) -> None:
            calls.append(self.request)
            super().handle()

    with connected(Counting) as c:
        c.send(b"GET / HTTP/1.1\r\nHost: t\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert receive(c).status == 400
    assert calls == []


def test_cgi_handlers_are_refused() -> None:
    if not hasattr(http.server, "CGIHTTPRequestHandler"):
        pytest.skip("gone from this Python")
    with pytest.raises(StartupError, match="CGI"):
        Server(("127.0.0.1", 0), http.server.CGIHTTPRequestHandler, bind_and_activate=False)


# ------------------------------------------------------------------ files


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "small.txt").write_bytes(b"small\n")
    (tmp_path / "large.bin").write_bytes(LARGE)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "<b>.html").write_bytes(b"<p>")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_bytes(b"<h1>index</h1>")
    return tmp_path


class QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class ReplayedFiles(QuietFiles):
    def handle(self) -> None:
        super().handle()


class OurFiles(QuietFiles, RequestHandler):
    pass


@pytest.mark.parametrize(
    "kind", [SimpleHTTPRequestHandler, QuietFiles, OurFiles, ReplayedFiles], ids=lambda c: c.__name__
)
def test_files(kind: Any, files: Path) -> None:
    with serving(partial(kind, directory=str(files))) as server:

        def fetch(target: str, headers: str = "", method: str = "GET") -> Answer:
            with Connection(server.server_address) as c:
                return ask(c, target, method, headers + "Connection: close\r\n")

        answer = fetch("/small.txt")
        assert (answer.status, answer.body, answer.header("content-type")) == (200, b"small\n", "text/plain")
        assert answer.header("content-length") == "6"
        modified = answer.header("last-modified")
        assert fetch("/small.txt", f"If-Modified-Since: {modified}\r\n").status == 304
        head = fetch("/small.txt", method="HEAD")
        assert (head.body, head.header("content-length")) == (b"", "6")
        assert fetch("/large.bin").body == LARGE
        assert fetch("/empty").body == b""
        assert fetch("/missing").status == 404
        assert fetch("/../" + files.name + "/small.txt").status == 404
        assert fetch("/%2e%2e/etc/passwd").status == 404
        assert b"%3Cb%3E.html" in fetch("/folder/").body
        moved = fetch("/folder")
        assert (moved.status, moved.header("location")) == (301, "/folder/")
        assert fetch("/site/").body == b"<h1>index</h1>"
        for evil in ("//evil.example/..%2f..", "//evil.example/%2e%2e"):
            location = fetch(evil).header("location") or "/"
            assert not location.startswith("//")


def test_files_persist_on_one_connection(files: Path) -> None:
    with connected(partial(QuietFiles, directory=str(files))) as c:
        for _ in range(3):
            assert c.request("GET", "/small.txt").body == b"small\n"
            assert c.request("GET", "/large.bin").body == LARGE


# ------------------------------------------------------------------ Server, used as http.server says


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
        assert not thread.is_alive()


def test_as_in_the_documentation() -> None:
    with Server(("", 0), Stock) as httpd:
        assert httpd.server_port == httpd.server_address[1]
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        assert get(("127.0.0.1", httpd.server_port), "/").body == b"plain"
        httpd.shutdown()
        thread.join(10)
        assert not thread.is_alive()
    assert httpd.socket.fileno() == -1


def test_it_may_serve_again() -> None:
    with Server(("127.0.0.1", 0), Ours) as server:
        for _ in range(3):
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            assert get(server.server_address, "/").body == b"plain"
            server.shutdown()
            thread.join(10)
            assert not thread.is_alive()


def test_shutdown_before_serve_forever_is_not_lost() -> None:
    with Server(("127.0.0.1", 0), Ours) as server:
        server.shutdown()
        server.serve_forever()  # returns


def test_bind_and_activate_by_hand() -> None:
    server = Server(("127.0.0.1", 0), Ours, bind_and_activate=False)
    with pytest.raises(RuntimeError, match="not activated"):
        server.serve_forever()
    server.server_bind()
    server.server_activate()
    with running(server):
        assert get(server.server_address, "/").body == b"plain"


def test_ipv6() -> None:
    try:
        server = Server(("::1", 0), Ours)
    except OSError:
        pytest.skip("no IPv6 here")
    with running(server), socket.create_connection(("::1", server.server_port), 10) as s:
        s.sendall(b"GET /facts HTTP/1.0\r\n\r\n")
        assert b"'::1'" in b"".join(iter(lambda: s.recv(65536), b""))


def test_a_taken_port_is_an_error() -> None:
    with Server(("127.0.0.1", 0), Ours) as server, pytest.raises(OSError):
        Server(server.server_address, Ours)


def test_reuse_flags_count() -> None:
    class Sharing(Server):
        allow_reuse_port = True

    class Not(Server):
        allow_reuse_address = False

    with Sharing(("127.0.0.1", 0), Ours) as first, Sharing(first.server_address, Ours):
        pass
    with Not(("127.0.0.1", 0), Ours) as server:
        assert server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0
    with Server(("127.0.0.1", 0), Ours) as server:
        assert server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) != 0


def test_a_tls_listener_is_refused() -> None:
    """The well-known `httpd.socket = context.wrap_socket(...)` must not end in plain HTTP."""
    with Server(("127.0.0.1", 0), Ours) as server:
        server.socket = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).wrap_socket(server.socket, server_side=True)
        for use in (server.serve_forever, server.handle_request):
            with pytest.raises(RuntimeError, match="TLS"):
                use()


def test_a_get_request_of_ones_own_is_refused() -> None:
    """Where else TLS begins; it would never be called."""

    class Wrapping(Server):
        def get_request(self) -> tuple[Any, Any]:
            raise NotImplementedError

    with Wrapping(("127.0.0.1", 0), Ours) as server:
        for use in (server.serve_forever, server.handle_request):
            with pytest.raises(RuntimeError, match="get_request"):
                use()


def test_a_unix_socket(tmp_path: Path) -> None:
    """As people do it with http.server, whose own server_bind() looks for host and port."""

    class Unix(Server):
        address_family = socket.AF_UNIX

        def server_bind(self) -> None:
            socketserver.TCPServer.server_bind(self)
            self.server_name, self.server_port = "unix", 0

    path = str(tmp_path / "socket")
    with Unix(path, Ours) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(path)
            client.sendall(b"GET /large HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(LARGE)
        server.close_listener()
        thread.join(10)
        assert not thread.is_alive()


def test_an_end_that_comes_before_the_thread_has_begun() -> None:
    class Late(Server):
        begin = threading.Event()

        def serve_forever(self, poll_interval: float = 0.5) -> None:
            self.begin.wait(10)
            super().serve_forever(poll_interval)

    with Late(("127.0.0.1", 0), Ours) as server, Connection(server.server_address) as c:
        server.start()
        server.close_listener()
        assert not server.join(0)
        server.begin.set()
        assert ask(c, "/large").body == LARGE
        assert server.join(10)


def test_service_actions() -> None:
    class Acting(Server):
        acted = threading.Event()

        def service_actions(self) -> None:
            self.acted.set()

    with Acting(("127.0.0.1", 0), Ours) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        assert server.acted.wait(10)
        server.shutdown()
        thread.join(10)
        assert not thread.is_alive()


def test_handle_request() -> None:
    answers: list[Answer] = []

    def client(address: Any) -> None:
        with Connection(address) as c:
            answers.append(ask(c, "/large"))
            assert c.is_closed()

    with Server(("127.0.0.1", 0), Stock11) as server:
        for _ in range(3):
            thread = threading.Thread(target=client, args=(server.server_address,))
            thread.start()
            server.handle_request()
            thread.join(10)
    assert [a.body for a in answers] == [LARGE] * 3


def test_handle_request_then_close_loses_nothing() -> None:
    answers: list[Answer] = []

    def client(address: Any) -> None:
        with Connection(address) as c:
            answers.append(ask(c, "/large"))

    server = Server(("127.0.0.1", 0), Ours)
    thread = threading.Thread(target=client, args=(server.server_address,))
    thread.start()
    server.handle_request()
    server.server_close()
    thread.join(10)
    assert [a.body for a in answers] == [LARGE]


def test_handle_request_times_out() -> None:
    class Waiting(Server):
        timeout = 0.05
        timeouts = 0

        def handle_timeout(self) -> None:
            self.timeouts += 1

    with Waiting(("127.0.0.1", 0), Ours) as server:
        server.handle_request()
        server.handle_request()
        assert server.timeouts == 2


def test_overrides_of_a_subclass_are_called(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    class Watching(Server):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            calls.append(f"verify {client_address[0]}")
            return "refuse" not in request.target

        def process_request(self, request: Any, client_address: Any) -> None:
            calls.append("process")
            super().process_request(request, client_address)

        def finish_request(self, request: Any, client_address: Any) -> None:
            calls.append("finish")
            super().finish_request(request, client_address)

        def handle_error(self, request: Any, client_address: Any) -> None:
            calls.append(f"error {sys.exception()}")
            super().handle_error(request, client_address)

        def shutdown_request(self, request: Any) -> None:
            calls.append("shutdown")
            super().shutdown_request(request)

    with running(Watching(("127.0.0.1", 0), Ours, threads=1)) as server:
        assert get(server.server_address, "/").body == b"plain"
        wait_for(lambda: calls == ["verify 127.0.0.1", "process", "finish", "shutdown"])
        calls.clear()
        assert get(server.server_address, "/fail").status == 500
        wait_for(lambda: calls == ["verify 127.0.0.1", "process", "finish", "error secret", "shutdown"])
        calls.clear()
        with pytest.raises((EOFError, ConnectionError)):
            get(server.server_address, "/refuse")
        wait_for(lambda: calls == ["verify 127.0.0.1", "shutdown"])
        assert get(server.server_address, "/").body == b"plain"


@pytest.mark.parametrize("name", ["verify_request", "process_request", "finish_request"])
def test_an_override_that_raises_does_not_end_the_worker(name: str, caplog: pytest.LogCaptureFixture) -> None:
    failures = iter([True, True, False])

    def override(self: Any, request: Any, client_address: Any) -> Any:
        if next(failures):
            raise ValueError("override")
        return getattr(Server, name)(self, request, client_address)

    broken = type("Broken", (Server,), {name: override})
    with running(broken(("127.0.0.1", 0), Ours, threads=1)) as server:
        assert get(server.server_address, "/").status == 500
        assert get(server.server_address, "/").status == 500
        assert get(server.server_address, "/").body == b"plain"
    assert caplog.text.count("ValueError: override") == 2


def test_handle_error_alone_may_be_overridden() -> None:
    errors: list[BaseException | None] = []

    class Silent(Server):
        def handle_error(self, request: Any, client_address: Any) -> None:
            errors.append(sys.exception())

    with running(Silent(("127.0.0.1", 0), Ours)) as server:
        with pytest.raises((EOFError, ConnectionError)):  # as under http.server: it closes, and that is all
            get(server.server_address, "/fail")
        assert get(server.server_address, "/").body == b"plain"
    assert [str(e) for e in errors] == ["secret"]


@pytest.mark.parametrize("overridden", [(), ("verify_request",), ("shutdown_request",)])
def test_no_failure_behind_a_request_ends_the_worker(
    overridden: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """handle_error() and the access log may fail, too; the worker is one of few."""

    def fail(self: Any, *args: Any) -> None:
        raise ValueError("behind")

    def same(self: Any, *args: Any) -> Any:
        return Server.verify_request(self, *args)

    methods = {name: same if name == "verify_request" else fail for name in overridden}
    broken = type("Broken", (Server,), {"handle_error": fail, **methods})
    with running(broken(("127.0.0.1", 0), Ours, threads=1, on_response=lambda request: fail(None))) as server:
        for _ in range(2):
            with pytest.raises((EOFError, ConnectionError)):
                get(server.server_address, "/fail")
            assert get(server.server_address, "/").body == b"plain"
    assert caplog.text.count("ValueError: behind") >= 4


def test_process_request_may_use_threads_of_its_own() -> None:
    """The mix-in that everybody writes: a thread for each request, by socketserver's own method."""
    threads: set[str] = set()

    class Spawning(Server):
        def process_request(self, request: Any, client_address: Any) -> None:
            threading.Thread(target=self.process_request_thread, args=(request, client_address), name="spawned").start()

        def finish_request(self, request: Any, client_address: Any) -> None:
            threads.add(threading.current_thread().name)
            super().finish_request(request, client_address)

    with running(Spawning(("127.0.0.1", 0), Ours, threads=1)) as server, Connection(server.server_address) as c:
        for _ in range(3):
            assert ask(c, "/", "POST", body=b"abc").body == b"abc"
    assert threads == {"spawned"}


def test_stock_server_class_is_the_base() -> None:
    assert issubclass(Server, HTTPServer)
    assert issubclass(Server, socketserver.ThreadingMixIn)


PROGRAM = """
import signal
from http.server import SimpleHTTPRequestHandler
from pkg.http.server import Server

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it runs in the background
with Server(("127.0.0.1", 0), SimpleHTTPRequestHandler) as httpd:
    print(httpd.server_port, flush=True)
    try:
        httpd.serve_forever()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def test_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "hello.txt").write_text("hello")
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            assert get(("127.0.0.1", port), "/hello.txt").body == b"hello"
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=10)
            assert (out, err, process.returncode) == ("interrupted\n", "", 0)
        finally:
            process.kill()


def test_nothing_is_left_behind() -> None:
    """No descriptor, no thread, no connection: after all the ways above have been used once."""

    def count() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    def use() -> None:
        for kind in EVERY:
            with connected(kind) as c:
                ask(c, "/")
        test_handle_request()

    use()
    before = count()
    use()
    wait_for(lambda: count() == before, message=f"{count()} == {before}")
