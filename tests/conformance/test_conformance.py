"""Every case of cases.py whole, byte by byte and with bytes after it, through the parser and through a real socket."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pkg import _core
from tests.conformance.cases import CASES, Case, Request, chunked, head, post
from tests.conformance.echo import app, asgi, handler
from tests.support import over_unix
from tests.support.client import dial
from tests.support.listeners import opened, tcp, unix
from tests.support.ports import free_port
from tests.support.processes import running
from tests.support.servers import serving, serving_app, serving_asgi

AFTER = Request("GET", "/after")
AFTER_BYTES = b"GET /after HTTP/1.1\r\nHost: t\r\n\r\n"
EACH = pytest.mark.parametrize("case", [c for c in CASES if c.requests or c.refusal or c.partial], ids=lambda c: c.id)
UNDECIDED = [c for c in CASES if not (c.requests or c.refusal or c.partial)]

LONG = 1000  # bytes: longer ones are not sent byte by byte


def wanted(case: Case, after: bool) -> tuple[list[Request], int]:
    """Requests and refusal, for the case or for the case with AFTER_BYTES behind it."""
    requests = list(case.requests)
    if after and not case.close:
        requests.append(AFTER)
    return requests, case.refusal


# ------------------------------------------------------------------ the parser


class Reader:
    """A connection without a network: what a server makes of bytes, with nothing but the parser."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.refusal = 0
        self.closed = False
        self._buffer = b""
        self._seen = 0
        self._head: _core.Request | None = None
        self._decoder: _core.ChunkedDecoder | None = None
        self._body = b""

    def feed(self, data: bytes) -> None:
        self._buffer += data
        try:
            while not self.closed and self._step():
                pass
        except _core.ParseError as error:
            self.refusal, self.closed = error.status, True

    def _step(self) -> bool:
        if self._head is None:
            if not self._buffer:
                return False
            parsed = _core.parse_head(self._buffer, self._seen)
            self._seen = len(self._buffer)
            if parsed is None:
                return False
            self._buffer, self._seen = self._buffer[parsed.head_size :], 0
            self._head, self._body = parsed, b""
            self._decoder = _core.ChunkedDecoder() if parsed.chunked else None
        if self._decoder is not None:
            data, consumed = self._decoder.decode(self._buffer)
            self._body += data
            self._buffer = self._buffer[consumed:]
            if not self._decoder.complete:
                return False
        else:
            length = self._head.content_length or 0
            if len(self._buffer) < length:
                return False
            self._body, self._buffer = self._buffer[:length], self._buffer[length:]
        self.requests.append(Request(self._head.method, self._head.target, self._body))
        self.closed = not self._head.keep_alive
        self._head = None
        return True


def read(chunks: Iterable[bytes]) -> tuple[list[Request], int, bool]:
    reader = Reader()
    for data in chunks:
        reader.feed(data)
    return reader.requests, reader.refusal, reader.closed


