"""The interface of the C extension, documented.  Its theory is in ext/front/front.h and ext/http/http1.h."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextvars import ContextVar
from types import FrameType
from typing import Any, Literal, NamedTuple, NoReturn

Answer = tuple[int, bytes, bytes]
"""Status, header lines (each ending in CRLF, without Date and Connection), body."""
Answers = tuple[Answer, Answer, Answer]
"""As text, verbose text, JSON."""
HealthPage = tuple[str, int, Answers, Answers, Answers | None]
"""Path, expiry slot (0 to 63), and the answers while fresh, when expired, and while draining."""

def watch_over(child: int) -> NoReturn:
    """For process 1: forwards signals to `child` and reaps every process that ends.  When the child ends, this process
    exits with its exit code, or 128 + the signal that ended it.  It releases the interpreter's memory."""

class News:
    """What Front.wait() returns, as a set of bits."""

    REQUESTS: int
    """Tasks.start() has some to take."""
    MOVED: int
    """Front.moved() has some."""
    OTHERS: int
    """The event loop's own epoll descriptor may have some."""
    LATE: int
    """request_timeout has cut off requests; until Front.take_late()."""

class Stage:
    """The stages of a front.  It only moves forward."""

    SERVING: int
    DRAINING: int
    """Pages send their draining answers, and every response has `Connection: close`; requests are still accepted."""
    CLOSING: int
    """The backlog is accepted, the listener closes, and idle connections get one more second."""
    STOPPED: int
    """Requests in flight are aborted."""

LIMITS: dict[str, type]
"""The limits of a Front (ext/front/limits.h), which are its keyword arguments, and the types of their values."""

class Counters(NamedTuple):
    """What a Front has counted since its start, and what there is now (ext/front/counters.h)."""

    in_flight: int
    connections: int
    websockets: int
    websockets_opened: int
    accepted: int
    closed: int
    resets: int
    too_late: int
    accept_errors: int
    requests: int
    served: int
    aborted: int
    rejected: int
    shed: int
    timeouts: int
    request_timeouts: int
    late: int
    probes: int
    stale: int
    bytes_in: int
    bytes_out: int
    buffered: int
    spooled: int
    spool_failures: int
    spool_bytes: int
    queued: int
    queue_seconds: float
    finished: int
    spool_error: int

class Flight(NamedTuple):
    """A request in flight."""

    method: str
    target: str
    """Without the query, which may contain secrets."""
    age: float
    """Seconds since its head was complete."""
    thread: int
    """The kernel's id of the worker's thread; 0 while queued."""
    late: bool
    """It has taken longer than request_timeout."""
    awaits: str
    """What its thread waits for: "body" of the request, "room" for a response which the client does not take, or ""."""

class Turn(NamedTuple):
    """A slow turn of an event loop; times in seconds."""

    number: int
    """Front.eventloop_looks in this turn."""
    took: float
    """0 if it has not ended."""
    waited: float
    """How long the caller has waited for the interpreter lock since the front said so."""

class Exemplar(NamedTuple):
    """A request with a trace, the last one of its bucket in `Front.durations()`.

    `bucket`: the place of that among the counts; `seconds`: its duration; `at`: when it ended, in seconds since the
    Unix epoch.
    """

    method: str
    status: int
    bucket: int
    trace_id: str
    seconds: float
    at: float

class Prober(NamedTuple):
    """A client of published pages; status and age are those of its last response."""

    client: str
    user_agent: str
    page: str
    count: int  # type: ignore[assignment]  # hides a method of tuples
    status: int
    age: float

COUNTERS: tuple[tuple[str, str, Literal["counter", "gauge"], str], ...]
"""What a Front counts (ext/front/counters.h): item of stats(), name of the metric, its kind, its help."""

class Listen(NamedTuple):
    """A listening socket, and what is served on its connections (ext/front/front.h)."""

    fd: int
    name: str = ""
    """For access records, if there are several."""
    shared: bool = False
    """Other processes accept from it as well, now or later: it is never shut down."""
    pages: bool = True
    """The published pages are served."""
    requests: bool = True
    """Everything else is served; without it, that gets 404."""
    proxied: bool = False
    """A Unix socket on which connections begin with a PROXY header."""

class WorkerState(NamedTuple):
    in_flight: int
    queued: int  # those that it has not begun
    served: int
    expires: tuple[float | None, ...]  # seconds left by its renew(), for each slot; None: it was never renewed
    is_broken: bool  # what it has written makes no sense, and it gets no requests any more

