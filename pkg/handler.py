"""RequestHandler: `BaseHTTPRequestHandler` over requests that the C front has parsed and responses that it frames.

It is no framework: `do_GET` and the rest, `send_response`, `rfile`, `wfile` mean what `http.server` says of them.

How any handler class is served (`adapt`):

- a subclass of `RequestHandler` as it is;
- another subclass of `BaseHTTPRequestHandler` by putting `RequestHandler` behind it in its bases, so that what the
  class overrides stays and what it inherits is ours;
- one that overrides how requests are read (`handle`, `parse_request`, ...) is given a connection which replays the
  bytes of the request, and parses for itself.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from functools import cached_property, partial
from http import HTTPStatus
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from socketserver import BaseRequestHandler
from typing import Any

from pkg import _core
from pkg.errors import ResponseError, StartupError

__all__ = ["RequestHandler", "adapt"]

Buffer = bytes | bytearray | memoryview

_log = logging.getLogger(__name__)


# As in http.server: what a client has sent must not end a line of the log, or colour a terminal.
_ESCAPES = {code: rf"\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {ord("\\"): r"\\"}


class _Logged(BaseHTTPRequestHandler):
    """What handlers say goes to the log."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Nothing: the server writes one access line for each request."""

    def log_message(self, format: str, *args: Any) -> None:
        _log.info("%s %s", self.address_string(), (format % args).translate(_ESCAPES))


class RequestHandler(_Logged):
    """The base of handlers that want the whole speed.  Responses without Content-Length are chunked."""

    protocol_version = "HTTP/1.1"
    server_version = "pkg"
    sys_version = ""
    request: _core.Request

    _response: _core.Response | None = None
    _interim: list[bytes] | None = None
    _failed = False

    # -------------------------------------------------------------- reading

    def setup(self) -> None:
        self.rfile = self.request.body  # type: ignore[assignment]
        self.wfile = _Writer(self)

    @cached_property
    def connection(self) -> Any:
        """Something like the client's socket, after the head; writing to it goes round any framing."""
        return ReplayConnection(self.request, head=False)

    @cached_property
    def headers(self) -> HTTPMessage:  # type: ignore[override]
        message: HTTPMessage = self.MessageClass()
        for name, value in self.request.headers:
            message.set_raw(name, value)
        if self.request.chunked and self.request.body_size is not None:
            # Decoded already: the handler sees a body with a length (RFC 9112 7.1.3), as most can read only those.
            del message["Transfer-Encoding"]
            message.set_raw("Content-Length", str(self.request.body_size))
        return message

    @cached_property
    def raw_requestline(self) -> bytes:
        return f"{self.requestline}\r\n".encode("latin-1")

    def parse_request(self) -> bool:
        request = self.request
        self.command = request.method
        self.path = request.target
        # Its redirects would lead to another host (gh-87389); other handlers get the target as it came.
        if self.path.startswith("//") and isinstance(self, SimpleHTTPRequestHandler):
            self.path = "/" + self.path.lstrip("/")
        self.request_version = request.version
        self.requestline = f"{self.command} {request.target} {self.request_version}"
        self.close_connection = not request.keep_alive
        return not request.expects_continue or self.handle_expect_100()

    def handle_expect_100(self) -> bool:
        """True: the client may go on.  The front tells it so when the body is read, not before."""
        return True

    def handle(self) -> None:
        try:
            self.handle_one_request()
        except BaseException:
            self._failed = True
            raise

    def handle_one_request(self) -> None:
        if not self.parse_request():
            return
        method = getattr(self, "do_" + self.command, None)
        if method is None:
            self.send_error(501, f"Unsupported method ({self.command!r})")
        else:
            method()

    def finish(self) -> None:
        if self._failed:
            return  # Server.handle_error() answers
        if self.close_connection:
            self.request.keep_alive = False  # the head may not be out yet
        if self._response is not None:
            self._response.end()
        elif self.request.status == 0:
            raise ResponseError("the handler has sent no response")
        else:  # it wrote one by itself, which nobody has framed
            self.close_connection = True
        self.request.finish(keep_alive=not self.close_connection)

    # -------------------------------------------------------------- writing

    def send_response_only(self, code: int, message: str | None = None) -> None:
        if message is None:
            message = self.responses[code][0] if code in self.responses else ""
        if 100 <= code < 200:
            self._interim = [f"HTTP/1.1 {int(code)} {message}\r\n".encode("latin-1")]
            return
        if self._response is None:
            self._response = _core.Response(self.request)
        self._response.start(int(code), message)

    def send_header(self, keyword: str, value: object) -> None:
        text = value if isinstance(value, str) else str(value)
        if self._interim is not None:
            _check_text(keyword + text)
            self._interim.append(f"{keyword}: {text}\r\n".encode("latin-1"))
            return
        if self._response is None:
            raise ResponseError("a header before the status line")
        self._response.add_header(keyword, text)
        if keyword.lower() == "connection":
            if text.lower() == "close":
                self.close_connection = True
            elif text.lower() == "keep-alive":
                self.close_connection = False

    def end_headers(self) -> None:
        """The head goes out with the first part of the body, or at the end."""
        if self._interim is not None:
            self.request.send(b"".join(self._interim) + b"\r\n")
            self._interim = None
        elif self.close_connection:
            self.request.keep_alive = False

    def version_string(self) -> str:
        return super().version_string().rstrip()

    def flush_headers(self) -> None:
        if self._response is not None:
            self._response.flush()