def every_byte(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def by_parser(case: Case) -> Case:
    """The case as the parser alone decides it, without what is the front's and the application's."""
    if case.section == "9112-3.2" and case.refusal and case.name.startswith("host-b"):
        return replace(case, requests=(Request(),), refusal=0, close=False)  # as probes come with any text there
    if case.section == "9112-3.2.3" and case.refusal == 501:
        return replace(case, requests=(Request("CONNECT", case.name.partition("-")[2]),), refusal=0, close=False)
    if case.section == "9112-7.1.2" and case.name in ("trailers-65", "trailer-of-9000"):
        return replace(case, refusal=431)  # the front says 400 of any malformed body
    if case.name == "length-of-head":
        return replace(case, requests=(Request("HEAD", "/", b"abc"),))  # an answer to HEAD cannot show the body
    return case


@EACH
def test_parser(case: Case) -> None:
    case = by_parser(case)
    for pieces in ([case.raw], every_byte(case.raw), [case.raw[:7], case.raw[7:]]):
        requests, refusal, closed = read(pieces)
        assert (requests, refusal) == wanted(case, after=False)
        assert closed == case.close
    if not case.partial:
        for pieces in ([case.raw + AFTER_BYTES], [case.raw, AFTER_BYTES], every_byte(case.raw + AFTER_BYTES)):
            requests, refusal, _ = read(pieces)
            assert (requests, refusal) == wanted(case, after=True)


@pytest.mark.parametrize("case", UNDECIDED, ids=lambda c: c.id)
def test_undecided_cases_are_one_thing_or_the_other(case: Case) -> None:
    """RFC 3986 forbids, the field tolerates: taken as it is or refused, but however cut the same."""
    first = read([case.raw + AFTER_BYTES])
    assert first[1] == 400 or len(first[0]) == 2
    assert read(every_byte(case.raw + AFTER_BYTES)) == first


# ------------------------------------------------------------------ every byte in every place

FRAMES = {
    "method": lambda b: head(line=b"G" + b + b"T / HTTP/1.1"),
    "target": lambda b: head(line=b"GET /a" + b + b"b HTTP/1.1"),
    "query": lambda b: head(line=b"GET /?a" + b + b"b HTTP/1.1"),
    "name": lambda b: head(b"X" + b + b"Y: z"),
    "value": lambda b: head(b"X: a" + b + b"b"),
    "long-value": lambda b: head(b"X: " + b"a" * 100 + b + b"b" * 100),
    "host": lambda b: head(host=b"Host: a" + b + b"b\r\n"),
    "length": lambda b: post(b"Content-Length: " + b, body=b"abcdefghi"),
    "coding": lambda b: post(b"Transfer-Encoding: chunked" + b, body=b"0\r\n\r\n"),
    "after-name": lambda b: head(b"X" + b + b": z"),
    "line-end": lambda b: b"GET / HTTP/1.1\r\nHost: t\r\nX: y\r" + b + b"\r\n",
    "after-line": lambda b: b"GET / HTTP/1.1\r\nHost: t\r\n" + b + b"X: y\r\n\r\n",
    "chunk-size": lambda b: chunked(b + b"\r\n" + b"x" * 15 + b"\r\n0\r\n\r\n"),
    "chunk-after-size": lambda b: chunked(b"1" + b + b"\r\nx\r\n0\r\n\r\n"),
    "chunk-extension": lambda b: chunked(b"1;a" + b + b"b\r\nx\r\n0\r\n\r\n"),
    "chunk-quoted": lambda b: chunked(b'1;a="' + b + b'"\r\nx\r\n0\r\n\r\n'),
    "chunk-end": lambda b: chunked(b"1\r\nx\r" + b + b"0\r\n\r\n"),
    "trailer-name": lambda b: chunked(b"0\r\nX" + b + b"Y: z\r\n\r\n"),
    "trailer-value": lambda b: chunked(b"0\r\nX: a" + b + b"b\r\n\r\n"),
}
TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")  # RFC 9110 5.6.2
TEXT = frozenset({9, *range(32, 127), *range(128, 256)})  # RFC 9110 5.5: field-vchar, SP, HTAB
# What a target may hold and we let pass: more than RFC 3986, as clients send UTF-8 and other bytes as they are.
URI = (frozenset(range(33, 127)) | frozenset(range(128, 256))) - frozenset(b"#")
HOST = TOKEN - frozenset(b"#^`|%") | frozenset(b"()=;,")  # RFC 3986: unreserved and sub-delims
DIGITS = frozenset(b"0123456789")
HEX = frozenset(b"0123456789abcdefABCDEF")
ACCEPTED = {
    "method": TOKEN,
    "target": URI,
    "query": URI,
    "name": TOKEN | {ord(":")},  # the name then ends there
    "value": TEXT,
    "long-value": TEXT,
    "host": HOST,
    "length": DIGITS,
    "coding": frozenset(b" \t"),
    "after-name": TOKEN | {ord(":")},
    "line-end": frozenset(b"\n"),
    "after-line": TOKEN,
    "chunk-size": frozenset(b"0fF"),  # 15 bytes follow
    "chunk-after-size": frozenset(),  # another digit is another size, white space needs an extension
    "chunk-extension": TOKEN | frozenset(b"=;"),
    "chunk-quoted": TEXT - frozenset(b'"\\'),
    "chunk-end": frozenset(b"\n"),
    "trailer-name": TOKEN | {ord(":")},
    "trailer-value": TEXT,
}


def accepted(frame: str, value: int) -> bool:
    """Whether exactly this one message is taken, and then the next."""
    data = FRAMES[frame](bytes([value]))
    results = [read([data + AFTER_BYTES]), read(every_byte(data + AFTER_BYTES)), read([data, AFTER_BYTES])]
    assert results[0] == results[1] == results[2], data
    requests, refusal, _ = results[0]
    assert AFTER not in requests[:-1]
    return refusal == 0 and len(requests) == 2 and requests[1] == AFTER


@pytest.mark.parametrize("frame", FRAMES)
def test_every_byte(frame: str) -> None:
    taken = {value for value in range(256) if accepted(frame, value)}
    expected = set(ACCEPTED[frame])
    if frame == "length":
        expected = {ord("9")}  # nine bytes follow, and other lengths leave some of them as a request
    if frame == "chunk-size":
        expected = {ord("f"), ord("F")}
    if frame == "host":
        expected = taken  # the front's to refuse: see test_every_byte_of_host
    assert taken == expected, (sorted(taken - expected), sorted(expected - taken))


# ------------------------------------------------------------------ the socket


Address = tuple[str, int] | str


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """As `handler` does it, with the method in X-Echo."""

    def start(status: str, headers: list[tuple[str, str]]) -> Any:
        return start_response(status, [(n, environ["REQUEST_METHOD"] if n == "X-Echo" else v) for n, v in headers])

    return app(environ, start)


@pytest.fixture(scope="module", params=["handler-tcp", "handler-unix", "wsgi-unix", "asgi-tcp", "wsgi-workers"])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """Of a server; the results are the same over TCP, over a Unix socket, and through worker processes."""
    kind, _, family = request.param.partition("-")
    if family == "workers":
        source = "from tests.conformance.test_conformance import wsgi as app"
        settings = {"WEB_CONCURRENCY": "2", "PYTHONPATH": str(Path(__file__).parents[2]), "PKG_ADMIN": "off"}
        with running(tmp_path_factory.mktemp("workers"), source, LOG_LEVEL="info", **settings) as process:
            yield process.address
        return
    path = over_unix.new_path()
    try:
        with opened(tcp(), unix(path)) as listeners:
            serves = serving(handler, threads=2, listeners=listeners)
            if kind == "wsgi":
                serves = serving_app(wsgi, threads=2, listeners=listeners)
            if kind == "asgi":
                serves = serving_asgi(asgi, listeners=listeners)
            with serves:
                yield str(path) if family == "unix" else listeners[0].socket.getsockname()
    finally:
        over_unix.forget(path)


def exchange(address: Address, pieces: Iterable[bytes]) -> tuple[list[Request], list[int], bytes]:
    """Sends, says FIN, reads to the end: what was given to the application, the refusals, the raw answer."""
    with dial(address) as s:
        received = b""
        try:
            for data in pieces:
                s.sendall(data)
            s.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # closed on us in the middle of what it had refused
        try:
            while data := s.recv(65536):
                received += data
        except ConnectionResetError:
            pass
    return (*parse_answers(received), received)


def parse_answers(data: bytes) -> tuple[list[Request], list[int]]:
    requests, refusals = [], []
    while data:
        head_bytes, blank, data = data.partition(b"\r\n\r\n")
        assert blank, "cut in the middle of a head"
        lines = head_bytes.decode("latin-1").split("\r\n")
        assert lines[0].startswith("HTTP/1.1 "), lines[0]
        status = int(lines[0][9:12])
        if status < 200:
            continue
        assert not refusals, "an answer after a refusal"
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines[1:])}
        if headers.get("x-echo") == "HEAD":
            requests.append(Request("HEAD", "/", b""))
            continue
        size = int(headers["content-length"])
        body, data = data[:size], data[size:]
        assert len(body) == size
        if status == 200:
            said = json.loads(body)
            requests.append(Request(said["method"], said["target"], said["body"].encode("latin-1")))
        else:
            assert headers["content-type"].startswith("text/plain")
            assert headers["connection"] == "close"
            assert size < 200
            assert b"<" not in body
            refusals.append(status)
    return requests, refusals