class Front:
    """The epoll loop on listening sockets, which the caller must close.  Durations in seconds, sizes in bytes.

    `listeners`: 1 to 17 of them, or the descriptor of a single one.  Raises ValueError for a limit out of its bounds.
    """

    listeners: tuple[Listen, ...]

    def __init__(
        self,
        listeners: int | Sequence[Listen],
        *,
        proxies: Sequence[Any] = (),
        body_spool: str = "",
        **limits: float,
    ) -> None: ...
    @classmethod
    def remote(cls, area: int, bell: int, *, listeners: Sequence[Listen] = (), **limits: float) -> Front:
        """In a worker process: its end of what add_worker() has made (`area`) and open_workers() has returned (`bell`).

        Neither descriptor is needed afterwards.  `listeners`: those of the front, for names in access records.  run()
        waits until the front has stopped, or the worker was retired and has served what it had.
        """

    def open_workers(self) -> int:
        """From now on worker processes serve, and no threads of this one; returns what they need as `bell`.  Once."""
    def carry(self) -> None:
        """Carries requests to the workers, in a thread of its own, until the front has stopped."""
    def add_worker(self, threads: int, streams: bool) -> tuple[int, int]:
        """A worker to be: its number, and the descriptor that it needs as `area`, which the caller closes.

        It serves `threads` requests at a time, at most 1024.  `streams`: it takes bodies as they come.
        """
    def admit_worker(self, number: int) -> None:
        """Lets it have requests.  All methods with a number raise OSError (ENOENT) when it was lost."""
    def retire_worker(self, number: int) -> None:
        """It gets no more requests; when it has served those it has, its take() returns None."""
    def lose_worker(self, number: int) -> list[tuple[str, str, Literal["repeated", "502", "cut"]]]:
        """Its process has ended: clears up, and returns (method, target, outcome) of each request that it had begun."""
    def worker_requests(self, number: int) -> list[Flight]:
        """Those that it has, at most 100; `thread` is 0."""
    def worker_state(self, number: int) -> WorkerState: ...
    def run(self) -> None:
        """Serves until the last stage, without the interpreter lock, so Python signal handlers do not run meanwhile."""
    def advance(self, stage: int) -> None: ...
    @property
    def is_foreign(self) -> bool:
        """Whether the front belongs to the parent of this forked process; then every call does nothing."""

    @property
    def stage(self) -> int: ...
    @property
    def close_fault(self) -> int:
        """In CLOSING: an errno value if new handshakes could not be stopped before the listener closes, otherwise 0.

        If they could not, a connection made at that moment is reset.
        """

    def accepted(self, listener: int) -> int:
        """The number of connections accepted from the listener at this place of `listeners`."""
    def watch_signals(self, fd: int, draining: Iterable[int], last_words: int = 0, give_up: float = 0) -> None:
        """Reads signal numbers from `fd` (signal.set_wakeup_fd); those in `draining` start DRAINING at once.

        `last_words`: signal raised in the loop's thread before liveness (slot 0) fails because it was not renewed.
        If run() has not returned `give_up` seconds after the first signal (0: never), the process exits with 1, because
        the code that should end it does not get the interpreter lock.  The third signal ends the process at once.
        """
    def take(self, timeout: float = -1) -> Request | None:
        """The next request, or None when the front has stopped.  Raises TimeoutError after `timeout` seconds, unless
        negative."""
    def work(
        self,
        handle: Callable[[Request, Any, Any], object],
        failed: Callable[[Request, Any], object],
        after: Callable[[Request], object] | None,
        server: Any,
        before: Callable[[Request], object] | None = None,
    ) -> None:
        """Runs a worker: calls handle(request, client_address, server) for each request until the front stops.

        before(request) runs first and after(request) last; failed(request, client_address) runs while an exception of
        handle is being handled.
        """
    def serve_by_eventloop(self, fd: int) -> None:
        """Lets an event loop serve in place of workers (ext/front/eventloop.h); `fd`: its epoll descriptor.  Once."""
    def wait(self, timeout: float) -> int:
        """For the event loop: waits, without the interpreter lock, until there is something to do: a set of `News`.

        `timeout`: seconds; negative: for ever.
        """
    def serve_by_reader(self) -> int:
        """In place of both, for an event loop that waits elsewhere: the descriptor that it has to watch."""
    def look(self) -> int:
        """To be called when that descriptor is readable: what there is to do, a set of `News`.  Does not wait."""
    def settle(self) -> int:
        """To be called when that has been done: what has come meanwhile.  Once it returns 0, the descriptor tells."""
    @property
    def eventloop_looks(self) -> int:
        """How often the event loop has asked for work; -1 while it waits for some."""
    @property
    def eventloop_turn(self) -> float:
        """Seconds for which the event loop has been in its present turn; 0 while it waits, or if there is none.

        Gaps in which the process was frozen do not count.
        """
    def turns(self) -> tuple[list[int], float]:
        """How long the turns of the event loop took, as in queue_waits()."""
    def watch_turns(self) -> Turn | None:
        """Waits, without the interpreter lock, for a turn that takes longer than slow_callback_duration, then for its
        end; None when the front has stopped.  For one thread, after serve_by_eventloop()."""
    def take_late(self) -> None:
        """Request.becomes_late() is about to be asked of all requests."""
    def moved(self) -> list[Any]:
        """Each Exchange that waited, and whose connection can go on."""
    def publish(self, table: Sequence[HealthPage]) -> None:
        """Replaces all published pages.  Raises ValueError or OSError if they are too many or too large."""
    def renew(self, slot: int, seconds: float) -> None:
        """Keeps pages of this slot fresh for `seconds` from now."""
    @property
    def frozen(self) -> float:
        """Seconds for which the process was frozen since the front started; gaps below two seconds do not count."""
    def clock(self) -> float:
        """time.monotonic() without the time for which the process was frozen."""
    def stats(self) -> Counters: ...
    def requests(self, most: int = 1000) -> list[Flight]:
        """Requests in flight, at most 1000: those that are served, and then those that wait."""
    def queued(self, most: int = 1000) -> list[Flight]:
        """Those that wait, the oldest first."""
    def websockets(self, most: int = 1000) -> list[Flight]:
        """Those that were accepted, the oldest first; they are no requests in flight."""
    def durations(self) -> list[tuple[str, int, list[int], float]]:
        """Durations of requests: method, status (0: none sent), count of each bucket, sum in seconds.

        The buckets are those of DURATION_BOUNDS, not cumulative, and one more for longer requests.  There are at most
        128 entries; further ones are counted under method `_OTHER`, status 0.  Probes are not included.
        """
    def exemplars(self) -> list[Exemplar]:
        """For each bucket of durations() the last request that had a trace, and apart from them the last of those that
        failed: status 0, or from 500 on."""
    def queue_waits(self) -> tuple[list[int], float]:
        """How long requests have waited for a worker: count of each bucket, sum in seconds.

        The buckets are those of QUEUE_WAIT_BOUNDS, not cumulative, and one more for longer waits.  Requests that were
        refused after `queue_timeout` are included.
        """
    def probers(self) -> list[Prober]:
        """The clients of published pages, at most 32."""

