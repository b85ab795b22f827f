"""Connections that are lent for a `with` block, under a deadline, and taken back at its end.

It neither creates connections nor judges the database.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from time import monotonic
from types import TracebackType
from typing import Any

import psycopg
from psycopg_pool import PoolClosed, TooManyRequests

from pkg.database.borrowed import BorrowedConnection
from pkg.database.connection import IDLE, Connection, Expired, Unavailable, generation
from pkg.database.pool import Pool, PoolTimeout, first_line
from pkg.database.watchdog import Deadline, Watchdog
from pkg.errors import NotRunningError

__all__ = ["Lease", "Lending", "Unavailable"]

_log = logging.getLogger("pkg.database")

KNOWN_DOWN_TIMEOUT = 1.0  # how long a borrower waits while the check fails: until the next check

_FOREIGN = "the pool belongs to the parent process; open a connection in this forked child instead"


class Lending:
    """Lends connections of the pool and takes them back; what it sees meanwhile is evidence for the check.

    `max_size`: size of the pool.  `timeout`: maximum time in seconds to wait for a connection.  `primary`: whether a
    server that is read-only counts as one that does not respond.  `prefix`: of messages, if there are several.
    """

    def __init__(self, pool: Pool, *, max_size: int, timeout: float, primary: bool, prefix: str = "") -> None:
        self._pool = pool
        self._max_size = max_size
        self._timeout = timeout
        self._primary = primary
        self.prefix = prefix
        self._generation = generation()
        self._leases: set[Lease | Loan] = set()
        self.forgotten: deque[Loan] = deque()  # loans whose borrowers were collected as garbage without a close()
        self.watchdog = Watchdog()
        # What the check has found last: failures in a row, and why.
        self.failures = 0
        self.reason = ""
        # Written by threads that return a connection, read by the check; single attributes, so there is no lock.
        self.use_time = 0.0  # seconds, for all returned connections
        self.proved = 0.0  # when the server last responded in a way that counts; also written by the check
        self.returned = 0.0  # the same, on a connection that was returned in good state

    @property
    def in_use(self) -> int:
        """The number of connections that are lent now."""
        return len(self._leases)

    @property
    def is_foreign(self) -> bool:
        """Whether this process was forked from the one that opened the pool, and so cannot use it."""
        return self._generation != generation()

    def open(self) -> None:
        """From now on the connections belong to this process."""
        self._generation = generation()

    def lend(self, lease: Lease | Loan, timeout: float | None = None) -> Connection:
        """Lends a connection.  Raises Unavailable if none is free within `timeout` seconds, or within the limit of all.

        Raises NotRunningError in a process that the application has forked.
        """
        if self.is_foreign:
            raise NotRunningError(_FOREIGN)
        if self.forgotten:
            self.reclaim()
        timeout = self._timeout if timeout is None else min(timeout, self._timeout)
        if self.failures > 1:
            timeout = min(timeout, KNOWN_DOWN_TIMEOUT)
        try:
            conn = self._pool.borrow(timeout)
        except PoolTimeout:
            in_use = len(self._leases)
            why = (
                f"; the last check failed: {self.reason}"
                if self.failures
                else f"; {in_use} of {self._max_size} are in use"
            )
            raise Unavailable(f"{self.prefix}no connection within {timeout:.3g} s{why}") from None
        except (PoolClosed, TooManyRequests) as error:
            raise Unavailable(str(error)) from None
        self._leases.add(lease)
        return conn

    def connect(self, timeout: float | None = None, deadline: float | None = None) -> BorrowedConnection:
        """Lends a connection whose close() gives it back.

        `timeout`: seconds to wait for one.  `deadline`: seconds from now until it must have been closed; then it is
        shut down, and what runs on it is cancelled.  Raises as `lend` does.
        """
        begun = monotonic()
        if deadline is not None:
            timeout = deadline if timeout is None else min(timeout, deadline)
        return Loan(self).begin(timeout, None if deadline is None else begun + deadline)

    def reclaim(self) -> None:
        """Closes connections whose borrowers have forgotten them; the pool replaces them."""
        while self.forgotten:
            try:
                loan = self.forgotten.popleft()
            except IndexError:  # another thread was faster
                return
            _log.warning("a connection that was not closed has been collected as garbage; it is replaced")
            loan.take_back(is_lost=True)

    def take_back(self, lease: Lease | Loan, conn: Connection) -> None:
        """Returns a connection to the pool; if it is intact, it proves that the server has responded during this
        use."""
        if self.is_foreign:
            raise NotRunningError(_FOREIGN)
        self._leases.discard(lease)
        use_time = monotonic() - conn.lent
        self.use_time += use_time  # no call between reading and writing it, so no other thread can come in between
        if conn.pgconn.transaction_status == IDLE:
            if conn.answered > self.returned and not (self._primary and conn.reports_read_only()):
                self.returned = conn.answered
                self.proved = max(self.proved, conn.answered)
            try:
                conn.restore()
            except psycopg.Error:
                conn.close()
        self._pool.putconn(conn)

    def close(self, timeout: float) -> None:
        """Shuts down the connections that are lent; cancelling their queries takes at most `timeout` seconds."""
        for lease in list(self._leases):
            lease.shut()
        self.watchdog.close(timeout)


class Lease:
    """Returned by `Database.connection`, for one `with` block.  `timeout`: seconds for the whole block."""

    __slots__ = ("_conn", "_deadline", "_lending", "_timeout")

    def __init__(self, lending: Lending, timeout: float | None) -> None:
        self._lending = lending
        self._timeout = timeout
        self._conn: Connection | None = None
        self._deadline: Deadline | None = None

    def __enter__(self) -> psycopg.Connection[Any]:
        if self._conn is not None:
            raise RuntimeError("this connection is already in use; call connection() for each `with` block")
        lending, timeout = self._lending, self._timeout
        if timeout is None:
            conn = lending.lend(self)
        else:
            begun = monotonic()
            conn = lending.lend(self, timeout)
            try:
                self._deadline = lending.watchdog.watch(conn, begun + timeout, cancel=True)
            except BaseException:
                lending.take_back(self, conn)
                raise
        self._conn = conn
        return conn

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lending, conn, deadline = self._lending, self._conn, self._deadline
        assert conn is not None
        if lending.is_foreign:  # the connection belongs to the parent, and nothing was committed
            self._conn = self._deadline = None
            if kind is None:
                lending.take_back(self, conn)  # NotRunningError
            return
        closed = conn.closed  # psycopg would not try to commit then
        late = False
        try:
            if kind is None and not closed:
                conn.commit()
            else:
                conn.__exit__(kind, error, trace)
        except psycopg.Error as failure:
            kind, error = type(failure), failure
            raise
        finally:
            if deadline is not None:
                late = lending.watchdog.release(deadline, is_lost=conn.closed)
            lost = conn.broken  # closed, but not by the block
            if late:
                lost = lost or isinstance(error, (psycopg.errors.QueryCanceled, Expired))
                conn.close()
            self._conn = self._deadline = None
            lending.take_back(self, conn)
            if lost and (error is None or isinstance(error, psycopg.Error)):
                text = (
                    f"{lending.prefix}not finished within {self._timeout:g} s"
                    if late
                    else f"{lending.prefix}the connection was lost: {first_line(error)}"
                )
                raise Unavailable(text) from error

    def shut(self) -> None:
        """Shuts the connection down, even if a thread waits for a response on it."""
        conn = self._conn
        if conn is not None:
            self._lending.watchdog.end(conn)


class Loan:
    """One connection that `Lending.connect` has lent.

    It refers to the borrower's object weakly: one that is forgotten does not keep the connection for ever.
    """

    __slots__ = ("_borrowed", "_conn", "_deadline", "_lending")

    def __init__(self, lending: Lending) -> None:
        self._lending = lending
        self._conn: Connection | None = None
        self._deadline: Deadline | None = None
        self._borrowed: weakref.ref[BorrowedConnection] | None = None

    def begin(self, timeout: float | None, at: float | None) -> BorrowedConnection:
        """Waits up to `timeout` seconds for a connection, which is shut down at the monotonic time `at`."""
        self._conn = self._lending.lend(self, timeout)
        try:
            borrowed = BorrowedConnection(self._conn, self)
            self._borrowed = weakref.ref(borrowed)
            if at is not None:
                self._deadline = self._lending.watchdog.watch(borrowed, at, cancel=True)
        except BaseException:
            self.take_back(is_lost=True)
            raise
        return borrowed

    @property
    def is_foreign(self) -> bool:
        return self._lending.is_foreign

    def end(self, borrowed: BorrowedConnection, *, is_lost: bool) -> None:
        if self._lending.is_foreign:
            return
        assert self._conn is not None
        self._conn.answered = max(self._conn.answered, borrowed.answered)
        self.take_back(is_lost=is_lost)

    def take_back(self, *, is_lost: bool) -> None:
        conn, self._conn = self._conn, None
        assert conn is not None
        if self._deadline is not None and self._lending.watchdog.release(self._deadline, is_lost=is_lost):
            is_lost = True
        if is_lost:
            conn.close()
        self._lending.take_back(self, conn)

    def forget(self) -> None:
        self._lending.forgotten.append(self)

    def shut(self) -> None:
        """Shuts the connection down, even if a thread waits for a response on it."""
        borrowed = self._borrowed() if self._borrowed is not None else None
        if borrowed is not None:
            self._lending.watchdog.end(borrowed)
