"""A plain HTTP client for tests: sends raw bytes, parses responses strictly."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

# Factor for all timeouts, because sanitizers make everything ten times slower or more.
SLOWNESS = float(os.environ.get("TEST_SLOWNESS", "1"))
TIMEOUT = 10.0 * SLOWNESS


Address = tuple[str, int] | str  # host and port, or the path of a Unix socket


@dataclass
class Answer:
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes
    interim: list[int] = field(default_factory=list)

    def header(self, name: str) -> str | None:
        """The header of that name; two of them are an error in every test."""
        values = [v for n, v in self.headers if n.lower() == name.lower()]
        assert len(values) <= 1, self.headers
        return values[0] if values else None

    @property
    def closes(self) -> bool:
        return (self.header("connection") or "").lower() == "close"


def dial(address: Address, timeout: float = TIMEOUT) -> socket.socket:
    """A connection to a host and port, or to the path of a Unix socket, on which each send() goes out at once."""
    if isinstance(address, str):
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(timeout)
            connection.connect(address)
        except BaseException:
            connection.close()
            raise
    else:
        connection = socket.create_connection(address[:2], timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class Connection:
    """One connection.  `request` sends and receives; `send` and `receive` do half of it."""

    def __init__(self, address: Address, timeout: float = TIMEOUT) -> None:
        self.socket = dial(address, timeout)
        self._buffer = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def request(self, method: str, target: str, headers: str = "", body: bytes = b"", version: str = "1.1") -> Answer:
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        head = f"{method} {target} HTTP/{version}\r\nHost: test\r\n{headers}{length}\r\n"
        self.send(head.encode("latin-1") + body)
        return self.receive(method)

    def _fill(self) -> bool:
        data = self.socket.recv(65536)
        self._buffer += data
        return bool(data)

    def receive_head(self) -> Answer:
        """The head of the next final response, whose body follows.  Raises EOFError if the connection closes before."""
        interim = []
        while True:
            while b"\r\n\r\n" not in self._buffer:
                if not self._fill():
                    raise EOFError(f"closed after {self._buffer!r}")
            head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            line, *lines = head.decode("latin-1").split("\r\n")
            protocol, status, reason = [*line.split(" ", 2), ""][:3]
            assert protocol == "HTTP/1.1", line
            headers = [(n, v.strip()) for n, _, v in (x.partition(":") for x in lines)]
            answer = Answer(int(status), reason, headers, b"", interim)
            if answer.status >= 200:
                break
            interim.append(answer.status)
        return answer

    def receive(self, method: str = "GET") -> Answer:
        """The next final response.  Raises EOFError if the connection closes before it is complete."""
        answer = self.receive_head()
        answer.body = b"".join(self.parts(answer, method))
        return answer

    def parts(self, answer: Answer, method: str = "GET") -> Iterator[bytes]:
        """The body of a response whose head has been read, as it comes: in its chunks, or the whole of it."""
        if method == "HEAD" or answer.status in (204, 304):
            return
        if answer.header("transfer-encoding") == "chunked":
            yield from self._chunks()
        elif (length := answer.header("content-length")) is not None:
            yield self._exactly(int(length))
        else:
            while self._fill():
                pass
            body, self._buffer = self._buffer, b""
            yield body

    def _exactly(self, size: int) -> bytes:
        parts, have = [self._buffer], len(self._buffer)
        while have < size:
            data = self.socket.recv(262144)
            if not data:
                raise EOFError(f"{have} of {size} bytes of body")
            parts.append(data)
            have += len(data)
        whole = b"".join(parts)
        self._buffer = whole[size:]
        return whole[:size]

    def _chunks(self) -> Iterator[bytes]:
        while True:
            while b"\r\n" not in self._buffer:
                if not self._fill():
                    raise EOFError("closed in a chunk")
            line, _, self._buffer = self._buffer.partition(b"\r\n")
            size = int(line, 16)
            data = self._exactly(size + 2)
            assert data.endswith(b"\r\n")
            if size == 0:
                return
            yield data[:-2]

    def is_closed(self, within: float = 2.0) -> bool:
        """Whether the server has sent FIN or RST, and no more data."""
        self.socket.settimeout(within)
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def get(address: Address, target: str, headers: str = "", method: str = "GET", body: bytes = b"") -> Answer:
    """One request on a new connection."""
    with Connection(address) as c:
        return c.request(method, target, headers + "Connection: close\r\n", body)


def wait_for(condition, timeout: float = 10.0, message: str = "the condition"):  # type: ignore[no-untyped-def]
    """Polls until condition() is true, and returns it; an AssertionError after `timeout` seconds."""
    end = time.monotonic() + timeout * SLOWNESS
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"{message} did not come true in {timeout} s"
        time.sleep(0.005)