DURATION_BOUNDS: tuple[float, ...]
QUEUE_WAIT_BOUNDS: tuple[float, ...]

class Request:
    """A request, lent by the front until `finish()`.  Texts are latin-1, as received."""

    keep_alive: bool
    """Whether the connection may stay open: what the client asked for, unless the server decides to close it."""
    status: int
    """The status of the final response; 0 before it."""
    response_size: int
    context: Any
    request_id: bytes | None
    """Sent with the response as X-Request-Id, unless the application sets one."""
    is_late: bool
    """becomes_late() has returned True."""
    is_repeated: bool
    """A worker process has died serving it, and has sent nothing of a response."""
    head_size: int
    method: str
    target: str
    path: str
    query: str
    version: str
    headers: list[tuple[str, str]]
    content_length: int | None
    body_size: int | None
    """Bytes of the body if known: announced, or completely received."""
    chunked: bool
    asks_for_websocket: bool
    """Connection and Upgrade name a WebSocket, and its key or version is there; nothing else has been looked at."""
    expects_continue: bool
    head_bytes: bytes
    client_address: tuple[str, int]
    """ ("", 0) on a Unix socket."""
    listener: int
    """The place of the connection's listener in Front.listeners."""
    listener_name: str
    """ "" if there is no other listener."""
    body: Body
    duration: float
    """Seconds since the request was ready to be served."""
    is_finished: bool
    is_gone: bool
    """The client has reset the connection."""
    def trace(self, trace_id: bytes) -> None:
        """The request belongs to this trace, whose id (16 bytes) may be shown in Front.exemplars().  Only once."""
    def becomes_late(self) -> bool:
        """For an event loop: whether request_timeout has cut off the request; True only once."""
    def header(self, name: bytes, default: str | None = None) -> str | None:
        """The first header with this lower-case name, or `default`."""
    def access_line(self) -> bytes | None:
        """The access record as json_access() of pkg.logs.records renders it in the schema that was set; None if
        that must do it, because a text is long or needs escaping."""
    def only_header(self, name: bytes) -> str | None:
        """The header with this lower-case name, or None unless there is exactly one."""

    @property
    def received_size(self) -> int:
        """Bytes of the body: as announced, or received so far of a chunked one."""

    def send(self, data: bytes) -> None:
        """Writes to the connection without any framing.  Raises ClientDisconnected."""
    def finish(self, keep_alive: bool = True, abort: bool = False) -> None:
        """Returns the connection; `abort` resets it, so that the client can see that the response is incomplete."""

