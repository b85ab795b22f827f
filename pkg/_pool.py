"""psycopg's connection and pool, with what the database's check needs of them, and deadlines that free a thread.

It decides nothing: when to ask, flush, refill or give up is said in `database`.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import socket
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from time import monotonic
from typing import Any, Self

import psycopg
import psycopg_pool
from psycopg import pq, rows
from psycopg.conninfo import make_conninfo
from psycopg_pool.pool import AddConnection

IDLE = pq.TransactionStatus.IDLE
_BAD = pq.ConnStatus.BAD

__all__ = [
    "IDLE",
    "POOL_NAME",
    "Connection",
    "Deadline",
    "NotNow",
    "Pool",
    "PoolTimeout",
    "Watchdog",
    "first_line",
    "quiet",
    "shut",
]

_log = logging.getLogger("psycopg.pool")

POOL_NAME = "database"
LOG_INTERVAL = 5.0  # seconds between two lines that say why a connection failed

PoolTimeout = psycopg_pool.PoolTimeout

MAX_CANCELS = 64  # waiting; the oldest is dropped: it has had its chance
CANCEL_TIMEOUT = 5.0  # seconds, for each step of one
MAX_WAIT = 3600.0  # seconds at a time: a wait of 300 years is an OverflowError


class NotNow(psycopg.OperationalError):
    """The pool wants to connect while the check says that there is no use in it."""


class LastWord:
    """What the server said when it ended the session, if it did.

    It does not know its connection: one that knew itself would keep its memory, and an unclosed one its descriptor,
    until the garbage collector came.
    """

    text = ""
    heard = False  # anything, since somebody last looked

    def __call__(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        self.heard = True
        if diagnostic.severity_nonlocalized in ("FATAL", "PANIC"):
            self.text = diagnostic.message_primary or "the server ended the session"


class _Cursor(psycopg.Cursor[Any]):
    """Of a connection in autocommit mode, where no end of a transaction says that the server answers."""

    def execute(self, *args: Any, **options: Any) -> Self:
        super().execute(*args, **options)
        return self._has_answer()

    def executemany(self, *args: Any, **options: Any) -> None:
        super().executemany(*args, **options)
        self._has_answer()

    def _has_answer(self) -> Self:
        connection = self.connection
        assert isinstance(connection, Connection)
        connection.answered = monotonic()
        return self


class Connection(psycopg.Connection[Any]):
    """A connection that can tell without asking that it is dead."""

    conninfo = ""  # what another connection to the same server needs
    last_word: LastWord | None = None  # of a connection that listens
    answered = 0.0  # monotonic, when the server last did, at the end of a transaction or in autocommit mode

    @classmethod
    def connect(cls, conninfo: str = "", **options: Any) -> Connection:
        """psycopg's, but a failed attempt leaves no descriptor to the garbage collector.

        After a timeout psycopg (3.3.8) has a cycle of the error, its frames, and in them the unfinished connection.
        """
        try:
            conn = super().connect(conninfo, **options)
        except psycopg.Error as error:
            traceback.clear_frames(error.__traceback__)
            raise error.with_traceback(None) from None
        # Of several hosts the one that answered: a request to cancel must not go to another.
        pgconn = conn.pgconn
        where = {"host": pgconn.host, "hostaddr": pgconn.hostaddr, "port": pgconn.port}
        conn.conninfo = make_conninfo(conninfo, **{name: value.decode() for name, value in where.items() if value})
        return conn

    # What ends a transaction is an exchange with the server, and its answer proof that it lives; at the end of none
    # nothing is said.  To watch every exchange, in wait(), would cost each of them more.

    def commit(self) -> None:
        is_open = self.pgconn.transaction_status != IDLE
        super().commit()
        if is_open:
            self.answered = monotonic()

    def rollback(self) -> None:
        is_open = self.pgconn.transaction_status != IDLE
        super().rollback()
        if is_open:
            self.answered = monotonic()

    @contextlib.contextmanager
    def transaction(self, *args: Any, **options: Any) -> Iterator[psycopg.Transaction]:
        with super().transaction(*args, **options) as transaction:
            yield transaction
        self.answered = monotonic()

    def set_autocommit(self, value: bool) -> None:
        super().set_autocommit(value)
        if value and self.cursor_factory is psycopg.Cursor:
            self.cursor_factory = _Cursor

    def restore(self) -> None:
        """Takes back what a borrower has set for itself: the next one expects a connection as new."""
        if self.autocommit:
            self.autocommit = False
        if self.isolation_level is not None:
            self.isolation_level = None
        if self.read_only is not None:
            self.read_only = None
        if self.deferrable is not None:
            self.deferrable = None
        self.row_factory = rows.tuple_row
        self.cursor_factory = psycopg.Cursor

    def is_lost(self) -> bool:
        """Whether the server has ended this idle session.  No query: it has said so, or the socket is at its end.

        A server that stops, or ends a session, first sends a FATAL message (PostgreSQL 55.2.3, "Function of the
        `ErrorResponse` in idle state"), then closes; one that stops at once, or because a process of it has crashed,
        sends a warning; a server that died has closed.  Nothing else is readable on an idle connection but notices,
        notifications and changed parameters, which are harmless.
        """
        pgconn, last_word = self.pgconn, self.last_word
        try:
            while True:
                pgconn.consume_input()  # one recv(), without letting go of the interpreter lock as poll() would
                pgconn.is_busy()  # parses what has come
                if last_word is None or not last_word.heard:
                    return pgconn.status == _BAD
                if last_word.text:
                    return True
                last_word.heard = False  # behind a message there may be the end
        except psycopg.Error:
            return True

    def listen(self) -> None:
        """Takes note of the server's last word."""
        self.last_word = LastWord()
        self.add_notice_handler(self.last_word)


class Pool(psycopg_pool.ConnectionPool[Connection]):
    """psycopg_pool without its back-off and without meeting dead connections one by one.

    - A failed attempt to connect is repeated once and given up (reconnect_timeout=0).  psycopg_pool would try again
      after 1, 2, 4 .. 128 s, and count the connection as there meanwhile, so that a database back after 130 s is next
      tried after 255 s (psycopg issues 1315 and 370).  Here whoever waits for a connection tries, and `refill`.
    - There is no `check=`: it costs a round trip for each borrower, and sleeps 1, 2, 4, 8, 16 s inside getconn() while
      it meets dead connections.  `borrow` sees most of them without asking and goes on to the next.
    """

    def __init__(self, conninfo: Callable[[], str], **options: Any) -> None:
        super().__init__(
            conninfo,
            connection_class=Connection,
            open=False,
            reconnect_timeout=0.0,
            **options,
        )

    def borrow(self, timeout: float) -> Connection:
        """A connection that is not known to be dead.  PoolTimeout: none within `timeout` seconds."""
        self._stats[self._REQUESTS_NUM] += 1
        self._check_open_getconn()
        end = monotonic() + timeout
        while True:
            conn = self._getconn_unchecked(timeout)  # getconn() has a loop for `check=` around it
            if not conn.is_lost():
                return conn
            conn.close()
            self.putconn(conn)  # which replaces it
            timeout = max(0.001, end - monotonic())

    def prune(self) -> int:
        """Replaces idle connections that are known to be dead, without asking; how many they were."""
        with self._lock:
            lost = [conn for conn in self._pool if conn.is_lost()]
            for conn in lost:
                self._pool.remove(conn)
        for conn in lost:
            self._close_connection(conn)
            self.run_task(AddConnection(self))
        return len(lost)

    def refill(self) -> None:
        """Begins to connect until there are `min_size` connections; for those who wait, one more."""
        with self._lock:
            if self.closed:
                return
            for _ in range(self.min_size - self._nconns):
                self._nconns += 1
                self.run_task(AddConnection(self))
            if self._waiting:
                self._maybe_grow_pool()

    @property
    def size(self) -> int:
        """Connections there or being made."""
        return self._nconns

    @property
    def available(self) -> int:
        return len(self._pool)

    @property
    def waiting(self) -> int:
        return len(self._waiting)


def shut(fd: int) -> None:
    """Ends a connection whose thread waits in it: that thread gets an OperationalError at once.

    Nothing else does with a server that is stopped or cut off: not the pool's timeout, not `statement_timeout` (the
    server's own clock), not a cancel request (it needs the server).
    """
    end = socket.socket(fileno=fd)
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the peer was faster
    finally:
        end.detach()


def _started(target: Callable[[], object], name: str) -> threading.Thread:
    """RuntimeError: the machine, or the container, has no thread to give."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


class Deadline:
    """One watched connection.  `fired`: it was shut."""

    __slots__ = ("conninfo", "fd", "fired", "pid")

    def __init__(self, fd: int, conninfo: str, pid: int) -> None:
        self.fd = fd
        self.conninfo = conninfo
        self.pid = pid  # of the backend whose query is to be cancelled; 0: of none
        self.fired = False


class Watchdog:
    """Shuts connections whose deadline has passed.  One thread, which begins with the first deadline.

    A server that still runs does not notice that its client has gone until the query ends, which may be never.  So it
    is asked to cancel the query, over a new connection and by a thread of its own.  Not with libpq's PQcancel: it waits
    for the server without a limit, and psycopg_c (3.3.8) calls it with the interpreter lock held, so that a stopped
    server stops this whole process.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.Lock())
        self._heap: list[tuple[float, int, Deadline]] = []
        self._count = count()
        self._released = 0  # of those in the heap
        self._thread: threading.Thread | None = None
        self._closed = False
        self._cancels: deque[tuple[float, Deadline]] = deque(maxlen=MAX_CANCELS)
        self._canceller: threading.Thread | None = None
        self.fired = 0

    def watch(self, conn: Connection, at: float, *, cancel: bool = False) -> Deadline:
        """Shuts the connection at the monotonic time `at` unless it is released before; then cancels its query."""
        # A descriptor of its own: libpq may close the connection's at any time, and its number be given to another.
        with self._condition:
            if self._thread is None and not self._closed:
                self._thread = _started(self._run, "database-deadlines")
            deadline = Deadline(os.dup(conn.pgconn.socket), conn.conninfo, conn.pgconn.backend_pid if cancel else 0)
            heapq.heappush(self._heap, (at, next(self._count), deadline))
            if self._heap[0][2] is deadline:
                self._condition.notify_all()
        return deadline

    def release(self, deadline: Deadline) -> bool:
        """Afterwards the connection is not touched any more.  True: it has been shut."""
        with self._condition:
            fd, deadline.fd = deadline.fd, -1
            if fd >= 0:
                os.close(fd)
                if not deadline.fired:
                    self._released += 1
            # Most deadlines are released long before they pass; the heap holds no more dead than living ones.
            if self._released > 64 and self._released * 2 > len(self._heap):
                self._heap = [entry for entry in self._heap if entry[2].fd >= 0]
                heapq.heapify(self._heap)
                self._released = 0
        return deadline.fired

    def _run(self) -> None:
        with self._condition:
            while not self._closed:
                while self._heap and self._heap[0][2].fd < 0:
                    heapq.heappop(self._heap)
                    self._released -= 1
                if not self._heap:
                    self._condition.wait()
                    continue
                left = self._heap[0][0] - monotonic()
                if left > 0:
                    self._condition.wait(min(left, MAX_WAIT))
                    continue
                deadline = heapq.heappop(self._heap)[2]
                deadline.fired = True
                self.fired += 1
                shut(deadline.fd)
                if deadline.pid:
                    self._begin_cancel(deadline)

    def cancel(self, conninfo: str, pid: int) -> None:
        """Cancels the query of a backend whose connection somebody else has shut."""
        with self._condition:
            self._begin_cancel(Deadline(-1, conninfo, pid))

    def _begin_cancel(self, deadline: Deadline) -> None:
        self._cancels.append((monotonic(), deadline))
        if self._canceller is None:
            # Without a thread to be had it stays in the queue, for the next one's thread or to be too old by then.
            with contextlib.suppress(RuntimeError):
                self._canceller = _started(self._run_cancels, "database-cancels")

    def _run_cancels(self) -> None:
        while True:
            with self._condition:
                if not self._cancels or self._closed:
                    self._canceller = None
                    self._condition.notify_all()
                    return
                at, deadline = self._cancels.popleft()
            # One that had to wait is left: by now the process of that number may be another client's.
            if monotonic() - at <= CANCEL_TIMEOUT:
                with contextlib.suppress(psycopg.Error, OSError, RuntimeError):
                    self._cancel(deadline)

    def _cancel(self, deadline: Deadline) -> None:
        limit = str(round(CANCEL_TIMEOUT))
        with Connection.connect(deadline.conninfo, autocommit=True, connect_timeout=limit) as conn:
            watched = self.watch(conn, monotonic() + CANCEL_TIMEOUT)
            try:
                conn.execute("select pg_cancel_backend(%s)", (deadline.pid,))
            finally:
                self.release(watched)

    def close(self, timeout: float = 0.0) -> None:
        """Ends, after cancels that are under way have had `timeout` seconds."""
        with self._condition:
            self._condition.wait_for(lambda: self._canceller is None, timeout)
            self._closed = True
            self._condition.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(1.0)