def in_a_scope(request: Request) -> Request:
    """As ASGI has it: path and query, whatever the form of the target, and no `?` without a query."""
    origin = re.sub(r"^(?i:https?)://[^/?]*", "", request.target)
    path, _, query = origin.partition("?")
    return request._replace(target=(path or "/") + (f"?{query}" if query else ""))


def check(address: Address, case: Case, pieces: Iterable[bytes], after: bool, has_scopes: bool) -> None:
    requests, refusals, received = exchange(address, pieces)
    expected, refusal = wanted(case, after)
    if has_scopes:
        expected = [in_a_scope(request) for request in expected]
    assert requests == expected, received
    if case.partial:
        assert refusals in ([], [400], [408]), received
    else:
        assert refusals == ([refusal] if refusal else []), received


@pytest.fixture
def has_scopes(request: pytest.FixtureRequest) -> bool:
    return "asgi-tcp" in request.node.name


@EACH
def test_socket(address: Address, has_scopes: bool, case: Case) -> None:
    check(address, case, [case.raw], False, has_scopes)
    if not case.partial:
        check(address, case, [case.raw + AFTER_BYTES], True, has_scopes)
        check(address, case, [case.raw, AFTER_BYTES], True, has_scopes)
    if len(case.raw) <= LONG:
        check(address, case, every_byte(case.raw), False, has_scopes)