class Body:
    """A request body as a binary file.

    Reading raises BodyError if the body is late, too large, malformed or incomplete, ClientDisconnected if the client
    has closed the connection, ValueError if the request is finished, and RuntimeError if another thread is reading.
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

    The head is sent with the first part of the body.  Without Content-Length the body is chunked (HTTP/1.1) or ends
    with the connection (HTTP/1.0); if it is passed to end() as a whole, it gets a Content-Length.  Raises ResponseError
    for anything that HTTP does not allow; then nothing of it has been sent.  `is_old`: an HTTP/1.0 response, after
    which the connection is closed.
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

class Tasks:
    """The tasks of an event loop's requests.

    `host`: the event loop, with `loop`, `watch(exchange)`, and `fail(exchange, error)`, called while what the
    application has raised is being handled; whether it ends the task as well.  `app`: the application.
    `await_it(awaitable)` is a coroutine function for what the application returns if that is no coroutine.
    `receive(exchange)` and `send(exchange, message)` are coroutine functions: the first is what the application gets;
    the second waits until flush() has sent what is left, and then sends `message`, if it is not None.  `addresses`: the
    scope's `server` for each listener.  `state`: copied for each request.  `on_request`, `on_response`: called with
    each request in its task before the application, and at the end of the response.
    """

    host: Any
    exchanges: set[Any]
    """Those of requests whose task has not ended with its first step."""
    stepping: Any
    """The one whose task takes that step now."""

    def __init__(
        self,
        host: Any,
        app: Callable[..., Awaitable[object]],
        await_it: Callable[[Awaitable[object]], Coroutine[Any, Any, None]],
        receive: Callable[[Exchange], Coroutine[Any, Any, dict[str, Any]]],
        send: Callable[[Exchange, dict[str, Any] | None], Coroutine[Any, Any, None]],
        *,
        addresses: Iterable[tuple[str, int | None]],
        root_path: str = "",
        state: dict[str, Any],
        on_request: Callable[[Request], object] | None = None,
        on_response: Callable[[Request], object] | None = None,
    ) -> None: ...
    def start(self, front: Front) -> None:
        """Serves requests that are ready, as many as fit into a short turn: the task of each takes its first step at
        once.  For the loop's thread, outside of any task."""

