"""What stands in place of the client's socket, for handlers that read or write it: it replays the request's bytes.

It frames nothing, and the connection stays with the front.
"""

from __future__ import annotations

import io
import socket
from http import HTTPStatus
from typing import Any

from pkg import _core

__all__ = ["ClientSocket", "octets_of", "send_raw"]


def octets_of(data: Any) -> bytes:
    """The bytes of a buffer with items of any type.  Raises TypeError or BufferError where a socket would."""
    view = memoryview(data)
    if not view.c_contiguous:
        raise BufferError("memoryview: underlying buffer is not C-contiguous")
    return view.tobytes()


def send_raw(request: _core.Request, data: bytes) -> None:
    """Sends data that a handler has framed by itself, and reads the status from it."""
    if data == _CONTINUE:
        return  # the front sends it when the body is read
    if request.status == 0:
        # Only a final status counts; data that does not begin with a status line counts as 200, as in HTTP/0.9.
        status = int(data[9:12]) if data[:5] == b"HTTP/" and data[9:12].isdigit() else 200
        request.status = status if status >= 200 or status == HTTPStatus.SWITCHING_PROTOCOLS else 0
    request.send(data)


_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class _Incoming(io.RawIOBase):
    """The bytes of a request as they were received: the head, if wanted, then the body, chunked if it was."""

    def __init__(self, request: _core.Request, head: bool) -> None:
        self._request = request
        self._data = request.head_bytes.lstrip(b"\r\n") if head else b""
        # If the handler got its head from us, a body of known size has a length: see RequestHandler.headers.
        self._chunked = request.chunked and (head or request.body_size is None)
        self._ended = False
        self.asked_for_more = False  # the handler has read past the end of this request, so it keeps the connection

    def readable(self) -> bool:
        return True

    def peek(self) -> bytes:
        """Data that can be read without waiting, without consuming it; waits for the first byte, b"" at the end."""
        if not self._data and not self._ended:
            data = self._request.body.read1(65536)
            self._ended = not data
            if self._chunked:
                data = b"%x\r\n%b\r\n" % (len(data), data)
            self._data = data
        if not self._data:
            self.asked_for_more = True
        return self._data

    def readinto(self, buffer: Any) -> int:
        with memoryview(buffer) as view, view.cast("B") as octets:
            n = min(len(self.peek()), len(octets))
            octets[:n] = self._data[:n]
        self._data = self._data[n:]
        return n


class ClientSocket:
    """Given to handlers in place of the client's socket: a connected, blocking socket, as far as handlers use one.

    Without `writer` it also replays the head, and data is sent unchanged.  The descriptor stays with the front, so
    nothing that needs it works; options are read from the listener, from which the connection inherited them.
    """

    type = socket.SOCK_STREAM
    proto = 0

    def __init__(self, request: _core.Request, server: Any = None, writer: io.BufferedIOBase | None = None) -> None:
        self._request = request
        self._server = server
        self._writer = writer
        self._timeout: float | None = None
        self.replay = _Incoming(request, head=writer is None)

    @property
    def family(self) -> int:
        return int(getattr(self._server, "address_family", socket.AF_INET))

    def makefile(self, mode: str = "r", buffering: int | None = None, **text: Any) -> Any:
        size = buffering if buffering is not None and buffering > 1 else io.DEFAULT_BUFFER_SIZE
        file: Any
        if "w" not in mode:
            file = io.BufferedReader(self.replay, size)
        elif "r" in mode:
            file = io.BufferedRWPair(self.replay, _Outgoing(self), size)
        elif buffering == 0 and "b" in mode:
            file = _Outgoing(self)
        else:
            file = io.BufferedWriter(_Outgoing(self), size)
        return file if "b" in mode else io.TextIOWrapper(file, **text)

    def recv(self, size: int, flags: int = 0) -> bytes:
        if flags & socket.MSG_PEEK:
            return self.replay.peek()[:size]
        buffer = bytearray(size)
        return bytes(buffer[: self.replay.readinto(buffer)])

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        with memoryview(buffer) as view, view.cast("B") as octets:
            data = self.recv(size or len(octets), flags)
            octets[: len(data)] = data
        return len(data)

    def sendall(self, data: Any, flags: int = 0) -> None:
        if self._writer is not None:
            self._writer.write(data)
        else:
            send_raw(self._request, octets_of(data))

    def send(self, data: Any, flags: int = 0) -> int:
        self.sendall(data)
        return memoryview(data).nbytes

    def sendmsg(self, buffers: Any, *_: Any) -> int:
        return sum(self.send(data) for data in list(buffers))

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        file.seek(offset)
        sent = 0
        while data := file.read(65536 if count is None else min(65536, count - sent)):
            sent += self.send(data)
        return sent

    def getpeername(self) -> tuple[str, int]:
        address: tuple[str, int] = self._request.client_address
        return address

    def getsockname(self) -> Any:
        return self._server.server_address

    def getsockopt(self, *args: Any) -> Any:
        return self._server.socket.getsockopt(*args)

    def setsockopt(self, *args: Any) -> None:
        """Does nothing: the server has set the useful options."""

    def fileno(self) -> int:
        raise OSError("the descriptor belongs to the server")

    detach = fileno

    def settimeout(self, timeout: float | None) -> None:
        """Only stores the value: the front has timeouts for everything that a client can delay."""
        self._timeout = timeout

    def gettimeout(self) -> float | None:
        return self._timeout

    timeout = property(gettimeout)

    def setblocking(self, flag: bool) -> None:
        self._timeout = None if flag else 0.0

    def getblocking(self) -> bool:
        return self._timeout != 0.0

    def shutdown(self, how: int) -> None:
        self._request.keep_alive = False

    def close(self) -> None:
        """Does nothing: the connection belongs to the front."""

    def __enter__(self) -> ClientSocket:
        return self

    def __exit__(self, *_: object) -> None:
        """Does nothing, like close()."""


class _Outgoing(io.RawIOBase):
    """The writing side of makefile()."""

    def __init__(self, connection: ClientSocket) -> None:
        self._connection = connection

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._connection.send(data)