# ---------------------------------------------------------------------- what the pool logs


def quiet() -> None:
    """Makes psycopg_pool's log fit to be read."""
    if _log.level == logging.NOTSET:
        _log.setLevel(logging.WARNING)  # at INFO it says something about each borrower
    _log.addFilter(_terse)


_logged = -LOG_INTERVAL


def _terse(record: logging.LogRecord) -> bool:
    """Of what the pool's workers say: why a connection failed, every few seconds and not for each attempt of each.

    That connections are lost, replaced or given up is in the numbers, and the check says what it means.
    """
    global _logged
    if not isinstance(record.args, tuple) or POOL_NAME not in record.args:
        return not record.msg.startswith("discarding closed connection")
    error = record.args[-1]
    now = monotonic()
    if not isinstance(error, Exception) or isinstance(error, NotNow) or now - _logged < LOG_INTERVAL:
        return False
    # As text: who keeps the record would keep the exception, its frames, and with them the connection's descriptor.
    record.args = (POOL_NAME, first_line(error))
    _logged = now
    return True


def first_line(error: BaseException | None) -> str:
    """One line for the log.  libpq's messages name host, port, user and database, never the password."""
    text = str(error).strip().splitlines() if error is not None else []
    return text[0].removeprefix("connection failed: ") if text else "the server closed it"
