"""Logging: one JSON object or one line of text for each record, written by a thread, so that no caller waits.

It is not a logging framework: applications use `logging`, and their records end here.

The rules:
- A caller only appends to a queue.  It renders application records itself, because their arguments may change and it
  has their context.  Access records are rendered by the C core if they are JSON without escapes, otherwise by the
  writer.
- The queue is bounded in lines and in bytes.  Lines that do not fit are dropped and counted; nobody waits.  When there
  is room again, one line reports how many were lost.
- Only the writer uses the descriptor.  A full pipe, a closed pipe or a full disk costs lines, but does not stop the
  service.
- An application may configure its own loggers freely.  Those of the service always end here, whatever `logging.config`
  does to others and whenever it runs.  Handlers that an agent has put on the root logger stay there.
- A forked child has no writer thread.  It writes its lines directly, and what cannot be written at once is lost.
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from pkg.logs import context
from pkg.logs.output import PIPE_BUF, Output
from pkg.logs.records import Access, json_access, json_record, text_access, text_record
from pkg.logs.schemas import OTEL, Schema, schema_of

if TYPE_CHECKING:
    from pkg._core import Request

__all__ = [
    "LogLines",
    "Sink",
    "access",
    "access_of",
    "catch_uncaught",
    "configure",
    "is_open",
    "schema",
]

# Limits of the queue.  Access records are dropped first, so that a flood of requests cannot displace the lines that
# explain it.
MAX_ACCESS_LINES = 14336
MAX_LINES = 16384
MAX_BYTES = 16 << 20
# Limits of the fields of a waiting access record, in characters.  Long records are dropped even earlier: clients choose
# their length, and MAX_ACCESS_LINES long records would need more memory than many containers have.
MAX_PATH = 4096
MAX_USER_AGENT = 1024
LONG = 256
MAX_LONG_LINES = 2048

_GATHER = 0.005  # seconds in which lines are collected, so that one system call writes many of them
_BATCH_SIZE = 1 << 16
_REPORT_INTERVAL = 1.0
_BLOCKED_POLL = 0.1

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}


# The loggers of the service, including those below them: its own, `wsgi.errors`, and that of its pool.
OWN = ("pkg", "wsgi.errors", "psycopg.pool")
# The loggers below "pkg", no matter whether the module that uses them has been imported.
_BELOW = (
    *("admin", "asgi", "database", "handler", "health", "lastwords", "loader", "logs", "server", "service", "signals"),
    *("uncaught", "workers"),
)


class _OwnLogger(logging.Logger):
    """A logger of the service.  By default `logging.config` disables every logger that it does not name, and the
    application may call it at any time: during its import, in a factory, in a request."""

    @property
    def disabled(self) -> bool:
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None:
        """Ignored: whoever configures an application's logging does not mean to silence its server."""


def _own_loggers() -> list[logging.Logger]:
    """The loggers of OWN, created if necessary.  From now on they and those below them cannot be disabled."""
    found = [logging.getLogger(name) for name in OWN]
    for name in _BELOW:
        logging.getLogger(f"pkg.{name}")
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if type(logger) is logging.Logger and name.startswith(OWN):
            logger.__class__ = _OwnLogger
    return found


# Items of the queue: a line, an access record, a rendered access record, or the event of a caller that waits for all
# items before it.
_Item = bytes | Access | tuple[bytes] | threading.Event


class LogLines(NamedTuple):
    """How many lines were written and dropped since the start, and how many wait to be written."""

    written: int
    dropped: int
    queued: int


