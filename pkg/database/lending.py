"""Connections that are lent for a `with` block, under a deadline, and taken back at its end.

It neither creates connections nor judges the database.
"""

from __future__ import annotations

import asyncio  # psycopg has imported it
import contextlib
import logging
import os
import weakref
from collections import deque
from sys import _getframe
from time import monotonic
from types import CodeType, TracebackType
from typing import Any

import psycopg
from psycopg import pq
from psycopg_pool import PoolClosed, TooManyRequests

from pkg.database.borrowed import BorrowedConnection
from pkg.database.connection import IDLE, Connection, Expired, Unavailable
from pkg.database.place import own_files, taker, text_of
from pkg.database.pool import Pool, PoolTimeout, first_line
from pkg.database.watchdog import Deadline, Watchdog
from pkg.errors import NotRunningError

__all__ = ["Lease", "Lending", "Loan", "Unavailable"]

_log = logging.getLogger("pkg.database")

KNOWN_DOWN_TIMEOUT = 1.0  # how long a borrower waits while the check fails: until the next check

LEAK_AGE = 5.0  # seconds after which a connection that no request uses counts as kept
RECLAIM_TIMEOUT = 0.25  # seconds for rolling back what a borrower has forgotten
MAX_PLACES = 100  # that the log has named
_ACTIVE = pq.TransactionStatus.ACTIVE
_ENDED = (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)

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
        self.is_foreign = False  # whether the pool belongs to the parent of this process, which cannot use it
        self._leases: set[Lease | Loan] = set()
        self.forgotten: deque[Loan] = deque()  # loans whose borrowers were collected as garbage without a close()
        self._named: set[tuple[CodeType, int]] = set()  # places that the log has named
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

    def open(self) -> None:
        """From now on the connections belong to this process."""
        self.is_foreign = False
        _opened.add(self)

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
        except (PoolTimeout, PoolClosed, TooManyRequests) as error:
            raise self._unavailable(error, timeout) from None
        self._leases.add(lease)
        return conn

    async def lend_to_task(self, lease: Loan, timeout: float | None = None) -> Connection:
        """The same for a task, whose event loop is not blocked."""
        if self.is_foreign:
            raise NotRunningError(_FOREIGN)
        if self.forgotten:
            await asyncio.to_thread(self.reclaim)
        timeout = self._timeout if timeout is None else min(timeout, self._timeout)
        if self.failures > 1:
            timeout = min(timeout, KNOWN_DOWN_TIMEOUT)
        try:
            conn = await self._pool.borrow_in_task(timeout)
        except (PoolTimeout, PoolClosed, TooManyRequests) as error:
            raise self._unavailable(error, timeout) from None
        self._leases.add(lease)
        return conn

    def _unavailable(self, error: Exception, timeout: float) -> Unavailable:
        """What a borrower is told who has waited for `timeout` seconds, or was not let in."""
        if not isinstance(error, PoolTimeout):
            return Unavailable(str(error))
        if self.failures:
            why = f"the last check failed: {self.reason}"
        else:
            why = f"{len(self._leases)} of {self._max_size} are in use"
        return Unavailable(f"{self.prefix}no connection within {timeout:.3g} s; {why}")

    def connect(self, timeout: float | None = None, deadline: float | None = None) -> BorrowedConnection:
        """Lends a connection whose close() gives it back.

        `timeout`: seconds to wait for one.  `deadline`: seconds from now until it must have been closed; then it is
        shut down, and what runs on it is cancelled.  Raises as `lend` does.
        """
        if deadline is None:
            return Loan(self).begin(timeout, None)
        timeout = deadline if timeout is None else min(timeout, deadline)
        return Loan(self).begin(timeout, monotonic() + deadline)

    def reclaim(self) -> None:
        """Takes back the connections whose borrowers have forgotten them."""
        while self.forgotten:
            try:
                loan = self.forgotten.popleft()
            except IndexError:  # another thread was faster
                return
            if self._is_news(loan):
                _log.warning("%sa connection was not closed; it is taken back from %s", self.prefix, loan.place)
            loan.end(RECLAIM_TIMEOUT)

    def kept(self, since: float) -> str:
        """Names the connections that were taken before the monotonic time `since`, and some seconds ago, and run no
        statement now; "" if there are none."""
        before = min(since, monotonic() - LEAK_AGE)
        found = [lease for lease in list(self._leases) if lease.is_idle_since(before)]
        for lease in found:
            if self._is_news(lease):
                _log.warning(
                    "%sa connection is kept that no request uses; it was taken at %s", self.prefix, lease.place
                )
        places = sorted({lease.place for lease in found})
        if not places:
            return ""
        count = "a connection is" if len(found) == 1 else f"{len(found)} connections are"
        more = f" and {len(places) - 3} more places" if len(places) > 3 else ""
        return f"{count} kept that no request uses, taken at {', '.join(places[:3])}{more}"

    def taken(self) -> list[str]:
        """How long each connection has been out, and where it was taken, as in "12 s, shop.py:41 in titles"; those that
        have been out longest come first."""
        now = monotonic()
        out = sorted(((lease.age(now), lease.place) for lease in list(self._leases)), reverse=True)
        return [f"{age:.0f} s, {place}" for age, place in out]

    def places(self, before: float, *, running: bool = False) -> dict[int, str]:
        """Where the connections were taken that are out since before that monotonic time, by the process of the server;
        `running`: of those with a statement under way."""
        found = {}
        for lease in list(self._leases):
            conn = lease.lent_before(before)
            if conn is not None and (not running or conn.pgconn.transaction_status == _ACTIVE):
                found[conn.pgconn.backend_pid] = lease.place
        return found

    def _is_news(self, lease: Lease | Loan) -> bool:
        """Whether the log has not named the place of the lease yet."""
        if lease.taken_at in self._named or len(self._named) >= MAX_PLACES:
            return False
        self._named.add(lease.taken_at)
        return True

    def take_back(self, lease: Lease | Loan, conn: Connection) -> None:
        """Returns a connection to the pool; if it is intact, it proves that the server has responded during this
        use."""
        self._leases.discard(lease)
        use_time = monotonic() - conn.lent
        self.use_time += use_time  # no call between reading and writing it, so no other thread can come in between
        if conn.pgconn.transaction_status == IDLE or conn.is_ending:
            if conn.answered > self.returned and not (self._primary and conn.reports_read_only()):
                self.returned = conn.answered
                self.proved = max(self.proved, conn.answered)
            try:
                conn.restore()
            except psycopg.Error:
                conn.close()
        self._pool.give_back(conn)

    def close(self, timeout: float) -> None:
        """Shuts down the connections that are lent; cancelling their queries takes at most `timeout` seconds."""
        for lease in list(self._leases):
            lease.shut()
        self.watchdog.close(timeout)


