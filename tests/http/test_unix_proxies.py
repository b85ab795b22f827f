"""Proxies on a Unix socket: they are believed about the client only if `trusted_proxies` contains `unix`."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support.processes import running

APPLICATION = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['REMOTE_ADDR']!r} {environ['wsgi.url_scheme']}".encode()]
"""
FIELDS = b"X-Forwarded-For: 203.0.113.7, 10.1.2.3\r\nX-Forwarded-Proto: https\r\n"


def told(client: socket.socket) -> str:
    """What the application says about the client, over a connection that is ready to send."""
    with client:
        client.settimeout(30)
        client.sendall(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n" + FIELDS + b"\r\n")
        return b"".join(iter(lambda: client.recv(4096), b"")).partition(b"\r\n\r\n")[2].decode()


@pytest.mark.parametrize(
    ("proxies", "over_unix", "over_tcp"),
    [
        ("", "'' http", "'127.0.0.1' http"),
        ("unix", "'10.1.2.3' https", "'127.0.0.1' http"),
        ("unix,10.0.0.0/8", "'203.0.113.7' https", "'127.0.0.1' http"),
        ("127.0.0.0/8", "'' http", "'10.1.2.3' https"),
    ],
)
def test_who_is_believed(tmp_path: Path, proxies: str, over_unix: str, over_tcp: str) -> None:
    listen = "127.0.0.1:0,unix:app.sock"
    with running(
        tmp_path, APPLICATION, ready=False, PKG_LISTEN=listen, PKG_TRUSTED_PROXIES=proxies, PKG_ADMIN="off"
    ) as service:
        port = int(service.await_message(r"^serving .* on 127\.0\.0\.1:(\d+),")[1])
        unix = socket.socket(socket.AF_UNIX)
        unix.connect(str(tmp_path / "app.sock"))
        assert told(unix) == over_unix
        assert told(socket.create_connection(("127.0.0.1", port), 30)) == over_tcp
        assert service.stop() == 0
    assert not (tmp_path / "app.sock").exists()
