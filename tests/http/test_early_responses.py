"""Responses that come before the client has sent the whole body: it can send all of it, and gets the response."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support.client import TIMEOUT
from tests.support.processes import running

WSGI = """
def app(environ, start_response):
    raise AssertionError("the body is too large")
"""
ASGI = """
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
"""
SIZE = 20_000_000  # more than all buffers of both ends hold


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("source", "status"), [(WSGI, 413), (ASGI, 200)], ids=["refused", "asgi"])
def test_a_client_that_sends_on_gets_the_response(tmp_path: Path, source: str, status: int, workers: int) -> None:
    """In half of the cases the server did not read on, and reset the connection after `linger_timeout`."""
    environ = {"WEB_CONCURRENCY": str(workers), "PKG_LINGER_TIMEOUT": "5s"}
    environ |= {"PKG_MAX_BODY_SIZE": "1MiB" if status == 413 else "1GiB"}
    with running(tmp_path, source, **environ) as process:
        for _ in range(12):
            with socket.create_connection(process.address, TIMEOUT) as client:
                client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % SIZE + bytes(SIZE))
                with client.makefile("rb") as file:
                    assert file.readline().split()[1] == b"%d" % status
                    file.read()  # to the end, not to a reset