_opened: weakref.WeakSet[Lending] = weakref.WeakSet()


def _leave_to_parent() -> None:
    """Runs in a forked child."""
    for lending in list(_opened):
        lending.is_foreign = True
    _opened.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


class _Taken:
    """A connection that is out, and the place that has taken it: code, and an instruction in it."""

    __slots__ = ("_code", "_conn", "_instruction", "_lending")
    _code: CodeType
    _conn: Connection | None
    _instruction: int
    _lending: Lending

    @property
    def place(self) -> str:
        """As in "shop.py:41 in titles"."""
        return text_of(self._code, self._instruction)

    @property
    def taken_at(self) -> tuple[CodeType, int]:
        """The same, as a key."""
        return self._code, self._instruction

    def age(self, now: float) -> float:
        """Seconds for which it has been out at the monotonic time `now`."""
        conn = self._conn
        return now - conn.lent if conn is not None else 0.0

    def lent_before(self, at: float) -> Connection | None:
        """The connection, if it was lent before that monotonic time."""
        conn = self._conn
        return conn if conn is not None and conn.lent < at else None

    def is_idle_since(self, at: float) -> bool:
        """Whether it was lent before the monotonic time `at`, and no statement is under way."""
        conn = self._conn
        return (
            conn is not None and conn.lent < at and not conn.lock.locked() and conn.pgconn.transaction_status != _ACTIVE
        )

    def shut(self) -> None:
        """Shuts the connection down, even if a thread waits for a response on it."""
        conn = self._conn
        if conn is not None:
            self._lending.watchdog.end(conn)


class Lease(_Taken):
    """Returned by `Database.connection`, for one `with` block.  `timeout`: seconds for the whole block."""

    __slots__ = ("_deadline", "_timeout")

    def __init__(self, lending: Lending, timeout: float | None) -> None:
        self._lending = lending
        self._timeout = timeout
        self._conn = None
        self._deadline: Deadline | None = None

    def __enter__(self) -> psycopg.Connection[Any]:
        if self._conn is not None:
            raise RuntimeError("this connection is already in use; call connection() for each `with` block")
        frame = _getframe(1)
        self._code = code = frame.f_code
        if code.co_filename not in own_files:
            frame = taker(frame)
            self._code = frame.f_code
        self._instruction = frame.f_lasti
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
                raise NotRunningError(_FOREIGN)
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


class Loan(_Taken):
    """One connection that `Lending.connect` has lent.

    It does not refer to the borrower's object: one that is forgotten does not keep the connection for ever.
    """

    __slots__ = ("_deadline",)

    def __init__(self, lending: Lending) -> None:
        self._lending = lending
        self._conn = None
        self._deadline: Deadline | None = None

    def begin(self, timeout: float | None, at: float | None) -> BorrowedConnection:
        """Waits up to `timeout` seconds for a connection, which is shut down at the monotonic time `at`."""
        frame = taker(_getframe(1))
        self._code, self._instruction = frame.f_code, frame.f_lasti
        self._conn = conn = self._lending.lend(self, timeout)
        try:
            if at is not None:
                self._deadline = self._lending.watchdog.watch(conn, at, cancel=True)
            return BorrowedConnection(conn, self)
        except BaseException:
            self.end()
            raise

    def end(self, timeout: float | None = None) -> None:
        """Rolls back what is open, and gives the connection to the pool; it does not fail.

        `timeout`: seconds for rolling back, if the loan has no deadline.
        """
        lending, conn = self._lending, self._conn
        if conn is None or lending.is_foreign:  # it belongs to the parent
            return
        if timeout is not None and self._deadline is None and not conn.closed:
            self._deadline = lending.watchdog.watch(conn, monotonic() + timeout)
        pgconn = conn.pgconn
        is_lost = pgconn.transaction_status != IDLE and not conn.is_ending
        if is_lost:
            if pgconn.transaction_status in _ENDED and not pgconn.pipeline_status:
                with contextlib.suppress(psycopg.Error):
                    conn.rollback()
            # Otherwise another thread runs a query on it, it has expired, or it was left in the middle of something.
            is_lost = conn.pgconn.transaction_status != IDLE
        if self._deadline is not None and lending.watchdog.release(self._deadline, is_lost=is_lost):
            is_lost = True
        if is_lost:
            conn.close()
        self._conn = self._deadline = None
        lending.take_back(self, conn)

    def forget(self) -> None:
        self._lending.forgotten.append(self)