def test_every_byte_of_host(address: Address) -> None:
    taken = set()
    for value in range(256):
        requests, _, _ = exchange(address, [FRAMES["host"](bytes([value]))])
        if requests:
            taken.add(value)
    assert taken == HOST, (sorted(taken - HOST), sorted(HOST - taken))


def test_asterisk_form(address: Address) -> None:
    """`OPTIONS *` asks the server, not the application: 200, and nothing is handled."""
    data = head(line=b"OPTIONS * HTTP/1.1") + AFTER_BYTES
    for pieces in ([data], every_byte(data)):
        with dial(address) as s:
            for piece in pieces:
                s.sendall(piece)
            s.shutdown(socket.SHUT_WR)
            received = b"".join(iter(lambda s=s: s.recv(65536), b""))  # type: ignore[misc]
        assert received.startswith(b"HTTP/1.1 200 OK\r\n")
        assert received.count(b"HTTP/1.1 ") == 2
        assert received.count(b"X-Echo") == 1
        assert b'"target": "/after"' in received


# ------------------------------------------------------------------ somebody else's cases


DRIVER = Path(os.environ.get("HTTP_DRIVER", ""))  # a folder with a drive.py and its cases.jsonl


# What an interface cannot say: ASGI's scope is the same for `/a?` and `/a`.
UNSAID = {"app": set(), "asgi": {"own/request-line/target-empty-query"}}


@pytest.mark.timeout(300)
@pytest.mark.skipif("HTTP_DRIVER" not in os.environ, reason="HTTP_DRIVER names no driver with cases of its own")
@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("name", UNSAID)
def test_an_independent_driver(name: str, workers: str, tmp_path: Path) -> None:
    """Somebody else's cases: every one of level must and should has to pass exactly."""
    port = free_port()
    environ = {
        "PORT": str(port),
        "HOST": "127.0.0.1",
        "PKG_ADMIN": "off",
        "PKG_DRAIN_DELAY": "0",
        "LOG_LEVEL": "error",
        "WEB_CONCURRENCY": workers,
    }
    with subprocess.Popen(
        [sys.executable, "-m", "pkg", f"tests.conformance.echo:{name}"],
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            from tests.support.client import get, wait_for

            def answers() -> bool:
                try:
                    return get(("127.0.0.1", port), "/").status == 200
                except OSError:
                    return False

            wait_for(answers, 20, "an answer")
            out = tmp_path / "out.json"
            run = subprocess.run(
                [
                    sys.executable,
                    DRIVER / "drive.py",
                    f"127.0.0.1:{port}",
                    DRIVER / "cases.jsonl",
                    "-j",
                    "4",
                    "--json",
                    out,
                ],
                capture_output=True,
                text=True,
                timeout=240,
            )
            assert out.exists(), run.stdout + run.stderr
            verdicts = json.loads(out.read_text())
        finally:
            process.terminate()
            process.wait(20)
    results = verdicts["rows"]
    wrong = [r for r in results if r["level"] in ("must", "should") and r["verdict"] != "pass"]
    assert {r["id"] for r in wrong} == UNSAID[name], wrong
    assert len(results) > 500
