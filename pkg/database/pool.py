"""psycopg's pool with additions for the database check.

It makes no decisions: `check` decides when to ask, flush, refill or give up.
"""

from __future__ import annotations

import asyncio  # psycopg has imported it
import logging
import threading
import weakref
from collections.abc import Callable
from time import monotonic
from typing import Any

import psycopg
import psycopg_pool
from psycopg_pool.pool import AddConnection

from pkg.database.connection import IDLE, Connection, generation
from pkg.database.waiting import WaitingTask

__all__ = ["POOL_NAME", "NotNow", "Pool", "PoolTimeout", "first_line", "quiet"]

_log = logging.getLogger("psycopg.pool")

POOL_NAME = "database"
LOG_INTERVAL = 5.0  # seconds between two lines that say why a connection failed

PoolTimeout = psycopg_pool.PoolTimeout


class NotNow(psycopg.OperationalError):
    """Prevents the pool from connecting while the check fails."""


class Pool(psycopg_pool.ConnectionPool[Connection]):
    """psycopg_pool without its back-off and without meeting dead connections one by one.

    - A failed attempt to connect is repeated once and then given up (reconnect_timeout=0).  psycopg_pool would retry
      after 1, 2, 4 .. 128 s and count the connection as existing meanwhile, so that a database that is back after 130 s
      is next tried after 255 s (psycopg issues 1315 and 370).  Here each waiting borrower and `refill` make an attempt.
    - There is no `check=`: it costs a round trip for each borrower, and sleeps 1, 2, 4, 8, 16 s inside getconn() while
      it finds dead connections.  `borrow` recognises most of them without a query and takes the next one.
    """

    def __init__(self, conninfo: Callable[[], str], *, name: str = POOL_NAME, **options: Any) -> None:
        _logged.setdefault(name, -LOG_INTERVAL)
        super().__init__(
            conninfo,
            name=name,
            connection_class=Connection,
            open=False,
            reconnect_timeout=0.0,
            **options,
        )
        self._generation = generation()  # of the process that has opened it

    def take_name(self) -> None:
        """Raises ValueError if another pool of this process that is open has the name, by which the log tells them
        apart."""
        with _names_lock:
            other = _names.get(self.name)
            if other not in (None, self) and not other.closed and other._generation == generation():
                raise ValueError(f"a pool named {self.name!r} is open already: give each a name of its own")
            self._generation = generation()
            _names[self.name] = self

    def borrow(self, timeout: float) -> Connection:
        """A connection that is not known to be dead.  Raises PoolTimeout if there is none within `timeout` seconds."""
        self._stats[self._REQUESTS_NUM] += 1
        if self._closed:
            self._check_open_getconn()
        end = 0.0 if self._pool else monotonic() + timeout  # no deadline is needed if a connection is free
        while True:
            try:
                conn = self._getconn_unchecked(timeout)  # getconn() has a loop for `check=` around it
            except PoolTimeout:
                self._forget_who_left()
                raise
            conn.lent = monotonic()
            if (not conn.is_ending or self._has_ended(conn, end or conn.lent + timeout)) and not conn.is_lost():
                return conn
            self._replace_lost(conn)
            end = end or conn.lent + timeout
            timeout = max(0.001, end - monotonic())

    def _has_ended(self, conn: Connection, until: float) -> bool:
        """Whether the transaction that the last borrower has rolled back ends by the monotonic time `until`."""
        try:
            return conn.has_ended(until)
        except psycopg.Error:
            return False
        except BaseException:
            conn.close()
            self.putconn(conn)
            raise

    def _reset_connection(self, conn: Connection) -> None:
        """psycopg_pool would close a connection with a statement under way."""
        if conn.pgconn.transaction_status != IDLE and not conn.is_ending:
            super()._reset_connection(conn)

    def give_back(self, conn: Connection) -> None:
        """putconn() for a connection that is certainly of this pool: without asking that, and without a line of log."""
        if self._closed:
            self.putconn(conn)
        else:
            self._return_connection(conn, from_getconn=False)

    def _replace_lost(self, conn: Connection) -> None:
        """putconn() would count it as one that its borrower has returned broken."""
        conn.close()
        if self._closed:
            self.putconn(conn)
        else:
            self._return_connection(conn, from_getconn=True)

    async def borrow_in_task(self, timeout: float) -> Connection:
        """The same without blocking the event loop.  Threads and tasks wait in one queue."""
        self._stats[self._REQUESTS_NUM] += 1
        if self._closed:
            self._check_open_getconn()
        end = 0.0 if self._pool else monotonic() + timeout
        while True:
            conn = await self._take_or_wait(timeout)
            conn.lent = monotonic()
            until = end or conn.lent + timeout
            if (not conn.is_ending or await self._has_ended_in_task(conn, until)) and not conn.is_lost():
                return conn
            self._replace_lost(conn)
            end = end or conn.lent + timeout
            timeout = max(0.001, end - monotonic())

    async def _has_ended_in_task(self, conn: Connection, until: float) -> bool:
        """The same for a task, which looks again and again: it seldom gets the connection of a thread so early."""
        pause = 0.0005
        try:
            while not conn.has_ended(0.0):
                if monotonic() >= until:
                    return False
                await asyncio.sleep(pause)
                pause = min(2 * pause, 0.05)
        except psycopg.Error:
            return False
        except BaseException:
            conn.close()
            self.putconn(conn)
            raise
        return True

    async def _take_or_wait(self, timeout: float) -> Connection:
        """psycopg_pool's _getconn_unchecked(), for a task."""
        begun, waiting = 0.0, None
        with self._lock:
            conn = self._get_ready_connection(timeout)
            if conn is None:
                begun, waiting = monotonic(), WaitingTask[Connection]()
                self._waiting.append(waiting)
                self._stats[self._REQUESTS_QUEUED] += 1
                self._maybe_grow_pool()
        if waiting is not None:
            try:
                conn = await waiting.result(timeout)
            except GeneratorExit:  # the coroutine is garbage, perhaps where this thread holds the lock
                waiting.soon(self._leave_queue, waiting)
                raise
            except BaseException:
                self._leave_queue(waiting)
                raise
            finally:
                self._stats[self._REQUESTS_WAIT_MS] += int(1000.0 * (monotonic() - begun))
        assert conn is not None
        conn._pool = self
        return conn

    def _leave_queue(self, waiting: WaitingTask[Connection]) -> None:
        self._stats[self._REQUESTS_ERRORS] += 1
        given = waiting.abandon()
        self._forget_who_left()
        if given is not None:
            self._return_connection(given, from_getconn=True)  # to the next one that waits

    def _forget_who_left(self) -> None:
        """psycopg_pool keeps those who have waited in vain until there is a connection: in a long outage, thousands."""
        with self._lock:
            while self._waiting and self._waiting[0].error is not None:
                self._waiting.popleft()

    def close(self, timeout: float = 5.0) -> None:
        """As psycopg_pool's, but those who wait get their error first, and not after the last worker has ended."""
        with self._lock:
            waiting = list(self._waiting)
        for client in waiting:
            client.fail(psycopg_pool.PoolClosed(f"the pool {self.name!r} is closed"))
        super().close(timeout)

    def prune(self) -> int:
        """Replaces idle connections that are known to be dead, without a query, and returns their number."""
        with self._lock:
            lost = [conn for conn in self._pool if _is_lost(conn)]
            for conn in lost:
                self._pool.remove(conn)
        self._stats[self._CONNECTIONS_LOST] += len(lost)
        for conn in lost:
            self._close_connection(conn)
            self.run_task(AddConnection(self))
        return len(lost)

    def refill(self) -> None:
        """Starts to connect until there are `min_size` connections, and one more if callers are waiting."""
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
        """Connections that exist or are being established."""
        return self._nconns

    @property
    def available(self) -> int:
        return len(self._pool)

    @property
    def waiting(self) -> int:
        return len(self._waiting)


