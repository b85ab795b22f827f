"""The C core as Python sees it: documentation of the extension.  Its theory is in ext/front.h and ext/http1.h."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

Answer = tuple[int, bytes, bytes]
"""Status, header lines (each ending in CRLF, without Date and Connection), body."""
Answers = tuple[Answer, Answer, Answer]
"""As text, verbose text, JSON."""
Page = tuple[str, int, Answers, Answers, Answers | None]
"""Path, expiry slot (0 to 63), and the answers while fresh, once expired, and while draining."""

def watch_over(child: int) -> NoReturn:
    """For process 1: passes signals on to `child` and reaps every process that ends; at the child's end this one ends,
    with its exit code, or 128 + the signal that ended it.  It gives the interpreter's memory back."""

class Stage:
    """The stages of a front's life.  A front only goes forward."""

    SERVING: int
    TERMINATING: int
    """Pages give their draining answers; every response says `Connection: close`; all is still accepted."""
    CLOSING: int
    """The backlog is accepted, the listener closed, idle connections get a last second."""
    STOPPED: int
    """What is in flight is aborted."""

class Front:
    """The epoll loop on one listening socket, which its opener closes.  Durations in seconds, sizes in bytes."""

    def __init__(
        self,
        listen_fd: int,
        *,
        max_connections: int = 10_000,
        max_queue: int = 1024,
        max_header_size: int = 32_768,
        max_headers: int = 100,
        max_target_size: int = 8192,
        max_body_size: int = ...,
        body_buffer_size: int = ...,
        response_buffer_size: int = ...,
        buffer_size: int = ...,
        min_body_rate: int = 500,
        header_timeout: float = 10,
        body_timeout: float = 30,
        idle_timeout: float = 75,
        write_timeout: float = 30,
        queue_timeout: float = 10,
        linger_timeout: float = 5,
        request_timeout: float = 0,
        proxies: Sequence[Any] = (),
        proxy_optional: bool = False,
        stream_bodies: bool = False,
        body_spool: str = "",
        body_spool_size: int = ...,
    ) -> None: ...
    def run(self) -> None:
        """Serves until the last stage.  Holds no interpreter lock, and so runs no signal handlers meanwhile."""
    def advance(self, stage: int) -> None: ...
    def terminate(self) -> None: ...
    @property
    def is_foreign(self) -> bool:
        """Whether it belongs to the process that this one was forked from; then every call does nothing."""

    @property
    def stage(self) -> int: ...
    @property
    def close_fault(self) -> int:
        """Once CLOSING: an errno value, why new handshakes could not be stopped before that; 0: they were.

        If not, a connection made in the very moment of the end is reset.
        """

    def watch_signals(self, fd: int, draining: Iterable[int], last_words: int = 0, give_up: float = 0) -> None:
        """Reads signal numbers from `fd` (signal.set_wakeup_fd); those in `draining` begin TERMINATING at once.

        `last_words` is a signal raised in the loop's thread before liveness (slot 0) fails for want of renewal.
        If run() has not returned `give_up` seconds after the first (0: never), the process ends with exit code 1:
        whoever should end it does not get the interpreter lock.  At the third it ends at once.
        """
    def take(self, timeout: float = -1) -> Request | None:
        """The next request; None once the front has stopped.  TimeoutError after `timeout` seconds, if not negative."""
    def work(
        self,
        handle: Callable[[Request, Any, Any], object],
        failed: Callable[[Request, Any], object],
        after: Callable[[Request], object] | None,
        server: Any,
        before: Callable[[Request], object] | None = None,
    ) -> None:
        """A worker: each request through handle(request, client_address, server) until the front stops.

        failed(request, client_address) runs while what handle raised is being handled; before(request) at the
        beginning, after(request) at the end.
        """
    def publish(self, table: Sequence[Page]) -> None:
        """Replaces all published pages.  ValueError, OSError: too many or too large."""
    def renew(self, slot: int, seconds: float) -> None:
        """Pages of this slot stay fresh for so long from now."""
    @property
    def frozen(self) -> float:
        """Seconds in which the process was frozen since the front runs; gaps of less than two seconds do not count."""
    def clock(self) -> float:
        """time.monotonic() without the time in which the process was frozen."""
    def stats(self) -> dict[str, Any]:
        """Counters since the start, and present numbers: connections, queued, in_flight, buffered."""
    def requests(self) -> list[dict[str, Any]]:
        """Requests in flight, at most 64: method, target without query, age (seconds), kernel thread id (0: queued)."""
    def durations(self) -> list[tuple[str, int, list[int], float]]:
        """How long requests took: method, status (0: none sent), counts of each bucket, sum of seconds.

        Buckets are those of DURATION_BOUNDS, not cumulated, and one more for what is longer.  At most 128 entries; when
        they are full the rest is found under method `_OTHER`, status 0.  Probes are not among them.
        """
    def probers(self) -> list[dict[str, Any]]:
        """Who asked for published pages, at most 32: client, user_agent, page, count, status and age of the last."""

