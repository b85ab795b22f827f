"""A client for WebSockets: each connection sends a short text, waits for it to come back, and sends the next.

It is only as good as it has to be for an echo: frames arrive whole, and nothing is fragmented or compressed.
"""

from __future__ import annotations

import selectors
import socket
import time

from bench.load import Sample
from bench.servers import LOAD_CORES, Running, on_cores

TEXT = b"hello, world, hello, world, hello"
MASK = b"\x01\x02\x03\x04"
FRAME = bytes((0x81, 0x80 | len(TEXT))) + MASK + bytes(b ^ MASK[i % 4] for i, b in enumerate(TEXT))
ANSWER = bytes((0x81, len(TEXT))) + TEXT
HANDSHAKE = (
    b"GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def _connect(port: int) -> socket.socket | None:
    """A WebSocket, or None if the server refuses it."""
    s = socket.create_connection(("127.0.0.1", port), timeout=10)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    s.sendall(HANDSHAKE)
    answer = b""
    while not answer.endswith(b"\r\n\r\n") and (part := s.recv(4096)):
        answer += part
    if answer.startswith(b"HTTP/1.1 101"):
        return s
    s.close()
    return None


def echo(server: Running, *, connections: int, seconds: float) -> Sample:
    """Messages that came back; none if the server has no WebSockets.  Its p99 is not measured."""
    with on_cores(LOAD_CORES), selectors.DefaultSelector() as selector:
        sockets = [s for _ in range(connections) if (s := _connect(server.port)) is not None]
        for s in sockets:
            selector.register(s, selectors.EVENT_READ)
        before, begin, count, failed = server.cpu(), time.monotonic(), 0, connections - len(sockets)
        for s in sockets:
            s.sendall(FRAME)
        while sockets and time.monotonic() - begin < seconds:
            for key, _ in selector.select(1.0):
                s = key.fileobj
                assert isinstance(s, socket.socket)
                if s.recv(4096) == ANSWER:
                    count += 1
                    s.sendall(FRAME)
                else:
                    failed += 1
                    selector.unregister(s)
        used, took = server.cpu() - before, time.monotonic() - begin
        for s in sockets:
            s.close()
    return Sample(count / took, used / count if count else 0.0, used / took, 0.0, failed)
