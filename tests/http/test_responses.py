"""What an application cannot do to a response that is under way, through the real process."""

from __future__ import annotations

import re
import socket
import struct
from pathlib import Path

from tests.support.client import Connection, wait_for
from tests.support.ports import free_port
from tests.support.processes import Process, ask, running

LATE = """
import sys
from http.server import BaseHTTPRequestHandler

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")
        if self.path == "/interim":
            self.send_response_only(103, "Early")
        elif self.path == "/length":
            self.send_header("Content-Length", "10")
        else:
            self.send_header("X-Late", "1")
        self.wfile.write(b"world")

    def do_POST(self):
        self.send_response_only(103, "Early" + self.headers["X-Reason"].replace("|", "\\r\\n"))
        self.end_headers()
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_PUT(self):
        self.send_response(299, "")
        self.send_header("Content-Length", "0")
        self.end_headers()

def app(environ, start_response):
    '''A head that is too long to be sent, then another.'''
    if environ["PATH_INFO"] == "/body":
        environ["wsgi.input"].read()
    if environ["PATH_INFO"] == "/bare":
        start_response("299", [("Content-Length", "0")])
        return []
    write = start_response("200 OK", [("A", "x" * 30000)] * 34 + [("B", "y" * 28350)])
    try:
        write(b"hi")
    except Exception:
        if environ["PATH_INFO"] == "/again":
            write(b"hi")
        start_response("200 OK", [("Content-Length", "11")], sys.exc_info())
    return [b"hello", b" world"]

def slow(environ, start_response):
    start_response("200 OK", [("Content-Length", "3000000")])
    return [b"x" * 3000000]
"""


def exchange(process: Process, data: bytes) -> bytes:
    """All that comes until the connection ends, by a reset or not."""
    with socket.create_connection(process.address, 10) as client:
        client.sendall(data)
        out = b""
        try:
            while part := client.recv(65536):
                out += part
        except ConnectionResetError:
            out += b"<reset>"
        return out


