"""Targets with bytes over 127, which RFC 3986 has no place for and clients send all the same: passed on as they are."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tests.support.client import wait_for
from tests.support.ports import free_port
from tests.support.processes import ask, running

APPLICATION = """
import json, os, time
from http.server import BaseHTTPRequestHandler

def app(environ, start_response):
    if environ["PATH_INFO"].startswith("/wait"):
        while not os.path.exists("go"):
            time.sleep(0.01)
    seen = json.dumps([environ[name] for name in ("PATH_INFO", "QUERY_STRING", "RAW_URI")]).encode()
    start_response("200 OK", [("Content-Length", str(len(seen)))])
    return [seen]

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        seen = json.dumps([self.path, self.requestline]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(seen)))
        self.end_headers()
        self.wfile.write(seen)
"""


def get(address: tuple[str, int], target: bytes, version: bytes = b"1.1") -> list[str]:
    with socket.create_connection(address, 10) as client:
        client.sendall(b"GET " + target + b" HTTP/" + version + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
        out = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = out.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), out
    seen: list[str] = json.loads(body)
    return seen


TARGETS = [
    ("/\u00e4/\u20ac?q=\u65e5\u672c".encode(), "/\u00e4/\u20ac"),
    (b"/\xff\x80", "/\xff\x80"),  # no UTF-8
    (b"http://x/\xc3\xa4", "/\u00e4"),
    (b"/" + "\u00e4".encode() * 200 + b"?" + b"\xfe" * 200, "/" + "\u00e4" * 200),
]


def test_wsgi_and_the_log(tmp_path: Path) -> None:
    with running(tmp_path, APPLICATION) as process:
        for target, shown in TARGETS:
            path, _, query = target.removeprefix(b"http://x").partition(b"?")
            assert get(process.address, target) == [part.decode("latin-1") for part in (path, query, target)]
            wait_for(
                lambda shown=shown: shown in [_url_path(line) for line in process.lines()],  # type: ignore[misc]
                message=f"a line of {shown}",
            )
        # What is said in both ways is the same.
        assert get(process.address, b"/%C3%A4")[0] == get(process.address, b"/\xc3\xa4")[0] == "/\xc3\xa4"


def _url_path(line: dict[str, str]) -> str | None:
    path = line.get("url.path")
    return path.removeprefix("http://x") if path is not None else None


def test_handler_classes(tmp_path: Path) -> None:
    with running(tmp_path, APPLICATION, app="application:Handler") as process:
        for target, _ in TARGETS:
            text = target.decode("latin-1")
            assert get(process.address, target) == [text, f"GET {text} HTTP/1.1"]


def test_requests_in_flight_show_text(tmp_path: Path) -> None:
    admin = free_port()
    with (
        running(tmp_path, APPLICATION, PKG_ADMIN=f"127.0.0.1:{admin}") as process,
        socket.create_connection(process.address, 10) as client,
    ):
        client.sendall(b"GET /wait/\xc3\xa4/\xc2\x9b31m/\xff HTTP/1.1\r\nHost: x\r\n\r\n")

        def shown() -> str:
            page = ask(("127.0.0.1", admin), "/debug/requests")[2]
            return page if "/wait" in page else ""

        page = wait_for(shown, message="the request in flight")
        assert "/wait/\u00e4/\\x9b31m/\\xff" in page and "\x9b" not in page
        (tmp_path / "go").touch()
        assert client.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("target", [b"/\x7f", b"/\x1f", b"/#\xc3\xa4", b"\xc3\xa4", b"http://\xc3\xa4/"])
def test_what_stays_refused(target: bytes, tmp_path: Path) -> None:
    with running(tmp_path, APPLICATION) as process, socket.create_connection(process.address, 10) as client:
        client.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 400 ")