DURATION_BOUNDS: tuple[float, ...]

class Request:
    """A request on loan from the front until `finish()`.  Texts are latin-1, as received."""

    keep_alive: bool
    """Whether the connection may go on: the client's wish, until something here says no."""
    status: int
    """Of the final response; 0 before it."""
    response_size: int
    context: Any
    request_id: bytes | None
    """Goes into the response as X-Request-Id, unless the application sets one."""
    head_size: int
    method: str
    target: str
    path: str
    query: str
    version: str
    headers: list[tuple[str, str]]
    content_length: int | None
    body_size: int | None
    """Bytes of the body if they are known: announced, or arrived whole."""
    chunked: bool
    expects_continue: bool
    head_bytes: bytes
    client_address: tuple[str, int]
    body: Body
    duration: float
    """Seconds since the request could be served."""
    is_finished: bool
    is_gone: bool
    """The client has reset the connection."""
    def header(self, name: bytes, default: str | None = None) -> str | None:
        """The first header of that name, given in lower case."""
    def access_line(self) -> bytes | None:
        """The access record of now as `_records.json_access` renders it; None: that has to, as something is long or
        needs escaping."""
    def only_header(self, name: bytes) -> str | None:
        """The header of that name, given in lower case, if there is just one."""

    @property
    def received_size(self) -> int:
        """Bytes of the body: as announced, or as many as have come so far of one in chunks."""

    def has_header(self, names: tuple[bytes, ...]) -> bool:
        """Whether there is a header of one of these names, given in lower case."""
    def send(self, data: bytes) -> None:
        """Writes to the connection, round any response framing.  ClientDisconnected."""
    def finish(self, keep_alive: bool = True, abort: bool = False) -> None:
        """Gives the connection back; `abort` cuts it, so that the client sees an incomplete response."""

class Body:
    """A request body as a binary file.  BodyError: late, too large, malformed or cut short; ClientDisconnected.

    ValueError: the request is finished; RuntimeError: another thread is reading.
    """

    closed: bool
    def read(self, size: int | None = -1, /) -> bytes: ...
    def read1(self, size: int | None = -1, /) -> bytes: ...
    def readinto(self, buffer: Any, /) -> int: ...
    def readinto1(self, buffer: Any, /) -> int: ...
    def peek(self, size: int = 0, /) -> bytes: ...
    def readline(self, size: int | None = -1, /) -> bytes: ...
    def readlines(self, hint: int | None = -1, /) -> list[bytes]: ...
    def __iter__(self) -> Iterator[bytes]: ...
    def __next__(self) -> bytes: ...
    def readable(self) -> bool: ...
    def writable(self) -> bool: ...
    def seekable(self) -> bool: ...
    def flush(self) -> None: ...
    def close(self) -> None:
        """Does nothing: the body belongs to the request."""

class Response:
    """One response: start(), add_header() ..., write() ..., end().

    The head goes out with the first part of the body.  Without Content-Length the body is chunked (HTTP/1.1) or ends
    with the connection (HTTP/1.0); if all of it is known at once it gets a length.  ResponseError: what was asked for
    cannot be said in HTTP, and nothing of it has been sent.  `is_old`: an HTTP/1.0 response, with which the connection
    ends.
    """

    request: Request
    status: int
    sent: bool
    ended: bool
    def __init__(self, request: Request) -> None: ...
    def start(self, status: int, reason: str = "", is_old: bool = False) -> None: ...
    def add_header(self, name: str, value: str) -> None: ...
    def write(self, data: Any) -> None: ...
    def flush(self) -> None: ...
    def end(self, data: bytes = b"") -> None: ...
    def send_file(self, fd: int, offset: int, count: int) -> None: ...

class FileWrapper:
    """wsgi.file_wrapper."""

    def __init__(self, filelike: Any, blksize: int = 65536) -> None: ...
    def __iter__(self) -> Iterator[bytes]: ...
    def __next__(self) -> bytes: ...

class WSGIHandler:
    """A handler, to be called with (request, client_address, server), that runs a WSGI application.

    `environ` is the part of the environ that never changes.
    """

    app: Callable[..., Any]
    environ: dict[str, Any]
    def __init__(self, app: Callable[..., Any], environ: dict[str, Any]) -> None: ...
    def __call__(self, request: Request, client_address: Any, server: Any) -> None: ...

class ParseError(ValueError):
    """A malformed head or chunked body; `status` is its answer, `name` the rule (HTTP1_ERRORS in ext/http1.h)."""

    name: str
    status: int

def parse_head(
    data: bytes, seen: int = 0, *, max_header_size: int = 32_768, max_headers: int = 100, max_target_size: int = 8192
) -> Request | None:
    """The request whose head `data` begins with; None: incomplete.  It has no connection.  ParseError."""

class ChunkedDecoder:
    complete: bool
    def decode(self, data: bytes) -> tuple[bytes, int]:
        """The decoded bytes, and how many of `data` were consumed.  ParseError."""
