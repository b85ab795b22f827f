"""A request that kills whoever serves it: it is told so, the log names it, and nobody else's request is harmed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.client import Connection, wait_for
from tests.workers.test_workers import rows, workers

DEATHS = {
    "/exit": "exited with code 3",
    "/segfault": "was killed by SIGSEGV",
    "/kill": "was killed by SIGKILL",
}
WAYS = [("POST", "1.0", 0), ("GET", "1.1", 20), ("POST", "1.1", 20)]  # each with a death
KILLER = """
import ctypes, os, signal, time

def die(path):
    if path == "/exit":
        os._exit(3)
    elif path == "/segfault":
        ctypes.string_at(0)
    elif path == "/kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif path == "/slow":
        time.sleep(0.5)
"""
KINDS = {
    "wsgi": KILLER
    + """
def app(environ, start_response):
    environ["wsgi.input"].read()
    die(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Length", "4")])
    return [b"done"]
""",
    "handler": KILLER
    + """
from http.server import BaseHTTPRequestHandler
class app(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        die(self.path.split("?")[0])
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"done")
    do_POST = do_GET
""",
    "asgi": KILLER
    + """
import asyncio
async def app(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == "/slow":
        await asyncio.sleep(0.5)
    else:
        die(scope["path"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"done"})
""",
}
BODY = "Content-Length: 3\r\n\r\nabc"


def head(method: str, path: str, version: str = "1.1") -> bytes:
    return f"{method} {path} HTTP/{version}\r\nHost: x\r\n{BODY if method == 'POST' else chr(13) + chr(10)}".encode()


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_that_kills_whoever_serves_it(tmp_path: Path, kind: str) -> None:
    """By each method, in HTTP/1.0, kept alive, and before others in one packet: 502, and an end without a reset."""
    with workers(tmp_path, KINDS[kind], PKG_LIFESPAN="off", PKG_THREADS="2", PKG_ACCESS_LOG="off") as process:
        for (path, how), (method, version, followers) in zip(DEATHS.items(), WAYS, strict=True):
            wait_for(lambda: [row["is_ready"] for row in rows(process)] == [True, True], 20, "workers")
            with Connection(process.address) as killer, Connection(process.address) as other:
                if version == "1.1":
                    assert killer.request("GET", "/").body == b"done"
                # With the other worker, which a GET that is repeated kills as well; then this one is repeated too.
                other.send(head("GET", "/slow"))
                wait_for(lambda: sum(row["in_flight"] for row in rows(process)) == 1, 5, "the other request")
                killer.send(head(method, path, version) + head("GET", "/") * followers)
                answer = killer.receive()
                assert (answer.status, answer.header("Retry-After"), answer.closes) == (502, "1", True)
                assert killer.socket.recv(1) == b""  # raises ConnectionResetError after a reset
                assert other.receive().body == b"done"
            process.await_message(rf"^worker . .process \d+. {how} after .* s, while serving .*{method} {path} .502.")