class Exchange:
    """The messages of one request of an ASGI application (HTTP).  Nothing here waits.

    Where something has to be waited for, Front.moved() returns the object as soon as it is worth another try.  The
    connection is given back with the end of the response.
    """

    def __init__(self, request: Request, tasks: Tasks) -> None: ...
    request: Request
    tasks: Tasks
    task: asyncio.Task[None] | None
    """Its task, if it has not ended with its first step."""
    taken: int
    """Bytes of the response that had to wait, and that the client has taken since."""
    is_closed: bool
    """Its task has ended, or is about to."""
    has_ended: bool
    """The application has sent its last message."""
    has_left: bool
    """next_message() has returned `http.disconnect` before the end of the response."""
    is_reading: bool
    """next_message() has returned None, because more of the body has to arrive."""
    waiting: list[asyncio.Future[None]]
    """Those that wait for wake()."""
    readers: int
    """How many wait for next_message(); counted by the host."""
    has_started: bool
    """A part of the response may have been sent."""
    is_finished: bool
    """The connection has been given back."""
    is_full: bool
    """flush() must be called before the next put()."""

    def begin(self) -> dict[str, Any]:
        """The scope.  Called once, in the task."""
    def close(self) -> None:
        """The task ends; a response that is not complete is cut off."""
    def wake(self) -> None:
        """Lets all that wait try again."""
    def receive(self) -> Coroutine[Any, Any, dict[str, Any]]:
        """For the application, as send().  After the body it waits until the client leaves or the response ends."""
    def send(self, message: dict[str, Any]) -> Awaitable[None]:
        """Acts when it is first awaited."""
    def next_message(self) -> dict[str, Any] | None:
        """What `receive` returns, or None: wait.

        The client gets 408, 413 or 400 for a body that is late, too large or malformed; for the application it has
        left.
        """
    def dismiss(self) -> None:
        """Makes next_message() say after the body that the client has left; the response may still be completed."""
    def end_stream(self) -> bool:
        """Ends a response of server-sent events in order; whether it was one that had not ended.

        Whatever the application sends after it raises ClientDisconnected.
        """
    def wait_on(self, waited: float) -> bool:
        """Counts `waited` seconds of waiting for more of the body; ends the request with 408 if they are too many.

        Whether the client keeps up.
        """
    def put(self, message: dict[str, Any]) -> bool | None:
        """Takes a message of `send`.  Raises ResponseError if HTTP does not allow it, and ClientDisconnected.

        False: all of it has been sent; True: flush() has to send the rest; None: not taken, because of a former rest.
        """
    def flush(self) -> bool:
        """Sends what the socket did not take; False: wait.  Raises ClientDisconnected."""
    def begin_period(self) -> None:
        """A write_timeout begins, in which the client has to take something."""
    def keep_pace(self, seconds: float, write_timeout: float) -> bool:
        """Counts `seconds` of waiting for the client, and gives it up if it does not keep up.

        Whether it still has to be watched.
        """
    def send_on(self, taken: int) -> bool:
        """A write_timeout has passed, in which `taken` bytes were taken; cuts the response if they are too few.

        Whether the client keeps up.
        """
    def finish(self) -> None:
        """Gives the connection back, if that has not happened; a response that is not complete is cut off."""

