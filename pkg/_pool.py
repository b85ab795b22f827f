"""psycopg's pool, with what the database's check needs of it, and deadlines that free a thread.

It decides nothing: when to ask, flush, refill or give up is said in `database`.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from itertools import count
from time import monotonic
from typing import Any

import psycopg
import psycopg_pool
from psycopg_pool.pool import AddConnection

from pkg._connection import Connection

__all__ = [
    "POOL_NAME",
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