def test_nothing_follows_the_head_but_the_body(tmp_path: Path) -> None:
    with running(tmp_path, LATE, app="application:Handler") as process:
        for path in ("/x", "/length", "/interim"):
            got = exchange(process, b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
            # Framed as its head says, and cut off at the end, for the client to see.
            assert got.endswith(b"\r\n\r\n5\r\nhello\r\n5\r\nworld\r\n<reset>"), (path, got)
        process.await_message("a header was sent after the head of the response: b'X-Late: 1")


def test_an_interim_response_has_a_clean_reason(tmp_path: Path) -> None:
    with running(tmp_path, LATE, app="application:Handler") as process:
        request = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Reason: %s\r\nContent-Length: 0\r\n\r\n"
        split = exchange(process, request % b"|X-Injected: 1||HTTP/1.1 200 Injected|Content-Length: 0|")
        assert split.startswith(b"HTTP/1.1 500 ") and b"Injected" not in split
        assert exchange(process, request % b"Hints").startswith(b"HTTP/1.1 103 EarlyHints\r\n\r\nHTTP/1.1 200 OK\r\n")


def test_the_space_before_an_absent_reason_stays(tmp_path: Path) -> None:
    with running(tmp_path, LATE) as process:
        assert exchange(process, b"GET /bare HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 299 \r\n")  # RFC 9112 4
    with running(tmp_path, LATE, app="application:Handler") as process:
        assert exchange(process, b"PUT / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 299 \r\n")


def test_a_head_that_could_not_be_sent_leaves_nothing_behind(tmp_path: Path) -> None:
    with running(tmp_path, LATE) as process:
        status, headers, text = ask(process.address, "/")
        assert (status, headers["content-length"], text) == (200, "11", "hello world")
        assert "transfer-encoding" not in headers and "a" not in headers
        assert ask(process.address, "/again")[0] == 500


def metric(port: int, name: str) -> float:
    page = ask(("127.0.0.1", port), "/metrics")[2]
    found = re.search(rf"^{name} (.*)$", page, re.MULTILINE)
    assert found, name
    return float(found[1])


def reader(process: Process) -> socket.socket:
    """A client that has read the head of a long response, and reads no more."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(process.address)
    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
    return client


ABORTED = "pkg_requests_aborted_total"


def test_a_response_cut_off_counts_once(tmp_path: Path) -> None:
    port = free_port()
    for buffer in ("4MiB", "64KiB"):  # the rest lies with the loop; or its worker waits
        with running(
            tmp_path, LATE, app="application:slow", PKG_ADMIN=f"127.0.0.1:{port}", PKG_WRITE_TIMEOUT="0.3",
            PKG_RESPONSE_BUFFER_SIZE=buffer, PKG_MIN_BODY_RATE="1MiB",
        ) as process:  # fmt: skip
            client = reader(process)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            wait_for(lambda: metric(port, ABORTED) == 1, 10, "the reset to be counted")
            client = reader(process)
            wait_for(lambda: metric(port, ABORTED) == 2, 10, "the write_timeout to be counted")
            client.close()
            with Connection(process.address) as whole:
                assert len(whole.request("GET", "/").body) == 3000000
            wait_for(lambda: metric(port, "pkg_requests_served_total") == 1, 10, "the whole one to be counted")
            assert metric(port, ABORTED) == 2

            def balanced() -> bool:
                accepted, closed, there = (
                    metric(port, f"pkg_connections{suffix}") for suffix in ("_accepted_total", "_closed_total", "")
                )
                return accepted == closed + there == 3 and there == 0

            wait_for(balanced, 10, "accepted = closed + open")


def test_a_head_for_which_no_buffer_is_left_may_be_sent_again(tmp_path: Path) -> None:
    sizes = {f"PKG_{name}_SIZE": "1MiB" for name in ("BUFFER", "RESPONSE_BUFFER", "BODY_BUFFER")}
    with running(tmp_path, LATE, PKG_BODY_SPOOL_SIZE="0", **sizes) as process:
        clients = [socket.create_connection(process.address, 10) for _ in range(60)]
        for client in clients:  # heads that do not end; a buffer for each would take 1.7 MiB
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20000)
        got = clients[-1].recv(65536)
        assert got.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: 1\r\n" in got
        small = [socket.create_connection(process.address, 10) for _ in range(30)]
        for client in small:  # what is left of the buffers, to the last 2 KiB
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 3000)
        assert small[-1].recv(65536).startswith(b"HTTP/1.1 503 ")
        # A body in chunks, behind a head that leaves it too little of its first buffer.
        head = b"POST /body HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nX: "
        got = exchange(process, head + b"y" * 1500 + b"\r\n\r\n7d0\r\n" + b"z" * 2000 + b"\r\n0\r\n\r\n")
        assert got.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: 1\r\n" in got, got
        for client in clients + small:
            client.close()


def test_a_proxy_without_its_header_is_refused(tmp_path: Path) -> None:
    settings = {"PKG_TRUSTED_PROXIES": "127.0.0.1/32", "PKG_PROXY_PROTOCOL": "true"}
    plain = b"GET /bare HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with running(tmp_path, LATE, **settings) as process:
        assert exchange(process, plain).startswith(b"HTTP/1.1 400 ")
        assert exchange(process, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + plain).startswith(b"HTTP/1.1 299 ")
    with running(tmp_path, LATE, **settings, PKG_PROXY_PROTOCOL_OPTIONAL="true") as process:
        assert exchange(process, plain).startswith(b"HTTP/1.1 299 ")
        assert exchange(process, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + plain).startswith(b"HTTP/1.1 299 ")


def test_options_of_the_whole_server_speaks_for_nobody(tmp_path: Path) -> None:
    with running(tmp_path, LATE) as process:
        got = exchange(process, b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert got.startswith(b"HTTP/1.1 200 ") and b"\r\nAllow:" not in got
