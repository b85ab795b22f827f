"""RequestHandler: `BaseHTTPRequestHandler` for requests that the C front has parsed and responses that it frames.

It is not a framework: `do_GET`, `send_response`, `rfile`, `wfile` and the others mean what they mean in `http.server`.

Responses are written as in http.server: a head is collected in `_headers_buffer` and written to `wfile`.  So a class
may call `super().end_headers()` or `BaseHTTPRequestHandler.end_headers(self)`, look into that buffer, or write a head
by itself to `wfile`, `request` or `connection`.  These three end in one place (`_Writer`), which parses the head again
and frames the body: the server decides on lengths, chunks, Date and persistence.

A class that does not set `protocol_version` is served with HTTP/1.1 and persistent connections, although the default of
http.server is HTTP/1.0.  A class that sets HTTP/1.0 gets HTTP/1.0 and a new connection for each request.
"""

from __future__ import annotations

import io
import logging
import re
from functools import cached_property
from http import HTTPStatus
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from typing import Any

from pkg import _core
from pkg.errors import ResponseError
from pkg.http.replay import ClientSocket, octets_of, send_raw

__all__ = ["Adapted", "Replayed", "RequestHandler"]

_log = logging.getLogger("pkg.handler")


# As in http.server: text from a client must not break a line of the log or send escape sequences to a terminal.
_ESCAPES = {code: rf"\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {ord("\\"): r"\\"}


class _Common(BaseHTTPRequestHandler):
    """Common to all hosted handlers, no matter how they read requests."""

    _headers_buffer: list[bytes]  # defined by http.server

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Does nothing: the server writes one access record for each request."""

    def log_message(self, format: str, *args: Any) -> None:
        """Logs messages of handlers."""
        _log.info("%s %s", self.address_string(), (format % args).translate(_ESCAPES))

    def flush_headers(self) -> None:
        """Writes the collected lines to `wfile`.

        Raises ResponseError if a line contains a line end or a control character (a header whose value comes from a
        client could become two headers), or if there is no status line.
        """
        lines: list[bytes] | None = getattr(self, "_headers_buffer", None)
        if not lines:
            return
        self._headers_buffer = []
        head = b"".join(lines)
        if not len(lines) == head.count(b"\n") == head.count(b"\r") == head.count(b"\r\n") or b"\0" in head:
            wrong = next((line for line in lines if re.search(rb"[\r\n\0]", line.removesuffix(b"\r\n"))), lines[-1])
            raise ResponseError(f"a header contains a control character or a line end: {wrong!r}")
        self.wfile.write(head)


class RequestHandler(_Common):
    """The fastest base class for handlers.  Responses without Content-Length are chunked.

    `request`: the request, as parsed by the front.
    """

    protocol_version = "HTTP/1.1"
    server_version = "pkg"
    sys_version = ""
    request: _core.Request

    _failed = False

    # -------------------------------------------------------------- reading

    def setup(self) -> None:
        self._request = request = self.request
        self._writer = _Writer(request)
        self.rfile = request.body  # type: ignore[assignment]
        self.wfile = self._writer

    @cached_property
    def connection(self) -> Any:
        """Stands for the client's socket after the head.  Writing to it is the same as writing to `wfile`."""
        return ClientSocket(self._request, self.server, self._writer)

    @cached_property
    def headers(self) -> HTTPMessage:  # type: ignore[override]
        message: HTTPMessage = self.MessageClass()
        for name, value in self._request.headers:
            message.set_raw(name, value)
        if self._request.chunked and self._request.body_size is not None:
            # Decoded already: the handler gets a body with a length (RFC 9112 7.1.3), since most handlers require one.
            del message["Transfer-Encoding"]
            message.set_raw("Content-Length", str(self._request.body_size))
        return message

    @cached_property
    def raw_requestline(self) -> bytes:
        return f"{self.requestline}\r\n".encode("latin-1")

    def parse_request(self) -> bool:
        request = self._request
        self.command = request.method
        self.path = request.target
        # Redirects of this class would lead to another host (gh-87389); other handlers get the target unchanged.
        if self.path.startswith("//") and isinstance(self, SimpleHTTPRequestHandler):
            self.path = "/" + self.path.lstrip("/")
        self.request_version = request.version
        self.requestline = f"{self.command} {request.target} {self.request_version}"
        self.close_connection = not request.keep_alive
        return not request.expects_continue or self.handle_expect_100()

    def handle_expect_100(self) -> bool:
        """Returns True: the client may send its body.  The front sends 100 (Continue) when the body is read."""
        return True

    def handle(self) -> None:
        try:
            self.handle_one_request()
        except BaseException:
            self._failed = self._writer.is_abandoned = True
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
            return  # Server.handle_error() responds
        writer = self._writer
        if self.wfile is not writer and not self.wfile.closed:  # the handler has wrapped it
            self.wfile.flush()
        if self.close_connection:
            self._request.keep_alive = False  # the head may not have been sent yet
        if writer.response is not None:
            if getattr(self, "_headers_buffer", None):
                raise ResponseError(f"a header was sent after the head of the response: {self._headers_buffer[0]!r}")
            writer.response.end()
        elif writer.is_raw:
            self.close_connection = True
        else:
            raise ResponseError("the handler sent no response")
        self._request.finish(keep_alive=not self.close_connection)

    # -------------------------------------------------------------- writing

    def flush_headers(self) -> None:
        if self.close_connection:
            self._request.keep_alive = False  # so that the head contains it
        if self._writer.response is not None and getattr(self, "_headers_buffer", None) == [b"\r\n"]:
            self._headers_buffer = []  # a second call of end_headers(), which would put an empty line into the body
            return
        self._writer.expect_head()
        super().flush_headers()

    def version_string(self) -> str:
        return super().version_string().rstrip()


class Adapted(RequestHandler):
    """Stands behind a handler class in its bases; `request` is like the client's socket, as in http.server."""

    def setup(self) -> None:
        super().setup()
        self.request = self.connection


class Replayed(_Common):
    """Stands behind a class that reads requests by itself in its bases, and makes the rest of http.server safe."""

    _begun = False

    def handle_one_request(self) -> None:
        """Serves one request, the replayed one.  An unread body must not be taken for the next request."""
        if not self._begun:
            self._begun = True
            super().handle_one_request()
        else:
            self.connection.replay.asked_for_more = self.close_connection = True


_HEAD_END = re.compile(rb"\n\r?\n")
_STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-9][0-9]{2})(?: (.*))?")
_MAX_HEAD_SIZE = 1 << 20  # as _core.Response has it