class Sink:
    """The queue, its writer thread, and what `configure` changed in `logging`.  Only `configure` creates one."""

    def __init__(self, output: Output, *, text: bool, access_log: bool, schema: Schema = OTEL) -> None:
        self._output = output
        self._text = text
        self._access_log = access_log
        self.schema = schema
        self._access_from = 0
        self._render = text_record if text else partial(json_record, schema=schema)
        self._render_access = text_access if text else partial(json_access, schema=schema)
        self._queue: SimpleQueue[_Item] = SimpleQueue()
        # Each counter is written either by callers (under the handler's lock) or by the writer thread.
        self._bytes_put = 0
        self._bytes_taken = 0
        self._refused = 0
        self._refused_lock = threading.RLock()  # reentrant, because a signal handler may log
        self._lost = 0
        self._written = 0
        self._reported = 0
        self._report_at = 0.0
        self._is_midline = False
        self._closing_at: float | None = None
        self._closed = False
        self._end = threading.Event()
        self._warnings_captured = getattr(logging, "_warnings_showwarning", None) is not None
        self._restore: list[tuple[logging.Logger, list[logging.Handler], int, bool]] = []
        self._undo: list[Callable[[], object]] = []
        self._usual: int | None = None
        self._set_root = logging.NOTSET
        self._root_level: int | None = None
        self._watchers: list[Callable[[logging.LogRecord], object]] = []
        self._handler = _Handler(self)
        self._thread = threading.Thread(target=self._run, name="pkg-logs", daemon=True)

    # -- for callers

    @property
    def dropped(self) -> int:
        """Lines lost so far, because the queue was full or the output failed."""
        return self._refused + self._lost

    def stats(self) -> LogLines:
        """Numbers for the metrics."""
        return LogLines(self._written, self.dropped, self._queue.qsize())

    def watch(self, watcher: Callable[[logging.LogRecord], object]) -> None:
        """Calls it with each record from now on, in the thread that logs."""
        self._watchers.append(watcher)

    @property
    def level(self) -> str:
        """The name of the current level."""
        number = logging.getLogger("pkg").level
        return next((name for name, value in LEVELS.items() if value == number), "info")

    def set_level(self, level: str) -> None:
        """Logs only records of this level or above from now on; access records are info, from status 500 on error.

        If the application has set the level of the root logger, it follows the change, and is restored together with
        the usual level.
        """
        number = LEVELS[level]
        root = logging.getLogger()
        if self._usual is None:
            self._usual = self._set_root = number
        if root.level != self._set_root:
            self._root_level = root.level  # set by the application
        self._set_root = self._root_level if number == self._usual and self._root_level is not None else number
        root.setLevel(self._set_root)
        for name in OWN:
            logging.getLogger(name).setLevel(number)
        if number == logging.INFO:  # at INFO the pool makes a record for each borrower
            logging.getLogger("psycopg.pool").setLevel(logging.WARNING)
        self._access_from = 0 if number <= logging.INFO else 500 if number <= logging.ERROR else 1000
        if not self._access_log:
            self._access_from = 1000

    def flush(self, timeout: float = 1.0) -> bool:
        """Waits until everything queued so far is written or lost.  Returns False after `timeout` seconds."""
        if self._closed:
            return True
        marker = threading.Event()
        self._queue.put(marker)
        return marker.wait(timeout)

    def close(self, timeout: float = 1.0) -> bool:
        """Writes what is queued, for at most `timeout` seconds, ends the thread and restores `logging`.

        Returns whether everything was written.  Later records are written to stderr.
        """
        global _sink
        if self._closed:
            return True
        if _sink is self:
            _sink = None
        for logger, handlers, level, propagate in self._restore:
            for handler in logger.handlers[:]:
                logger.removeHandler(handler)
            for handler in handlers:
                logger.addHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
        for undo in self._undo:
            undo()
        logging.captureWarnings(self._warnings_captured)
        atexit.unregister(self.close)
        lost = self._lost
        self._closing_at = time.monotonic() + timeout
        self._closed = True
        self._queue.put(self._end)
        self._end.wait(timeout + 2 * _BLOCKED_POLL)
        if self._end.is_set():
            self._thread.join()
            self._output.close()
        return self._end.is_set() and self._lost == lost

    def _put(self, line: bytes) -> None:
        """Called under the handler's lock."""
        if self._closed:
            self._emergency(line)
        elif self._queue.qsize() >= MAX_LINES or self._bytes_put - self._bytes_taken + len(line) > MAX_BYTES:
            self._refuse()
        else:
            self._bytes_put += len(line)
            self._queue.put(line)

    def _refuse(self) -> None:
        with self._refused_lock:
            self._refused += 1

    @staticmethod
    def _emergency(line: bytes) -> None:
        with suppress(OSError):
            poller = select.poll()
            poller.register(2, select.POLLOUT)
            if poller.poll(0):  # a blocked stderr must not delay the exit
                os.write(2, line[:PIPE_BUF])

    def _forked(self) -> None:
        """Runs in a forked child: the parent writes what is queued."""
        self._queue = _Direct(self)
        self._bytes_put = self._bytes_taken = 0
        self._refused_lock = threading.RLock()
        self._is_midline = False
        self._closing_at = 0.0  # do not wait for the output

    # -- the writer thread

    def _run(self) -> None:
        is_idle = True
        while True:
            item = self._queue.get()
            if is_idle and not self._closed:
                time.sleep(_GATHER)
            lines: list[bytes] = []
            size = 0
            markers: list[threading.Event] = []
            while True:
                if isinstance(item, threading.Event):
                    markers.append(item)
                elif line := self._line(item):
                    lines.append(line)
                    size += len(line)
                if size >= _BATCH_SIZE:
                    is_idle = False
                    break
                try:
                    item = self._queue.get_nowait()
                except Empty:
                    is_idle = True
                    break
            self._take(lines, markers)
            if self._end.is_set() and self._queue.empty():
                return

    def _take(self, lines: list[bytes], markers: list[threading.Event]) -> None:
        if lines:
            self._write(lines)
        if self.dropped > self._reported and (markers or time.monotonic() >= self._report_at):
            self._report()
        for marker in markers:
            marker.set()

    def _line(self, item: bytes | Access | tuple[bytes]) -> bytes:
        if isinstance(item, bytes):
            self._bytes_taken += len(item)
            return item
        if len(item) == 1:
            return item[0]
        try:
            return self._render_access(item)
        except Exception:  # a field of an unexpected type must not end all logging
            self._lost += 1
            return b""

    def _write(self, lines: list[bytes]) -> bool:
        """Writes the lines, and counts as lost those that could not be written."""
        data = b"".join(lines)
        if self._is_midline:  # the last line was cut when the output failed, so start a new line
            data = b"\n" + data
        taken = 0
        view = memoryview(data)
        while taken < len(data):
            try:
                taken += self._output.write(view[taken:])
            except BlockingIOError:
                if self._closing_at is not None and time.monotonic() >= self._closing_at:
                    break
                self._output.wait(_BLOCKED_POLL)
            except OSError:
                break
        if taken:
            self._is_midline = data[taken - 1] != 0x0A
        if taken == len(data):
            self._written += len(lines)
            return True
        end = len(data) - sum(map(len, lines))
        for line in lines:
            end += len(line)
            if end <= taken:
                self._written += 1
            else:
                self._lost += 1
        return False

    def _report(self) -> None:
        """Writes one line about lost lines.  It is not counted itself; if it fails, the next one reports the number."""
        self._report_at = time.monotonic() + _REPORT_INTERVAL
        dropped, lost, written = self.dropped, self._lost, self._written
        record = logging.makeLogRecord(
            {
                "name": "pkg.logs",
                "levelno": logging.WARNING,
                "levelname": "WARNING",
                "msg": "%d log lines were dropped: the output was blocked or failed",
                "args": (dropped - self._reported,),
                "log.dropped": dropped - self._reported,
            }
        )
        if self._write([self._render(record)]):
            self._reported = dropped
        self._lost, self._written = lost, written