class Channel(Exchange):
    """An exchange that may become a connection of raw bytes, for a WebSocket.  Nothing here waits.

    The methods that raise NotImplementedError are those of its subclass, which it calls where rules or waiting begin.
    """

    is_open: bool
    """101 has been sent, and the connection has not been given back."""
    is_waiting: bool
    """read() has said that Front.moved() will return this object; whoever is told so clears it."""
    is_ready: bool
    """Both sides may send data, which takes the short way then.  Set by the subclass."""
    messages: list[dict[str, Any]]
    """What receive() will return."""
    held: int
    """Bytes of them."""
    farewell: dict[str, Any] | None
    """What it will return after them, whenever it is called."""
    fragments: bytearray | None
    """Those of a message that has not ended."""
    late: bytes | None
    """A control frame that go_on() has to send when flush() has sent everything before it."""
    was_heard: bool
    """Something has come since this was cleared."""
    most: int
    """Bytes of one read; 64 KiB at first."""
    max_size: int
    """Bytes of a message that is read here."""
    pack_from: int
    """Bytes or characters of a message that goes through pack(); at first no message does."""
    is_laden: bool
    """So much waits for the application that nothing more is to be read."""

    def add_messages(self, messages: list[dict[str, Any]], size: int | None = None) -> None:
        """Puts them into the queue; `size`: of all of them, or that of what read() has returned."""
    def forget_held(self) -> None:
        """What waits for the application does not count any more."""
    def notify(self) -> None:
        """Lets all that wait try again."""
    def wake(self) -> None:
        """The connection can go on.  Raises nothing."""
    def go_on(self) -> None:
        """Sends and reads what can be, if it is not only data between two messages that has to be read."""
        raise NotImplementedError
    def take_in(self, data: bytes | list[dict[str, Any]] | None) -> None:
        """Takes what read() has returned."""
        raise NotImplementedError
    def read_soon(self) -> None:
        """Reads on in the next turn of the event loop."""
        raise NotImplementedError
    def count_held(self) -> bool:
        """The application has received all `messages`, and some bytes were reserved for them."""
        raise NotImplementedError
    def has_ended_early(self) -> bool:
        """Whether the client has left before it was accepted; then there is a farewell."""
        raise NotImplementedError
    def put_other(self, message: dict[str, Any], kind: object) -> None:
        """Sends a message that is not data, or cannot be sent now."""
        raise NotImplementedError
    def pack(self, first: int, data: Any) -> tuple[int, Any]:
        """The first byte and the payload of the compressed frame."""
        raise NotImplementedError
    async def finish_send(self, message: dict[str, Any] | None) -> None:
        """Waits until the client has taken what was sent, or for the next turn; then sends `message`."""
        raise NotImplementedError
    def hold(self) -> None:
        """Watches the client's pace from now on, as it has not taken all that was sent."""
        raise NotImplementedError
    def break_off(self) -> None:
        """The client has left."""
        raise NotImplementedError
    def fail(self) -> None:
        """Ends the connection because of the exception that is being handled."""
        raise NotImplementedError
    def switch(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Sends 101 (Switching Protocols) with these fields; Date, Connection and X-Request-Id are added.

        Raises ResponseError for a field that HTTP does not allow, and ClientDisconnected.
        """
    def has_gone(self) -> bool:
        """Whether the client has sent FIN or reset the connection; if not, Front.moved() will tell."""
    def read(self, most: int = 65536, max_size: int = 0) -> bytes | list[dict[str, Any]] | None:
        """What has arrived, at most 64 KiB.  None: nothing has; b"": nothing more will.

        Messages for the application, if it is nothing but whole ones of at most `max_size` bytes, in one frame each and
        not compressed, and follows a whole frame.  Sets is_waiting if there is nothing left to read.
        """
    def put_frame(self, first: int, data: Any) -> None:
        """Sends a frame of a server; `first`: its first byte, `data`: bytes-like, or str.

        If is_full, flush() has to take the rest before the next one.  Raises ClientDisconnected, and ResponseError for
        a str that UTF-8 cannot encode.
        """
    def put_bytes(self, data: bytes) -> None:
        """Sends bytes as they are; otherwise as put_frame()."""
    reserved: int
    """What reserve() was told last."""
    def reserve(self, size: int) -> bool:
        """Counts so many bytes against buffer_size, in place of those before.  False: there is no room."""
    def end(self, last: bytes = b"", abort: bool = False) -> None:
        """Sends what is left, and `last`, and gives the connection back, which closes it; `abort`: resets it."""

class WSGIHandler:
    """A handler with the parameters (request, client_address, server) that runs a WSGI application.

    `environ` is the part of the environ that never changes.  `addresses`: SERVER_NAME and SERVER_PORT for requests of
    each listener after the first.
    """

    app: Callable[..., Any]
    environ: dict[str, Any]
    def __init__(
        self, app: Callable[..., Any], environ: dict[str, Any], addresses: Iterable[tuple[str, int]] = ()
    ) -> None: ...
    def __call__(self, request: Request, client_address: Any, server: Any) -> None: ...

class ParseError(ValueError):
    """A malformed head or chunked body; `status`: of the response, `name`: the violated rule (HTTP1_ERRORS)."""

    name: str
    status: int

def set_access_schema(number: int, trace_prefix: str) -> None:
    """From now on Request.access_line() renders in this schema of pkg.logs.schemas.  ValueError: there is none."""

def parse_head(
    data: bytes, seen: int = 0, *, max_header_size: int = 32_768, max_headers: int = 100, max_target_size: int = 8192
) -> Request | None:
    """The request at the beginning of `data`, without a connection; None if incomplete.  Raises ParseError."""

class ChunkedDecoder:
    complete: bool
    def decode(self, data: bytes) -> tuple[bytes, int]:
        """The decoded bytes, and how many bytes of `data` were consumed.  Raises ParseError."""

def first_outside(frame: FrameType, files: set[str]) -> FrameType | None:
    """The innermost frame, from this one outwards, whose code's file is not one of these."""

def new_request_id() -> str:
    """32 lowercase hexadecimal digits: unique, not secret."""

class NewIds:
    """Called with a request, gives it a new id, and `context` all its ids.

    A request that has one of the header fields `names` (in lower case) is left to `read(request)`.
    """

    def __init__(
        self, context: ContextVar[tuple[str, str, str]], names: tuple[bytes, ...], read: Callable[[Request], object]
    ) -> None: ...
    def __call__(self, request: Request) -> None: ...