class _Writer(io.BufferedIOBase):
    """The output of a handler: a head, which is parsed and checked, then the body.

    The head is sent with the first part of the body, or at the end.  Output that does not begin like a response, or
    that follows 101 (Switching Protocols), is passed on unchanged, and the connection is not used again.
    """

    def __init__(self, request: _core.Request) -> None:
        self._request = request
        self._head = b""  # the part of a head received so far
        self.response: _core.Response | None = None
        self.is_raw = False
        self.is_abandoned = False  # Server.handle_error() responds instead
        self._is_head_due = False

    def writable(self) -> bool:
        return True

    def expect_head(self) -> None:
        """Expects a head next.  It replaces a head that has not been sent yet and has no body so far."""
        if self.response is not None:
            if self.response.sent:
                raise ResponseError("the handler sent a second response to the same request")
            self.response = None
        self._is_head_due = not self.is_raw

    def write(self, data: Any) -> int:
        if self.closed:
            raise ValueError("write to closed file")
        if self.response is not None:
            self.response.write(data)
            return len(data) if type(data) is bytes else memoryview(data).nbytes
        data = octets_of(data)
        if self.is_raw:
            send_raw(self._request, data)
        else:
            self._begin(self._head + data)
        return len(data)

    def flush(self) -> None:
        if self.response is not None and not (self.closed or self.is_abandoned or self._request.is_finished):
            self.response.flush()

    def _begin(self, data: bytes) -> None:
        """Takes data that begins with a head, or a part of one."""
        if not data.startswith(b"HTTP/"[: len(data)]):
            if self._is_head_due:
                raise ResponseError("a header was sent before the status line")
            self._pass_on(data)
            return
        end = _HEAD_END.search(data)
        if end is None:
            if len(data) > _MAX_HEAD_SIZE:
                raise ResponseError("the head of the response is larger than 1 MiB")
            self._head = data
            return
        self._head = b""
        # A bare LF ends a line as well, as http.server accepts it from handlers that write their own head.
        line, *lines = (line.removesuffix("\r") for line in data[: end.start()].decode("latin-1").split("\n"))
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            raise ResponseError(f"{line!r} is not a status line")
        minor, status, reason = match[1], int(match[2]), match[3] or ""
        if status == HTTPStatus.SWITCHING_PROTOCOLS:
            self._pass_on(data)
        elif status < 200:
            self._inform(data[: end.end()], status)
            if len(data) > end.end():
                self._begin(data[end.end() :])
        else:
            response = _core.Response(self._request)
            response.start(status, reason, minor == "0")
            for line in lines:
                name, colon, value = line.partition(":")
                if not colon:
                    raise ResponseError(f"{line!r} is not a header")
                response.add_header(name, value.strip(" \t"))
            self.response = response
            if len(data) > end.end():
                response.write(data[end.end() :])

    def _inform(self, head: bytes, status: int) -> None:
        """Sends an interim response, but not 100, which the front sends, and none to HTTP/1.0 (RFC 9110 15.2)."""
        if status != HTTPStatus.CONTINUE and self._request.version != "HTTP/1.0":
            self._request.send(head)

    def _pass_on(self, data: bytes) -> None:
        self.is_raw = True
        self._request.keep_alive = False
        if data:
            send_raw(self._request, data)
