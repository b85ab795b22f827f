"""WSGI hosting: PEP 3333 through a real socket."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import logging
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest

from pkg.errors import ClientDisconnected, StartupError
from pkg.http.wsgi import Application
from tests.support.client import Connection, get, wait_for
from tests.support.servers import serving_app

PLAIN = [("Content-Type", "text/plain")]


def echo(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [*PLAIN, ("X-Length", str(len(body)))])
    return [body]


def answering(*parts: bytes, status: str = "200 OK", headers: Any = PLAIN) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response(status, list(headers))
        return iter(parts)

    return app


def test_validator_passes() -> None:
    @validator
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.input"].read(3)
        list(environ["wsgi.input"])
        start_response("200 OK", PLAIN)
        return [b"fine"]

    with serving_app(app) as server:
        assert get(server.server_address, "/a?b=c").body == b"fine"
        assert get(server.server_address, "/a", method="POST", body=b"one\ntwo\n").body == b"fine"
        assert get(server.server_address, "/", method="HEAD").status == 200


def test_environ() -> None:
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.update(environ)
        start_response("204 No Content", [])
        return []

    with serving_app(app) as server, Connection(server.server_address) as c:
        c.send(
            b"POST /a%20b/%C3%A9;x?q=%20&r HTTP/1.1\r\nHost: example:81\r\n"
            b"Content-Type: text/x\r\nContent-Length: 2\r\n"
            b"Cookie: a=1\r\nX-Many: one\r\nx-many: two\r\ncookie: b=2\r\nX_Hidden: no\r\nX-Obs: \xe9\r\n"
            b"X-Twice: 1\r\nX-Twice: 1\r\n\r\nhi"
        )
        assert c.receive().status == 204
    assert seen["REQUEST_METHOD"] == "POST"
    assert seen["SCRIPT_NAME"] == ""
    assert seen["PATH_INFO"] == "/a b/\xc3\xa9;x"
    assert seen["QUERY_STRING"] == "q=%20&r"
    assert seen["RAW_URI"] == seen["REQUEST_URI"] == "/a%20b/%C3%A9;x?q=%20&r"
    assert seen["CONTENT_TYPE"] == "text/x"
    assert seen["CONTENT_LENGTH"] == "2"
    assert seen["HTTP_HOST"] == "example:81"
    assert seen["HTTP_COOKIE"] == "a=1; b=2"
    assert seen["HTTP_X_MANY"] == "one,two"
    assert seen["HTTP_X_TWICE"] == "1,1"
    assert seen["HTTP_X_OBS"] == "\xe9"
    assert seen["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert seen["REMOTE_ADDR"] == "127.0.0.1"
    assert int(seen["REMOTE_PORT"]) > 0
    assert seen["wsgi.url_scheme"] == "http"
    assert seen["wsgi.version"] == (1, 0)
    assert not any("HIDDEN" in name for name in seen)
    assert "HTTP_CONTENT_LENGTH" not in seen


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/shop/cart?x=/shop", "/shop /cart x=/shop"),
        ("/shop/", "/shop / "),
        ("/shop", "/shop  "),
        ("/%73hop/cart", "/shop /cart "),
        ("/cart", "/shop /cart "),  # the proxy has taken it off
        ("/shopping", "/shop /shopping "),
        ("/", "/shop / "),
    ],
)
def test_mounted_at_a_path(target: str, expected: str) -> None:
    @validator
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", PLAIN)
        return [" ".join(environ[name] for name in ("SCRIPT_NAME", "PATH_INFO", "QUERY_STRING")).encode()]

    with serving_app(app, script_name="/shop") as server:
        assert get(server.server_address, target).body.decode() == expected


def test_absolute_form_overrules_host() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", PLAIN)
        return [f"{environ['HTTP_HOST']} {environ['PATH_INFO']}".encode()]

    with serving_app(app) as server, Connection(server.server_address) as c:
        c.send(b"GET http://target.example/p?q HTTP/1.1\r\nHost: other.example\r\n\r\n")
        assert c.receive().body == b"target.example /p"
        for rest in (b"", b"?q"):
            c.send(b"GET http://target.example%b HTTP/1.1\r\nHost: other.example\r\n\r\n" % rest)
            assert c.receive().body == b"target.example /"


@pytest.mark.parametrize("size", [0, 1, 1000, 65536, 65537, 300_000, 3_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_of_every_size(size: int, chunked: bool) -> None:
    body = hashlib.shake_128(b"body").digest(size)
    with serving_app(echo) as server, Connection(server.server_address) as c:
        for _ in range(2):  # the connection stays usable
            if chunked:
                pieces = [body[i : i + 40_000] for i in range(0, size, 40_000)]
                data = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
                head = b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n"
            else:
                head, data = b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n" % size, body
            sender = threading.Thread(target=c.send, args=(head + data,))
            sender.start()
            answer = c.receive()
            sender.join()
            assert answer.status == 200
            assert answer.body == body


@pytest.mark.parametrize("size", [0, 10, 200_000])
def test_input_as_a_file(size: int) -> None:
    lines = [b"x" * (i % 91) + b"\n" for i in range(size // 45)] + [b"last without newline"]
    body = b"".join(lines)
    results: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        source = environ["wsgi.input"]
        match environ["PATH_INFO"]:
            case "/lines":
                results["lines"] = source.readlines()
            case "/iteration":
                results["lines"] = list(source)
            case "/readline":
                results["lines"] = list(iter(source.readline, b""))
            case "/limited":
                results["lines"] = b"".join(iter(lambda: source.readline(7), b"")).splitlines(keepends=True)
            case "/small":
                results["lines"] = b"".join(iter(lambda: source.read(13), b"")).splitlines(keepends=True)
            case "/text":
                results["lines"] = [x.encode() for x in io.TextIOWrapper(source, newline="")]
            case "/readinto":
                buffer, parts = bytearray(1000), []
                while n := source.readinto(buffer):
                    parts.append(bytes(buffer[:n]))
                results["lines"] = b"".join(parts).splitlines(keepends=True)
        results["rest"] = source.read()
        start_response("200 OK", PLAIN)
        return [b""]

    with serving_app(app) as server:
        for path in ("/lines", "/iteration", "/readline", "/limited", "/small", "/text", "/readinto"):
            assert get(server.server_address, path, method="POST", body=body).status == 200
            assert results["lines"] == lines, path
            assert results["rest"] == b""


def test_framing_of_responses() -> None:
    apps = {
        "/list": answering_list,
        "/generator": answering(b"a", b"", b"bc"),
        "/length": answering(b"ab", b"c", headers=[*PLAIN, ("Content-Length", "3")]),
        "/empty": answering(),
        "/none": answering(status="204 No Content", headers=[]),
        "/cached": answering(status="304 Not Modified", headers=[("ETag", '"x"')]),
    }

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        return apps[environ["PATH_INFO"]](environ, start_response)

    with serving_app(app) as server, Connection(server.server_address) as c:
        for target, body, length, coding in [
            ("/list", b"whole", "5", None),
            ("/generator", b"abc", None, "chunked"),
            ("/length", b"abc", "3", None),
            ("/empty", b"", "0", None),
            ("/none", b"", None, None),
            ("/cached", b"", None, None),
        ]:
            answer = c.request("GET", target)
            assert (answer.body, answer.header("content-length"), answer.header("transfer-encoding")) == (
                body,
                length,
                coding,
            ), target
            assert answer.header("date")
            head = c.request("HEAD", target)
            assert head.status == answer.status
            assert head.body == b""
        old = c.request("GET", "/generator", version="1.0")
        assert (old.body, old.header("transfer-encoding"), old.closes) == (b"abc", None, True)


def test_head_claims_nothing_of_a_body_it_does_not_know() -> None:
    """Applications answer HEAD with no body at all, and may leave the length out (RFC 9110 8.6)."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", PLAIN)
        return [] if environ["PATH_INFO"] == "/none" else [b""] if environ["PATH_INFO"] == "/empty" else [b"hello"]

    with serving_app(app) as server, Connection(server.server_address) as c:
        for version in ("1.1", "1.0"):
            for target, length in (("/none", None), ("/empty", None), ("/", "5")):
                answer = c.request("HEAD", target, "Connection: keep-alive\r\n", version=version)
                assert (answer.status, answer.header("content-length"), answer.closes) == (200, length, False)
                assert answer.header("transfer-encoding") is None


