"""Clients of the admin listener that dawdle: whoever has the token is answered all the same."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import pytest

from tests.support.client import get
from tests.support.ports import free_port
from tests.support.processes import running

TOKEN = "abcdefghijklmnopqrstuvwxyz0123"
HELLO = "def app(environ, start_response):\n    start_response('200 OK', [])\n    return []\n"
# What those send who then send nothing more: a part of a head, nothing, a head without its body, a wrong token.
DAWDLERS = {
    "a part of a head": b"GET ",
    "nothing": b"",
    "no body": f"POST /drain HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 100\r\n\r\n".encode(),
    "a wrong token": b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("sent", DAWDLERS.values(), ids=DAWDLERS.keys())
def test_a_scrape_is_answered_while_others_dawdle(tmp_path: Path, sent: bytes) -> None:
    port = free_port()
    with (
        running(tmp_path, HELLO, PKG_ADMIN=f"0.0.0.0:{port}", PKG_ADMIN_TOKEN=TOKEN, PKG_DRAIN_DELAY="0") as process,
        contextlib.ExitStack() as stack,
    ):
        address = ("127.0.0.1", port)
        allowed = f"Authorization: Bearer {TOKEN}\r\n"
        assert get(address, "/metrics", allowed).status == 200
        for n in (4, 30):
            for _ in range(n):
                slow = stack.enter_context(socket.create_connection(address, 5))
                slow.sendall(sent)
            began = time.monotonic()
            assert get(address, "/metrics", allowed).status == 200
            assert time.monotonic() - began < 1.5  # 30 at 4 threads, 30 ms each; a thread was held for 5 s before
        assert process.stop() == 0


def test_a_slow_client_with_the_listener_to_itself_is_served(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path, HELLO, PKG_ADMIN=f"127.0.0.1:{port}"), socket.create_connection(("127.0.0.1", port)) as slow:
        slow.settimeout(10)
        for part in (b"GET /debug/pool HT", b"TP/1.1\r\nHost: local", b"host\r\n\r\n"):
            slow.sendall(part)
            time.sleep(0.2)
        assert slow.recv(100).startswith(b"HTTP/1.1 200")
