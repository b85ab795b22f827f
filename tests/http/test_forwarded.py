"""Who is believed about the client: X-Forwarded-* and the PROXY protocol, of configured peers only."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_network
from typing import Any

import pytest

from pkg.http.forwarded import Forwarded, has_unix, networks
from tests.support.client import Connection
from tests.support.servers import serving_app

LOOPBACK = [ip_network("127.0.0.0/8"), ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
REQUEST = b"GET / HTTP/1.1\r\nHost: t\r\n\r\n"


def who(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [f"{environ['REMOTE_ADDR']} {environ['REMOTE_PORT']} {environ['wsgi.url_scheme']}".encode()]


@pytest.mark.parametrize(
    ("proxies", "headers", "expected"),
    [
        (LOOPBACK, "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n", "192.0.2.7 0 https"),
        (LOOPBACK, "X-Forwarded-For: 192.0.2.1, 192.0.2.7, 10.1.2.3\r\n", "192.0.2.7 0 http"),
        (LOOPBACK, "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 192.0.2.7\r\n", "192.0.2.7 0 http"),
        (LOOPBACK, "X-Forwarded-For: 10.9.9.9, 10.1.2.3\r\n", "10.9.9.9 0 http"),
        (LOOPBACK, "X-Forwarded-For: evil, 10.1.2.3\r\n", "10.1.2.3 0 http"),
        (LOOPBACK, "X-Forwarded-For: 2001:db8::1, fd00::2\r\n", "2001:db8::1 0 http"),
        (LOOPBACK, "X-Forwarded-For: fe80::1%eth0, fd00::2\r\n", "fe80::1%eth0 0 http"),
        (LOOPBACK, f"X-Forwarded-For: fe80::1%{'e' * 60}, fd00::2\r\n", "fd00::2 0 http"),
        (LOOPBACK, "X-Forwarded-For: 203.0.113.5:4711\r\n", "203.0.113.5 4711 http"),
        (LOOPBACK, "X-Forwarded-For: [2001:db8::1]:4711, [fd00::2]:80, 10.1.2.3:1\r\n", "2001:db8::1 4711 http"),
        (LOOPBACK, "X-Forwarded-For: [2001:db8::1]\r\n", "2001:db8::1 0 http"),
        (LOOPBACK, "X-Forwarded-For: 203.0.113.5:65536, 10.1.2.3\r\n", "10.1.2.3 0 http"),
        (LOOPBACK, "X-Forwarded-For: [2001:db8::1]4711, 10.1.2.3\r\n", "10.1.2.3 0 http"),
        (LOOPBACK, "X-Forwarded-For: [203.0.113.5]:1, 10.1.2.3\r\n", "10.1.2.3 0 http"),
        (LOOPBACK, "X-Forwarded-For: ::ffff:192.0.2.7, ::ffff:10.1.2.3\r\n", "192.0.2.7 0 http"),
        (LOOPBACK, "X-Forwarded-For: [::FFFF:192.0.2.7]:4711\r\n", "192.0.2.7 4711 http"),
        (LOOPBACK, "X-Forwarded-For: ,192.0.2.7,, 10.1.2.3,\r\nX-Forwarded-For:\r\n", "192.0.2.7 0 http"),
        (LOOPBACK, "X-Forwarded-Proto: https,\r\nX-Forwarded-Proto:\r\n", "MINE https"),
        # The client claims https; the proxy, which appends, has seen http.
        (LOOPBACK, "X-Forwarded-For: 1.1.1.1, 192.0.2.7\r\nX-Forwarded-Proto: https, http\r\n", "192.0.2.7 0 http"),
        # Two proxies of ours: the outer one was spoken to in https, the inner one by the outer in http.
        (
            LOOPBACK,
            "X-Forwarded-For: 192.0.2.7, 10.1.2.3\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Proto: http\r\n",
            "192.0.2.7 0 https",
        ),
        (LOOPBACK, "X-Forwarded-For: 192.0.2.7, 10.1.2.3\r\nX-Forwarded-Proto: https\r\n", "192.0.2.7 0 https"),
        (LOOPBACK, "X-Forwarded-Proto: http\r\nX-Forwarded-Proto: HTTPS\r\n", "MINE https"),
        (LOOPBACK, "X-Forwarded-Proto: gopher\r\n", None),
        (LOOPBACK, "X-Forwarded-For: unknown\r\n", None),
        ([ip_network("192.0.2.0/24")], "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n", None),
        ([], "X-Forwarded-For: 192.0.2.7\r\n", None),
    ],
)
def test_x_forwarded(proxies: Any, headers: str, expected: str | None) -> None:
    with serving_app(who, on_request=Forwarded(proxies)) as server, Connection(server.server_address) as c:
        mine = "{} {} http".format(*c.socket.getsockname())
        wanted = (expected or mine).replace("MINE", mine.removesuffix(" http"))
        assert c.request("GET", "/", headers).body.decode() == wanted


class Bare:
    """What of a request `Forwarded` reads and sets."""

    def __init__(self, peer: str) -> None:
        self.client_address = (peer, 0)
        self.scheme = "http"
        self.headers = [("X-Forwarded-For", "192.0.2.7"), ("X-Forwarded-Proto", "https")]


@pytest.mark.parametrize(
    ("text", "peer", "is_believed"),
    [
        ("unix", "", True),
        ("10.0.0.0/8,unix", "", True),
        ("10.0.0.0/8", "", False),
        ("unix", "10.0.0.1", False),
        ("10.0.0.0/8,unix", "10.0.0.1", True),
        ("10.0.0.0/8,unix", "192.0.2.1", False),
    ],
)
def test_peers_on_unix_sockets(text: str, peer: str, is_believed: bool) -> None:
    request = Bare(peer)
    Forwarded(networks(text), unix=has_unix(text))(request)
    wanted = (("192.0.2.7", 0), "https") if is_believed else ((peer, 0), "http")
    assert (request.client_address, request.scheme) == wanted


def v2(command: int, family: int, addresses: bytes) -> bytes:
    return b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", 0x20 | command, family, len(addresses)) + addresses


V4 = socket.inet_aton("192.0.2.7") + socket.inet_aton("10.0.0.1") + struct.pack("!HH", 4711, 80)
V6 = socket.inet_pton(socket.AF_INET6, "2001:db8::7") + bytes(16) + struct.pack("!HH", 4711, 80)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 80\r\n", "192.0.2.7 4711 http"),
        (b"PROXY TCP6 2001:db8::7 ::1 4711 80\r\n", "2001:db8::7 4711 http"),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN whatever follows\r\n", None),
        (v2(1, 0x11, V4), "192.0.2.7 4711 http"),
        (v2(1, 0x11, V4 + b"\x04\x00\x01x"), "192.0.2.7 4711 http"),
        (v2(1, 0x21, V6), "2001:db8::7 4711 http"),
        (v2(0, 0x00, b""), None),
        (b"", None),  # where it is optional
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_proxy_protocol(header: bytes, expected: str | None, whole: bool) -> None:
    options = {"proxies": LOOPBACK, "proxy_optional": not header}
    with serving_app(who, **options) as server, Connection(server.server_address) as c:
        mine = "{} {} http".format(*c.socket.getsockname())
        data = header + REQUEST
        for piece in [data] if whole else [data[i : i + 1] for i in range(len(data))]:
            c.send(piece)
        assert c.receive().body.decode() == (expected or mine)
        c.send(REQUEST)  # of the connection, not of the request
        assert c.receive().body.decode() == (expected or mine)


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY \r\n",
        b"PROXY TCP4 192.0.2.7\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 80\n",
        b"PROXY TCP4 192.0.2.777 10.0.0.1 4711 80\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 65536 80\r\n",
        b"PROXY TCP4 192.0.2.7  10.0.0.1 4711 80\r\n",
        b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 80 \r\n",
        b"PROXY TCP4 192.0.2.7\0x 10.0.0.1 4711 80\r\n",
        b"PROXY TCP5 192.0.2.7 10.0.0.1 4711 80\r\n",
        b"PROXY TCP4 " + b"1" * 100 + b"\r\n",
        v2(1, 0x11, V4[:11]),
        v2(2, 0x11, V4),
        v2(1, 0x11, V4).replace(b"\x21\x11", b"\x31\x11"),
        v2(1, 0x11, V4) + v2(1, 0x11, V4),
    ],
)
def test_malformed_proxy_headers(header: bytes) -> None:
    with serving_app(who, proxies=LOOPBACK) as server, Connection(server.server_address) as c:
        c.send(header + REQUEST)
        assert c.receive().status == 400
        assert c.is_closed()


def test_proxy_headers_of_others_are_no_http() -> None:
    with serving_app(who, proxies=[ip_network("192.0.2.0/24")]) as server, Connection(server.server_address) as c:
        c.send(b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 80\r\n" + REQUEST)
        assert c.receive().status == 400