class _Direct(SimpleQueue[_Item]):
    """Replaces the queue in a forked child: writes each item at once."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def put(self, item: _Item, block: bool = True, timeout: float | None = None) -> None:
        if isinstance(item, threading.Event):
            self._sink._take([], [item])
        elif line := self._sink._line(item):
            self._sink._take([line], [])


class _Handler(logging.Handler):
    """Receives the records of `logging`."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._sink._render(record, context.ids_now())
        except Exception:
            self._sink._refuse()
        else:
            self._sink._put(line)
        for watcher in self._sink._watchers:
            with suppress(Exception):  # the line is more important
                watcher(record)


_sink: Sink | None = None


def _after_fork() -> None:
    if _sink is not None:
        _sink._forked()


os.register_at_fork(after_in_child=_after_fork)


def configure(
    *,
    format: str = "auto",
    schema: str = "otel",
    level: str = "info",
    access_log: bool = True,
    stream: IO[Any] | None = None,
) -> Sink:
    """Sends all records of `logging` and `access` to `stream` (default: stdout), and starts the writer.

    `format`: json, text, or auto (text on a terminal, otherwise json).  `schema`: whose names the fields of JSON have,
    otel, gcp or ecs.  `level`: a name in LEVELS.  A sink that is still open is closed first.  `Sink.close()` undoes
    everything.
    """
    global _sink
    if _sink is not None:
        _sink.close()
    output = Output(sys.stdout if stream is None else stream)
    if stream is None and isinstance(sys.stdout, io.TextIOWrapper):
        # The application prints to the same pipe: by lines, not by blocks that end in the middle of a line.
        with suppress(ValueError, OSError):
            sys.stdout.reconfigure(line_buffering=True)
    text = format == "text" or (format == "auto" and output.is_terminal)
    sink = Sink(output, text=text, access_log=access_log, schema=schema_of(schema, os.environ))
    sink._thread.start()  # before anything is changed, because starting a thread may fail
    root, own = logging.getLogger(), _own_loggers()
    # Handlers that write to the console are replaced.  Those of an agent send records elsewhere; they get ours as well.
    others = [handler for handler in root.handlers if not _is_console(handler)]
    for logger in (root, *own):
        sink._restore.append((logger, logger.handlers[:], logger.level, logger.propagate))
        kept = others if logger is root else [*others, *logger.handlers]
        for handler in logger.handlers[:]:
            logger.removeHandler(handler)
        for handler in (sink._handler, *kept):
            logger.addHandler(handler)
    # The service's loggers have their own handlers, so that an application that configures the root logger neither
    # silences them nor feeds `wsgi.errors` back into itself.
    for logger in own:
        logger.propagate = False
    root.setLevel(LEVELS[level])
    logging.captureWarnings(True)
    sink.set_level(level)
    atexit.register(sink.close)  # so that the last lines are written even without close()
    _sink = sink
    return sink