class _Writer(io.BufferedIOBase):
    """`wfile`: the response body; before any status line, the bare connection."""

    def __init__(self, handler: RequestHandler) -> None:
        self._handler = handler

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        handler = self._handler
        if handler._response is not None:
            handler._response.write(data)
        else:  # a handler that writes its own status line
            handler.close_connection = True
            _send_raw(handler.request, data)
        return memoryview(data).nbytes

    def flush(self) -> None:
        if not (self.closed or self._handler._failed or self._handler.request.is_finished):
            self._handler.flush_headers()


def _send_raw(request: _core.Request, data: Buffer) -> None:
    """Sends what a handler has framed by itself, and takes its status from there."""
    data = bytes(data)
    if data == _CONTINUE:
        return  # the front says it, when the body is read
    if request.status == 0:
        # A final status ends the wait for one; what does not look like a status line counts as 200, as in HTTP/0.9.
        status = int(data[9:12]) if data[:5] == b"HTTP/" and data[9:12].isdigit() else 200
        request.status = status if status >= 200 or status == HTTPStatus.SWITCHING_PROTOCOLS else 0
    request.send(data)


_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


# ---------------------------------------------------------------- the compatible path


class _Replay(io.RawIOBase):
    """The bytes of a request as they came: head, then body, chunked if it was."""

    def __init__(self, request: _core.Request, head: bool) -> None:
        self._request = request
        self._data = request.head_bytes.lstrip(b"\r\n") if head else b""
        self._ended = False
        self.asked_for_more = False  # a read past the end of this request: the handler keeps the connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._data and not self._ended:
            data = self._request.body.read1(65536)
            self._ended = not data
            if self._request.chunked:
                data = b"%x\r\n%b\r\n" % (len(data), data)
            self._data = data
        if not self._data:
            self.asked_for_more = True
            return 0
        n = min(len(self._data), len(buffer))
        buffer[:n] = self._data[:n]
        self._data = self._data[n:]
        return n


