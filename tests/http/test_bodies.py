"""A body is what the client has sent, however the application reads it, and one read whole keeps the connection.

Sizes are those around the buffers and rings that bodies go through, in one process and with a worker process.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.support.client import TIMEOUT
from tests.support.processes import running

WSGI = """
import hashlib
def app(environ, start_response):
    file, left = environ["wsgi.input"], int(environ["CONTENT_LENGTH"])
    path = environ["PATH_INFO"]
    if path == "/length":
        parts = [file.read(left)]
    elif path == "/end":
        parts = [file.read()]
    elif path == "/parts":
        parts = []
        while left:
            parts.append(file.read(min(left, 50000)))
            left -= len(parts[-1])
    elif path == "/lines":
        parts = list(file)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [hashlib.sha1(b"".join(parts)).hexdigest().encode()]
"""
HANDLER = """
import hashlib
from http.server import BaseHTTPRequestHandler
class app(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        left, step = int(self.headers["Content-Length"]), {"/length": 1 << 30, "/parts": 50000}.get(self.path)
        parts = []
        while left:
            parts.append(self.rfile.read(min(left, step)) if step else self.rfile.readline())
            left -= len(parts[-1])
        body = hashlib.sha1(b"".join(parts)).hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
"""
ASGI = """
import hashlib
async def app(scope, receive, send):
    digest, more = hashlib.sha1(), True
    while more:
        message = await receive()
        digest.update(message.get("body", b""))
        more = message.get("more_body", False)
    headers = [(b"content-length", b"40")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": digest.hexdigest().encode()})
"""
WAYS = {WSGI: ("/length", "/end", "/parts", "/lines"), HANDLER: ("/length", "/parts", "/lines"), ASGI: ("/",)}
KIB = 1024
SIZES = (
    1,
    64 * KIB - 1,
    64 * KIB,
    64 * KIB + 1,
    256 * KIB - 1,
    256 * KIB,
    256 * KIB + 1,
    512 * KIB,
    1024 * KIB,
    5000 * KIB,
)


def in_parts(body: bytes) -> Iterator[bytes]:
    for at in range(0, len(body), 100_000):
        yield body[at : at + 100_000]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("source", [WSGI, HANDLER, ASGI], ids=["wsgi", "handler", "asgi"])
def test_bodies_arrive_and_keep_the_connection(tmp_path: Path, source: str, workers: int) -> None:
    with (
        running(tmp_path, source, WEB_CONCURRENCY=str(workers)) as process,
        contextlib.closing(HTTPConnection(*process.address, timeout=TIMEOUT)) as connection,
    ):
        connection.connect()
        for size in SIZES:
            body = (b"%d\n" % size * (size // 2 + 1))[:size]
            for way in WAYS[source]:
                for sent in (body, in_parts(body)):  # with a Content-Length, and chunked
                    connection.request("POST", way, sent)
                    response = connection.getresponse()
                    what = f"{way} {size} {type(sent).__name__}"
                    assert (response.status, response.read()) == (200, hashlib.sha1(body).hexdigest().encode()), what
                    assert not response.will_close, what