@pytest.mark.parametrize(("method", "status"), [("HEAD", "200 OK"), ("GET", "204 No Content"), ("GET", "304 Same")])
def test_a_body_that_nobody_gets_is_not_waited_for(method: str, status: str) -> None:
    """A stream of events has no end; were it run for HEAD, its thread would never come back."""
    closed = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response(status, [])
        try:
            while True:
                yield b"event\n"
        finally:
            closed.set()

    with serving_app(app, threads=1) as server, Connection(server.server_address) as c:
        assert c.request(method, "/").status == int(status[:3])
        assert closed.wait(10)
        assert c.request(method, "/").status == int(status[:3])


def answering_list(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", PLAIN)
    return [b"whole"]


def test_keep_alive_of_http_1_0() -> None:
    with serving_app(answering_list) as server, Connection(server.server_address) as c:
        assert c.request("GET", "/", "Connection: keep-alive\r\n", version="1.0").header("connection") == "keep-alive"
        assert c.request("GET", "/", version="1.0").closes
        assert c.is_closed()


def test_write_callable_and_late_exc_info() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        write = start_response("200 OK", PLAIN)
        if environ["PATH_INFO"] == "/replaced":
            try:
                raise KeyError("x")
            except KeyError as error:
                start_response("500 Oops", PLAIN, (KeyError, error, error.__traceback__))
            return [b"sorry"]
        write(b"one ")
        write(b"two ")
        return [b"three"]

    with serving_app(app) as server:
        assert get(server.server_address, "/").body == b"one two three"
        replaced = get(server.server_address, "/replaced")
        assert (replaced.status, replaced.reason, replaced.body) == (500, "Oops", b"sorry")


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        ("200 OK", [("X-A", "b\r\nX-C: d")], [b"x"]),
        ("200 OK", [("X-A", "b\0")], [b"x"]),
        ("200 OK", [("X A", "b")], [b"x"]),
        ("200 OK", [("X-A:", "b")], [b"x"]),
        ("200 OK", [("", "b")], [b"x"]),
        ("200 O\r\nK: 1", PLAIN, [b"x"]),
        ("200 OK", [("Content-Length", "1"), ("Content-Length", "1")], [b"x"]),
        ("200 OK", [("Content-Length", "-1")], [b"x"]),
        ("200 OK", [("Content-Length", "1x")], [b"x"]),
        ("200 OK", [("Content-Length", "1")], [b"too much"]),
        ("200 OK", [("Content-Length", "9")], [b"little"]),
        ("200 OK", [("Transfer-Encoding", "chunked")], [b"x"]),
        ("200 OK", [("X-A", "\u20ac")], [b"x"]),
        ("2000", PLAIN, [b"x"]),
        ("100 Continue", PLAIN, [b"x"]),
        ("OK", PLAIN, [b"x"]),
        ("200 OK", PLAIN, ["text"]),
    ],
)
def test_invalid_responses_become_500_and_a_log_line(
    status: str, headers: Any, body: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[Any]:
        start_response(status, headers)
        return body

    with (
        serving_app(app) as server,
        Connection(server.server_address) as c,
        caplog.at_level(logging.ERROR, "pkg.server"),
    ):
        answer = c.request("GET", "/")
        assert answer.status == 500
        assert answer.closes
        assert [n for n, _ in answer.headers if n in ("X-C", "K")] == []
        assert c.is_closed()
        assert len(caplog.records) == 1
        assert "invalid response" in caplog.records[0].getMessage()


def test_a_response_that_breaks_off_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    def fail_later(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        yield b"begun"
        raise RuntimeError("in the middle")

    def too_long(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "4")])
        yield b"1234"
        yield b"HTTP/1.1 200 OK\r\n\r\n"

    def too_short(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "40")])
        yield b"1234"

    for app in (fail_later, too_short):
        with (
            serving_app(app) as server,
            Connection(server.server_address) as c,
            pytest.raises((EOFError, ConnectionError)),
        ):
            c.request("GET", "/")
    with serving_app(too_long) as server, Connection(server.server_address) as c:
        assert c.request("GET", "/").body == b"1234"
        assert c.is_closed()
    assert len([r for r in caplog.records if r.levelno >= logging.ERROR]) == 3


