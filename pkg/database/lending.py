"""A borrowed connection: lent by the database for a `with` block, under a deadline, and returned at its end.

It neither creates connections nor judges the database.
"""

from __future__ import annotations

from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psycopg

from pkg.database.connection import Connection, Expired
from pkg.database.pool import Deadline, first_line
from pkg.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from pkg.database.database import Database

__all__ = ["Lease", "Unavailable"]


class Unavailable(DatabaseUnavailable, psycopg.OperationalError):
    """Raised by `connection`.  An application may catch it as either class; if it does not, the client gets 503."""


class Lease:
    """Returned by `Database.connection`, for one `with` block.  `timeout`: seconds for the whole block."""

    __slots__ = ("_conn", "_database", "_deadline", "_timeout")

    def __init__(self, database: Database, timeout: float | None) -> None:
        self._database = database
        self._timeout = timeout
        self._conn: Connection | None = None
        self._deadline: Deadline | None = None

    def __enter__(self) -> psycopg.Connection[Any]:
        if self._conn is not None:
            raise RuntimeError("this connection is already in use; call connection() for each `with` block")
        database, timeout = self._database, self._timeout
        if timeout is None:
            conn = database.lend(self)
        else:
            begun = monotonic()
            conn = database.lend(self, timeout)
            try:
                self._deadline = database.watchdog.watch(conn, begun + timeout, cancel=True)
            except BaseException:
                database.take_back(self, conn)
                raise
        self._conn = conn
        return conn

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        database, conn, deadline = self._database, self._conn, self._deadline
        assert conn is not None
        if database.is_foreign:  # the connection belongs to the parent, and nothing was committed
            self._conn = self._deadline = None
            if kind is None:
                database.take_back(self, conn)  # NotRunningError
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
                late = database.watchdog.release(deadline, is_lost=conn.closed)
            lost = conn.broken  # closed, but not by the block
            if late:
                lost = lost or isinstance(error, (psycopg.errors.QueryCanceled, Expired))
                conn.close()
            self._conn = self._deadline = None
            database.take_back(self, conn)
            if lost and (error is None or isinstance(error, psycopg.Error)):
                text = (
                    f"not finished within {self._timeout:g} s"
                    if late
                    else f"the connection was lost: {first_line(error)}"
                )
                raise Unavailable(text) from error

    def shut(self) -> None:
        """Shuts the connection down, even if a thread waits for a response on it."""
        conn = self._conn
        if conn is not None:
            self._database.watchdog.end(conn)