def _is_console(handler: logging.Handler) -> bool:
    """Whether it writes to stdout or stderr, like the handler of logging.basicConfig()."""
    stream = getattr(handler, "stream", None)
    return type(handler) is logging.StreamHandler and stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)


def catch_uncaught(sink: Sink) -> None:
    """Logs uncaught exceptions of threads, finalizers and the program, until the sink is closed.

    A hook that is not the interpreter's, for example of an agent, is called as well.
    """
    log = logging.getLogger("pkg.uncaught")

    def said(kind: Any, error: Any, trace: Any, text: str, *arguments: object) -> None:
        if kind is not None:
            log.critical(text, *arguments, exc_info=(kind, error if error is not None else kind(), trace))

    excepthook, threads, unraisable = sys.excepthook, threading.excepthook, sys.unraisablehook

    def of_program(kind: Any, error: Any, trace: Any) -> None:
        if issubclass(kind, KeyboardInterrupt):
            excepthook(kind, error, trace)
            return
        said(kind, error, trace, "an uncaught exception ended the program")
        if excepthook is not sys.__excepthook__:
            excepthook(kind, error, trace)

    def of_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is SystemExit:  # like threading's own hook
            return
        name = args.thread.name if args.thread is not None else "unknown"
        said(args.exc_type, args.exc_value, args.exc_traceback, "an uncaught exception ended the thread %s", name)
        if threads is not threading.__excepthook__:
            threads(args)

    def of_finalizer(args: Any) -> None:
        what = args.err_msg or "Exception ignored in"
        try:
            where = repr(args.object)
        except Exception:
            where = f"<{type(args.object).__name__}>"
        said(args.exc_type, args.exc_value, args.exc_traceback, "%s: %s", what, where)
        if unraisable is not sys.__unraisablehook__:
            unraisable(args)

    sys.excepthook, threading.excepthook, sys.unraisablehook = of_program, of_thread, of_finalizer

    def undo() -> None:
        if sys.excepthook is of_program:
            sys.excepthook = excepthook
        if threading.excepthook is of_thread:
            threading.excepthook = threads
        if sys.unraisablehook is of_finalizer:
            sys.unraisablehook = unraisable

    sink._undo.append(undo)


def is_open() -> bool:
    """Whether there is an open sink."""
    return _sink is not None


def schema() -> Schema:
    """That of the open sink."""
    return _sink.schema if _sink is not None else OTEL


def access(
    method: str,
    target: str,
    status: int,
    duration: float,
    request_size: int,
    response_size: int,
    client: str,
    user_agent: str | None = None,
    trace_id: str | None = None,
    span_id: str | None = None,
    request_id: str | None = None,
    listener: str = "",
) -> None:
    """Queues one access record; `duration` in seconds, sizes of the bodies in bytes.  Takes 0.5 us and never waits."""
    sink = _sink
    if sink is None or status < sink._access_from:
        return
    queue = sink._queue
    is_long = len(target) > LONG or (user_agent is not None and len(user_agent) > LONG)
    if queue.qsize() >= (MAX_LONG_LINES if is_long else MAX_ACCESS_LINES):
        sink._refuse()
        return
    if len(target) > MAX_PATH:
        target = target[:MAX_PATH]
    if user_agent and len(user_agent) > MAX_USER_AGENT:
        user_agent = user_agent[:MAX_USER_AGENT]
    queue.put(
        (
            time.time(),
            method,
            target,
            status,
            duration,
            request_size,
            response_size,
            client,
            user_agent,
            trace_id,
            span_id,
            request_id,
            listener,
        )
    )


def access_of(request: Request) -> None:
    """Queues the access record of a request that has ended."""
    sink = _sink
    if sink is None or request.status < sink._access_from:
        return
    line = None if sink._text else request.access_line()
    if line is None:
        trace_id, span_id, request_id = (*(request.context or ()), None, None, None)[:3]
        access(
            request.method,
            request.target,
            request.status,
            request.duration,
            request.received_size,
            request.response_size,
            request.client_address[0],
            request.header(b"user-agent"),
            trace_id,
            span_id,
            request_id,
            request.listener_name,
        )
    elif sink._queue.qsize() >= MAX_ACCESS_LINES:
        sink._refuse()
    else:
        sink._queue.put((line,))
