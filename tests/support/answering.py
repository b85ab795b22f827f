"""A server that plays another one: it answers what it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

__all__ = ["Answering"]


class Answering:
    """A server that answers each connection with the same bytes, and keeps what it was asked.

    `host`: an IP address, or the path of a Unix socket, which has a slash.
    """

    def __init__(self, answer: bytes | Callable[[socket.socket], None], host: str = "127.0.0.1") -> None:
        self.requests: list[bytes] = []
        self._answer = answer
        if "/" in host:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(host)
            self._listener.listen()
        else:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, 0), family=family)
            self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(30)
                request = b""
                while not request.endswith(b"\r\n\r\n"):
                    received = connection.recv(65536)
                    if not received:
                        break
                    request += received
                if request == b"":
                    return
                self.requests.append(request)
                if callable(self._answer):
                    self._answer(connection)
                else:
                    connection.sendall(self._answer)

    def close(self) -> None:
        with socket.socket(self._listener.family) as last:
            last.connect(self._listener.getsockname())
        self._thread.join(30)
        self._listener.close()
        assert not self._thread.is_alive()
