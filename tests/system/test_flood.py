"""A flood of connections that hold all of max_connections, and clients behind HAProxy that notice nothing of it."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.balancers import haproxy, missing
from tests.support.client import wait_for
from tests.support.load import Tally, loading
from tests.support.places import Place
from tests.support.ports import free_port
from tests.support.processes import ask, running

pytestmark = pytest.mark.skipif("haproxy" in missing(), reason="not installed: haproxy (a package of Debian's)")

MAX_CONNECTIONS, FLOOD = 100, 200

# What each connection of the flood begins with, and what it adds from time to time.
FLOODS = {
    "silent": (b"", b""),
    "slow heads": (b"GET / HTTP/1.1\r\nHost: ", b"x"),
    "slow bodies": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n", b"x" * 300),
    "long slow bodies": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n", b"x" * 300),
    "slow chunks": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"2\r\nxx\r\n"),
}

APPLICATION = """
def app(environ, start_response):
    length = len(environ["wsgi.input"].read())
    token = environ["PATH_INFO"].rpartition("/")[2]
    body = f"{environ['REQUEST_METHOD']} {token} {length}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


class Flood:
    """Twice as many connections as there may be; whichever ends is made anew at once."""

    def __init__(self, address: tuple[str, int], begins: bytes, adds: bytes) -> None:
        self.address, self.begins, self.adds = address, begins, adds
        self.opened = 0
        self._over = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _connect(self) -> None:
        with contextlib.suppress(OSError):
            s = socket.create_connection(self.address, 5)
            s.setblocking(False)
            self.opened += 1
            self._selector.register(s, selectors.EVENT_READ)
            s.send(self.begins)

    def _run(self) -> None:
        added = time.monotonic()
        while not self._over.wait(0.002):
            for _ in range(FLOOD - len(self._selector.get_map())):
                self._connect()
            for key, _ in self._selector.select(0):
                self._look(key.fileobj)  # type: ignore[arg-type]
            if self.adds and time.monotonic() - added > 0.3:
                added = time.monotonic()
                for key in list(self._selector.get_map().values()):
                    with contextlib.suppress(OSError):
                        key.fileobj.send(self.adds)  # type: ignore[union-attr]

    def _look(self, s: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if s.recv(65536):
                return
        self._selector.unregister(s)
        s.close()

    def end(self) -> None:
        self._over.set()
        self._thread.join(10)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()


@contextlib.contextmanager
def flooding(address: tuple[str, int], kind: str) -> Iterator[Flood]:
    flood = Flood(address, *FLOODS[kind])
    try:
        yield flood
    finally:
        flood.end()


@pytest.mark.slow
@pytest.mark.parametrize("kind", FLOODS)
def test_haproxy_loses_nothing_in_a_flood(tmp_path: Path, kind: str) -> None:
    """Keep-alive to the service, and clients of each kind; some were there before the flood, some come in it."""
    admin = free_port()
    settings = {"PKG_MAX_CONNECTIONS": str(MAX_CONNECTIONS), "PKG_ADMIN": f"127.0.0.1:{admin}"}

    def connections() -> float:
        _, _, text = ask(("127.0.0.1", admin), "/metrics")
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("pkg_connections "))

    with running(tmp_path, APPLICATION, **settings) as process, haproxy([Place(process.address[1])]) as balancer:
        name = Place(process.address[1]).name
        wait_for(lambda: balancer.has(name), 10, "HAProxy to use the service")
        with loading(balancer.address) as before, flooding(process.address, kind) as flood:
            wait_for(lambda: connections() >= MAX_CONNECTIONS, 10, "the flood to hold every connection")
            with loading(balancer.address) as load:
                end = time.monotonic() + 3
                while time.monotonic() < end:
                    assert balancer.has(name)
                    assert ask(process.address, "/healthz")[0] == 200
                    time.sleep(0.1)
                assert connections() >= MAX_CONNECTIONS
                total = sum((*before.finish().values(), *load.finish().values()), Tally())
        assert total.lost == {}
        assert total.answered == total.sent > 500
        assert flood.opened > FLOOD
        assert process.stop() == 0
