"""A WebSocket client for tests that sends any bytes, and reads frames strictly."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import struct
from collections.abc import Sequence

from tests.support.client import TIMEOUT, Address, dial

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
FIN, RSV1 = 0x80, 0x40


def frame(opcode: int, payload: bytes = b"", *, bits: int = FIN, mask: bytes | None = b"\1\2\3\4") -> bytes:
    """One frame of a client; `bits`: FIN and the reserved ones; without a mask it is a violation."""
    size = len(payload)
    masked = 0 if mask is None else 0x80
    head = bytes([bits | opcode])
    if size < 126:
        head += bytes([masked | size])
    elif size < 65536:
        head += struct.pack("!BH", masked | 126, size)
    else:
        head += struct.pack("!BQ", masked | 127, size)
    if mask is None:
        return head + payload
    key = (mask * (size // 4 + 1))[:size]
    body = (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")
    return head + mask + body


def close_frame(code: int | None = None, reason: bytes = b"") -> bytes:
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)


class Peer:
    """A connection that has sent a handshake; `status` and `headers` are those of the response."""

    def __init__(
        self,
        address: Address,
        path: str = "/",
        headers: Sequence[str] = (),
        *,
        first: bytes = b"",
        early: bytes = b"",
        buffer: int = 0,
        timeout: float = TIMEOUT,
    ) -> None:
        """`first` and `early` go out with the handshake, before and behind it; `buffer`: size of the receive buffer."""
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {path} HTTP/1.1",
            "Host: test",
            "Connection: keep-alive, Upgrade",
            "Upgrade: WebSocket",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
            *headers,
        ]
        self.socket = dial(address, timeout)
        if buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.sendall(first + "\r\n".join([*lines, "", ""]).encode("latin-1") + early)
        self._file = self.socket.makefile("rb")
        self.status, self.headers = self._head()
        if self.status == 101:
            accept = base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest())
            assert self.headers["sec-websocket-accept"] == accept.decode()
            assert self.headers["upgrade"].lower() == "websocket" and "upgrade" in self.headers["connection"].lower()
            assert "content-length" not in self.headers and "transfer-encoding" not in self.headers
        else:
            self.body = self._file.read(int(self.headers.get("content-length", 0)))

    def _head(self) -> tuple[int, dict[str, str]]:
        line = self._file.readline().decode()
        assert line.startswith("HTTP/1.1 "), line
        headers: dict[str, str] = {}
        while (field := self._file.readline().decode("latin-1").rstrip("\r\n")) != "":
            name, _, value = field.partition(":")
            assert name.lower() not in headers, field
            headers[name.lower()] = value.strip()
        return int(line.split()[1]), headers

    def skip(self) -> None:
        """Reads the response that precedes the one to the handshake, without a body, and then that one."""
        self.status, self.headers = self._head()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self) -> tuple[int, bytes]:
        """The first byte and the payload of the next frame.  EOFError at the end of the stream."""
        head = self._file.read(2)
        if len(head) < 2:
            raise EOFError
        assert not head[1] & 0x80, "a server's frame is masked"
        size = head[1]
        if size == 126:
            (size,) = struct.unpack("!H", self._file.read(2))
            assert size > 125
        elif size == 127:
            (size,) = struct.unpack("!Q", self._file.read(8))
            assert size > 65535
        payload = self._file.read(size)
        assert len(payload) == size
        return head[0], payload

    def text(self) -> str:
        first, payload = self.read()
        assert first == FIN | TEXT, (first, payload)
        return payload.decode()

    def closed(self) -> tuple[int, str]:
        """The close frame that comes next, which must be the last thing that comes."""
        first, payload = self.read()
        assert first == FIN | CLOSE, (first, payload)
        if payload:
            code, reason = struct.unpack("!H", payload[:2])[0], payload[2:].decode()
        else:
            code, reason = 1005, ""
        return code, reason

    def ended(self) -> bool:
        """Whether the stream ends here; a reset is an error."""
        return self._file.read(1) == b""

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