def _is_lost(conn: Connection) -> bool:
    try:
        return (not conn.is_ending or conn.has_ended(0.0)) and conn.is_lost()
    except psycopg.Error:
        return True


# By name, those that have been opened; a lock, as two threads may open pools at once.
_names: weakref.WeakValueDictionary[str, Pool] = weakref.WeakValueDictionary()
_names_lock = threading.Lock()


# ---------------------------------------------------------------------- the log of the pool


def quiet() -> None:
    """Reduces the log of psycopg_pool to what is useful."""
    if _log.level == logging.NOTSET:
        _log.setLevel(logging.WARNING)  # at INFO it writes a line for each borrower
    _log.addFilter(_terse)


_logged: dict[str, float] = {}  # time of the last line about a pool, by the name of the pool; only for our pools


def _terse(record: logging.LogRecord) -> bool:
    """A filter that keeps only why a connection failed, once in a few seconds instead of for each attempt.

    Lost, replaced and failed connections are in the metrics, and the check logs what follows from them.  Records of the
    application's own pools pass unchanged.
    """
    args = record.args if isinstance(record.args, tuple) else ()
    name = next((arg for arg in args if isinstance(arg, str) and arg in _logged), None)
    if name is None:
        # Records about a single connection do not name the pool.
        return not (args and isinstance(args[0], Connection) and record.msg.startswith("discarding closed connection"))
    error = args[-1]
    now = monotonic()
    if not isinstance(error, Exception) or isinstance(error, NotNow) or now - _logged[name] < LOG_INTERVAL:
        return False
    # As text: otherwise a stored record would keep the exception, its frames, and the connection's descriptor.
    record.args = (name, first_line(error))
    _logged[name] = now
    return True


def first_line(error: BaseException | None) -> str:
    """One line for the log.  Messages of libpq contain host, port, user and database, but never the password."""
    text = str(error).strip().splitlines() if error is not None else []
    return text[0].removeprefix("connection failed: ") if text else "the server closed the connection"