class ReplayConnection:
    """What a handler that reads for itself sees of its client: enough of a socket for `http.server`."""

    def __init__(self, request: _core.Request, head: bool = True) -> None:
        self._request = request
        self.replay = _Replay(request, head)

    def makefile(self, mode: str = "r", buffering: int = -1, **_: Any) -> Any:
        if "r" in mode:
            return io.BufferedReader(self.replay, buffering if buffering > 0 else io.DEFAULT_BUFFER_SIZE)
        return _ConnectionWriter(self)

    def recv(self, size: int, flags: int = 0) -> bytes:
        buffer = bytearray(size)
        return bytes(buffer[: self.replay.readinto(buffer)])

    def sendall(self, data: Buffer, flags: int = 0) -> None:
        _send_raw(self._request, data)

    def send(self, data: Buffer, flags: int = 0) -> int:
        self.sendall(data)
        return memoryview(data).nbytes

    def getpeername(self) -> tuple[str, int]:
        address: tuple[str, int] = self._request.client_address
        return address

    def fileno(self) -> int:
        raise OSError("the descriptor belongs to the server")

    def settimeout(self, timeout: float | None) -> None:
        """Nothing: the front has deadlines for everything a client may delay."""

    def setsockopt(self, *args: Any) -> None:
        """Nothing: the server has set what is useful."""

    def shutdown(self, how: int) -> None:
        self._request.keep_alive = False

    def close(self) -> None:
        """Nothing: the connection is the front's."""


class _ConnectionWriter(io.BufferedIOBase):
    def __init__(self, connection: ReplayConnection) -> None:
        self._connection = connection

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._connection.send(data)


class _Replayed(_Logged):
    """Goes behind a replayed class in its bases: what is left of `http.server`, made safe."""

    _begun = False

    def handle_one_request(self) -> None:
        """One request, the replayed one.  A body which the handler has left unread is not the next request."""
        if not self._begun:
            self._begun = True
            super().handle_one_request()
        else:
            self.connection.replay.asked_for_more = self.close_connection = True

    def send_response_only(self, code: int, message: str | None = None) -> None:
        _check_text(message or "")
        super().send_response_only(code, message)

    def send_header(self, keyword: str, value: Any) -> None:
        _check_text(f"{keyword}: {value}")
        super().send_header(keyword, value)


def _check_text(text: str) -> None:
    if any(c in text for c in "\r\n\0"):
        raise ResponseError(f"control character in {text!r}")


def _serve_replayed(
    handler_class: Callable[..., object],
    request: _core.Request,
    client_address: Any,
    server: Any,
    *args: Any,
    **keywords: Any,
) -> None:
    connection = ReplayConnection(request)
    handler_class(connection, client_address, server, *args, **keywords)
    if request.status == 0:
        raise ResponseError("the handler has sent no response")
    request.finish(keep_alive=connection.replay.asked_for_more)


# What a class must not override for its requests to be parsed by the front.
_READING = ("setup", "handle", "handle_one_request", "parse_request", "finish", "flush_headers", "send_response_only")


def _overrides(cls: type, names: tuple[str, ...]) -> bool:
    known = {RequestHandler, SimpleHTTPRequestHandler, *BaseHTTPRequestHandler.__mro__}
    return any(name in vars(base) for base in cls.__mro__ if base not in known for name in names)


def adapt(handler: Any) -> Callable[[Any, Any, Any], object]:
    """A callable of (request, client_address, server) that serves one request with `handler`.

    StartupError: it is of a kind that cannot be served.
    """
    if isinstance(handler, partial):
        return partial(adapt(handler.func), *handler.args, **handler.keywords)
    if not isinstance(handler, type) or not issubclass(handler, BaseRequestHandler):
        return handler
    if issubclass(handler, RequestHandler):
        return handler
    if not issubclass(handler, BaseHTTPRequestHandler):
        return partial(_serve_replayed, handler)
    if handler in RequestHandler.__mro__:
        return RequestHandler
    if hasattr(handler, "run_cgi"):
        raise StartupError("CGI handlers need the client's socket, which is the front's; Python 3.15 has none either")
    if _overrides(handler, _READING):
        return partial(_serve_replayed, _with_base(handler, _Replayed))
    return _with_base(handler, RequestHandler)


def _with_base(handler: type, base: type) -> type:
    """`handler` with `base` behind it: what it overrides stays, what it inherits from http.server is the base's."""
    names = ("__module__", "__qualname__", "__doc__")
    return type(handler.__name__, (handler, base), {name: getattr(handler, name) for name in names})