def test_exceptions_are_answered_tersely(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        raise RuntimeError("secret detail")

    with serving_app(app) as server:
        answer = get(server.server_address, "/")
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert "secret detail" in caplog.text


def test_close_is_called_whatever_happens() -> None:
    closed: list[str] = []

    class Result:
        def __init__(self, name: str) -> None:
            self.name, self.left = name, 3

        def __iter__(self) -> Result:
            return self

        def __next__(self) -> bytes:
            if self.name == "/fail":
                raise RuntimeError("fail")
            self.left -= 1
            if not self.left:
                raise StopIteration
            return b"x"

        def close(self) -> None:
            closed.append(self.name)

    def app(environ: dict[str, Any], start_response: Any) -> Result:
        start_response("200 OK", PLAIN)
        return Result(environ["PATH_INFO"])

    with serving_app(app) as server:
        assert get(server.server_address, "/good").body == b"xx"
        assert get(server.server_address, "/fail").status == 500
    assert closed == ["/good", "/fail"]


@pytest.mark.parametrize("where", ["close", "generator"])
def test_what_fails_behind_a_whole_response_does_not_cut_it(where: str, caplog: pytest.LogCaptureFixture) -> None:
    body = b"x" * (16 << 20)  # more than the sockets take: some is left with the front

    class Result:
        def __iter__(self) -> Any:
            yield body
            if where == "generator":
                raise RuntimeError("too late")

        def close(self) -> None:
            if where == "close":
                raise RuntimeError("too late")

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [*PLAIN, ("Content-Length", str(len(body)))])
        return Result()

    limits = {"response_buffer_size": 16 << 20, "buffer_size": 32 << 20}
    with serving_app(app, **limits) as server, Connection(server.server_address) as c:
        c.send(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
        wait_for(lambda: "too late" in caplog.text)
        wait_for(lambda: server.front.stats().in_flight == 0)  # type: ignore[union-attr]
        assert c.receive().body == body
        assert c.is_closed()
        assert server.front.stats().aborted == 0  # type: ignore[union-attr]


def test_a_generator_ends_when_its_client_goes() -> None:
    closed = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        try:
            while True:
                yield b"x" * 65536
        finally:
            closed.set()

    with serving_app(app) as server:
        c = Connection(server.server_address)
        c.send(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
        c.socket.recv(100)
        c.close()
        assert closed.wait(10)


def test_a_thread_that_reads_on_after_the_response(caplog: pytest.LogCaptureFixture) -> None:
    """It gets an exception, and nothing of what comes next on the connection or in its memory."""
    outcomes: list[Any] = []
    reading = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"]

        def read_on() -> None:
            try:
                outcomes.append(body.read(5))
                reading.set()
                outcomes.append(body.read(5))
            except Exception as error:
                outcomes.append(error)

        if environ["PATH_INFO"] == "/whole":
            start_response("200 OK", PLAIN)
            return [body.read()]
        reading.clear()
        threading.Thread(target=read_on, daemon=True).start()
        assert reading.wait(10)
        time.sleep(0.05)  # it waits in the front by now
        start_response("202 Accepted", [*PLAIN, ("Content-Length", "5")])
        return [b"later"]

    with serving_app(app, body_buffer_size=1, linger_timeout=0.2, stream_bodies=True) as server:
        for n in range(3):
            with Connection(server.server_address) as c:
                c.send(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 1000\r\n\r\n01234")
                answer = c.receive()
                assert (answer.body, answer.closes) == (b"later", True)
                assert c.is_closed()
                with Connection(server.server_address) as other:
                    assert other.request("POST", "/whole", body=b"other" * 100).body == b"other" * 100
            wait_for(lambda n=n: len(outcomes) == 2 * n + 2)  # type: ignore[misc]
            assert outcomes[-2] == b"01234"
            assert isinstance(outcomes[-1], (ClientDisconnected, ValueError)), outcomes
        assert server.front.stats().in_flight == 0  # type: ignore[union-attr]


def test_one_thread_at_a_time_reads_a_body() -> None:
    refused: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        parts: list[bytes] = []

        def read() -> None:
            try:
                parts.append(environ["wsgi.input"].read())
            except RuntimeError as error:
                refused.append(str(error))

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        start_response("200 OK", PLAIN)
        return parts

    with serving_app(app, body_buffer_size=1, stream_bodies=True) as server, Connection(server.server_address) as c:
        c.send(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 100000\r\n\r\nx")
        wait_for(lambda: refused)
        c.send(b"x" * 99_999)
        assert c.receive().body == b"x" * 100_000
    assert refused == ["another thread is reading this request"]


def test_expect_continue() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/refuse":
            start_response("403 Forbidden", PLAIN)
            return [b"no"]
        start_response("200 OK", PLAIN)
        return [environ["wsgi.input"].read()]

    head = "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    with serving_app(app) as server, Connection(server.server_address) as c:
        c.send(f"POST / HTTP/1.1\r\nHost: t\r\n{head}".encode())
        assert c.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        c.send(b"hello")
        assert c.receive().body == b"hello"
        c.send(f"POST / HTTP/1.1\r\nHost: t\r\n{head}hello".encode())  # did not wait: no interim response
        answer = c.receive()
        assert (answer.body, answer.interim) == (b"hello", [])
        c.send(f"POST /refuse HTTP/1.1\r\nHost: t\r\n{head}".encode())
        answer = c.receive()
        assert (answer.status, answer.interim, answer.closes) == (403, [], True)


def test_clients_that_keep_expected_bodies_back_do_not_keep_all_workers() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read()
        start_response("200 OK", PLAIN)
        return [body]

    head = b"POST / HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    with serving_app(app, threads=2, queue_timeout=5) as server, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(Connection(server.server_address)) for _ in range(4)]
        for c in slow:
            c.send(head)
            assert c.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        with Connection(server.server_address) as other:
            assert other.request("POST", "/", body=b"other").body == b"other"
        for c in slow:
            c.send(b"hello")
            assert c.receive().body == b"hello"


def test_no_100_continue_within_a_response() -> None:
    """An application that begins to answer before it reads; the client sends its body all the same."""

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        yield b"begun, "
        yield environ["wsgi.input"].read()

    head = b"POST / HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    with serving_app(app) as server, Connection(server.server_address) as c:
        c.send(head)
        begun = b""
        while not begun.endswith(b"begun, \r\n"):
            begun += c.socket.recv(1000)
        c.send(b"hello")
        assert b"".join(iter(lambda: c.socket.recv(1000), b"")) == b"5\r\nhello\r\n0\r\n\r\n"


def test_pipelined_requests_are_answered_in_order() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", PLAIN)
        return [environ["PATH_INFO"].encode()]

    with serving_app(app) as server, Connection(server.server_address) as c:
        c.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: t\r\n\r\n" % i for i in range(500)))
        assert [c.receive().body for _ in range(500)] == [b"/%d" % i for i in range(500)]


@pytest.mark.parametrize("size", [0, 10, 5_000_000])
def test_file_wrapper(size: int) -> None:
    data = hashlib.shake_128(b"file").digest(size)
    with tempfile.TemporaryFile() as file:
        file.write(b"skip" + data)
        file.flush()

        def app(environ: dict[str, Any], start_response: Any) -> Any:
            start_response("200 OK", PLAIN)
            if environ["PATH_INFO"] == "/memory":
                return environ["wsgi.file_wrapper"](io.BytesIO(data))
            import os

            copy = open(os.dup(file.fileno()), "rb")  # noqa: SIM115 - the wrapper closes it
            copy.seek(4)
            return environ["wsgi.file_wrapper"](copy)

        with serving_app(app) as server, Connection(server.server_address) as c:
            for _ in range(2):
                answer = c.request("GET", "/file")
                assert answer.body == data
                assert answer.header("content-length") == str(size)
            assert c.request("HEAD", "/file").header("content-length") == str(size)
            assert c.request("GET", "/memory").body == data


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_file_wrapper_gives_what_read_gives(version: str, tmp_path: Path) -> None:
    """The descriptor is not always what the file-like object reads; the length is known where it is."""
    (tmp_path / "plain").write_bytes(b"0123456789")
    with gzip.open(tmp_path / "packed", "wb") as packed:
        packed.write(b"unpacked")
    temporary = tempfile.NamedTemporaryFile()  # noqa: SIM115 - the wrapper closes it
    temporary.write(b"temporary")
    temporary.seek(0)

    class Doubling(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(size) * 2

    files: dict[str, tuple[Any, bytes, bool]] = {
        "/plain": (open(tmp_path / "plain", "rb"), b"0123456789", True),  # noqa: SIM115
        "/unbuffered": (open(tmp_path / "plain", "rb", buffering=0), b"0123456789", True),  # noqa: SIM115
        "/temporary": (temporary, b"temporary", True),
        "/unpacked": (gzip.open(tmp_path / "packed"), b"unpacked", False),  # noqa: SIM115
        "/buffered": (io.BufferedReader(gzip.open(tmp_path / "packed")), b"unpacked", False),  # type: ignore[arg-type]  # noqa: SIM115
        "/own": (Doubling(tmp_path / "plain"), b"0123456789" * 2, False),
        "/sizeless": (open("/proc/self/cmdline", "rb"), Path("/proc/self/cmdline").read_bytes(), False),  # noqa: SIM115
    }

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return environ["wsgi.file_wrapper"](files[environ["PATH_INFO"]][0])

    with serving_app(app) as server:
        for target, (_, body, known) in files.items():
            with Connection(server.server_address) as c:
                answer = c.request("GET", target, version=version)
            assert answer.body == body, target
            assert answer.header("content-length") == (str(len(body)) if known else None), target
    assert all(file.closed for file, _, _ in files.values())


@pytest.mark.parametrize("length", [None, 4, 14])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_file_after_write(length: int | None, version: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    headers = PLAIN if length is None else [*PLAIN, ("Content-Length", str(length))]

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", headers)(b"head")
        return environ["wsgi.file_wrapper"](open(tmp_path / "file", "rb"))

    with serving_app(app) as server, Connection(server.server_address) as c:
        assert c.request("GET", "/", version=version).body == b"head0123456789"[:length]


def test_a_file_shorter_than_announced_is_cut_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    path = Path("/sys/kernel/uevent_seqnum")  # sysfs calls every file a page long
    if not path.exists() or path.stat().st_size <= len(path.read_bytes()):
        pytest.skip("no sysfs here")

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", PLAIN)
        return environ["wsgi.file_wrapper"](open(path, "rb"))

    with serving_app(app) as server, Connection(server.server_address) as c:
        with pytest.raises((EOFError, ConnectionError)):
            c.request("GET", "/")
        wait_for(lambda: "the file cannot be read, or is shorter than the Content-Length of" in caplog.text)


def test_a_slow_reader_costs_no_thread() -> None:
    """One thread, a client that does not read its response: the next client is served all the same."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", PLAIN)
        return [b"x" * (16 << 20 if environ["PATH_INFO"] == "/big" else 1)]

    with (
        serving_app(app, threads=1, response_buffer_size=16 << 20, buffer_size=32 << 20) as server,
        Connection(server.server_address) as slow,
    ):
        slow.send(b"GET /big HTTP/1.1\r\nHost: t\r\n\r\n")
        wait_for(lambda: server.front.stats().bytes_out > 0)  # type: ignore[union-attr]
        assert get(server.server_address, "/small").body == b"x"
        assert slow.receive().body == b"x" * (16 << 20)


def test_a_slow_sender_costs_no_thread() -> None:
    with serving_app(echo, threads=1) as server, Connection(server.server_address) as slow:
        slow.send(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\n12345")
        assert get(server.server_address, "/", method="POST", body=b"quick").body == b"quick"
        slow.send(b"67890")
        assert slow.receive().body == b"1234567890"


def test_client_that_closes_after_its_request_is_answered() -> None:
    with serving_app(echo) as server, Connection(server.server_address) as c:
        c.send(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\n\r\nabc")
        c.socket.shutdown(socket.SHUT_WR)
        assert c.receive().body == b"abc"
        assert c.is_closed()


def test_threads_serve_side_by_side() -> None:
    barrier = threading.Barrier(4)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        barrier.wait(10)
        start_response("200 OK", PLAIN)
        return [b"together"]

    with serving_app(app, threads=4) as server:
        connections = [Connection(server.server_address) for _ in range(4)]
        for c in connections:
            c.send(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
        assert [c.receive().body for c in connections] == [b"together"] * 4
        for c in connections:
            c.close()


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has the lock")
def test_a_free_threaded_python_stays_so() -> None:
    """An extension that does not declare itself brings the interpreter lock back for all when it is imported."""
    modules = "sys, pkg.service.service, pkg.http.server, pkg.database.database, psycopg.pq"
    program = f"import {modules}; print(sys._is_gil_enabled())"
    command = [sys.executable, "-W", "error", "-c", program]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


def test_queue_full_and_queue_timeout_are_503() -> None:
    release = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        release.wait(10)
        start_response("200 OK", PLAIN)
        return [b"late"]

    with serving_app(app, threads=1, max_queue=1, queue_timeout=0.3) as server:
        connections = [Connection(server.server_address) for _ in range(3)]
        began = time.monotonic()
        for n, c in enumerate(connections):
            c.send(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
            wait_for(lambda n=n: server.front.stats().requests == n + 1)  # type: ignore[union-attr, misc]
            wait_for(lambda n=n: n or server.front.stats().queued == 0)  # type: ignore[union-attr, misc]
        full = connections[2].receive()
        assert (full.status, full.header("retry-after"), full.closes) == (503, "1", True)
        late = connections[1].receive()
        assert (late.status, late.header("retry-after")) == (503, "1")
        assert time.monotonic() - began >= 0.3
        release.set()
        assert connections[0].receive().body == b"late"
        for c in connections:
            c.close()


class Asynchronous:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        pass


async def asynchronous(scope: Any, receive: Any, send: Any) -> None:
    pass


@pytest.mark.parametrize("app", [Asynchronous(), asynchronous, functools.partial(asynchronous)])
def test_asgi_applications_are_refused_at_once(app: Any) -> None:
    with pytest.raises(StartupError, match="ASGI"):
        Application(app, name="127.0.0.1", port=80)


def create_app() -> Any:
    return answering_list


def configured(name: str) -> Any:
    return answering_list


def scoped(scope: Any, receive: Any, send: Any) -> Any:
    return asynchronous(scope, receive, send)


@pytest.mark.parametrize("app", [create_app, configured, scoped])
def test_functions_of_other_arguments_are_refused_at_once(app: Any) -> None:
    with pytest.raises(StartupError, match=rf"write module:{app.__name__}\(\)"):
        Application(app, name="127.0.0.1", port=80)


def test_functions_that_take_two_arguments_are_applications() -> None:
    def with_default(environ: Any, start_response: Any, prefix: str = "") -> Any:
        return answering_list(environ, start_response)

    def decorated(*args: Any, **kwargs: Any) -> Any:
        return answering_list(*args, **kwargs)

    class Made:
        """The class that PEP 3333 has for an example."""

        def __init__(self, environ: Any, start_response: Any) -> None:
            self.result = answering_list(environ, start_response)

        def __iter__(self) -> Any:
            return iter(self.result)

    method = Bound().method
    for app in (with_default, decorated, Made, method, functools.partial(with_default, prefix="/"), lambda e, s: []):
        Application(app, name="127.0.0.1", port=80)
    with serving_app(Made) as server:
        assert get(server.server_address, "/").body == b"whole"


class Bound:
    def method(self, environ: Any, start_response: Any) -> Any:
        return answering_list(environ, start_response)


def test_lines_of_wsgi_errors_belong_to_one_request_each(caplog: pytest.LogCaptureFixture) -> None:
    both = threading.Barrier(2)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        name = environ["PATH_INFO"]
        errors = environ["wsgi.errors"]
        errors.write(f"{name} begun")
        both.wait(10)
        errors.write(", ended\nand")
        both.wait(10)
        print(" more of", name, file=errors, end="")
        errors.flush()
        start_response("200 OK", PLAIN)
        return [b""]

    with serving_app(app, threads=2) as server:
        clients = [threading.Thread(target=get, args=(server.server_address, target)) for target in ("/a", "/b")]
        for client in clients:
            client.start()
        for client in clients:
            client.join(10)
    lines = sorted(r.getMessage() for r in caplog.records if r.name == "wsgi.errors")
    assert lines == ["/a begun, ended", "/b begun, ended", "and more of /a", "and more of /b"]
