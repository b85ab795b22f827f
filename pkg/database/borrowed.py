"""A connection of the pool in the hands of a library that opens and closes connections, such as an ORM.

Each loan has an object of its own over the session of the pool's connection: what a library sets on it (autocommit,
adapters, notice handlers) is gone with it, and who keeps it after close() cannot reach the session's next borrower.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Protocol

import psycopg
from psycopg import pq

from pkg.database.connection import IDLE, Connection, Expired, Unavailable
from pkg.database.pool import first_line

__all__ = ["BorrowedConnection", "Lender"]

_CLOSED = "the connection is closed"  # psycopg's words
_BAD = pq.ConnStatus.BAD
_ENDED = (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)


@functools.cache
def _closed_session() -> Any:
    """A PGconn that never was open: "host" alone is not a connection string."""
    pgconn = pq.PGconn.connect_start(b"host")
    pgconn.finish()
    return pgconn


def _refuse_closed(gen: Any, *_: Any, **__: Any) -> Any:
    """In the place of a method: a bound one would be a cycle, and the object would wait for the garbage collection."""
    gen.close()
    raise psycopg.OperationalError(_CLOSED)


class Lender(Protocol):
    """Where a connection is given back."""

    def end(self, borrowed: BorrowedConnection, *, is_lost: bool) -> None:
        """Takes the connection back.  `is_lost`: it must not be lent again."""

    def forget(self) -> None:
        """Notes that the borrower was collected as garbage.  It may be called anywhere, also where locks are held."""

    @property
    def is_foreign(self) -> bool: ...


class BorrowedConnection(Connection):
    """A psycopg connection whose close() rolls back what is open and gives the connection back to the pool.

    psycopg_pool has `close_returns` for this.  It cannot be used here: the pool itself closes connections with close(),
    and the return would pass by the deadline, the evidence for the check, and what restores the connection.
    """

    def __init__(self, conn: Connection, lender: Lender) -> None:
        # All that the pool's connection has, which restore() left as new.  What can be changed in place (handlers,
        # adapters with their caches, prepared statements) is one for both, and restore() undoes it at the end.
        self.__dict__.update(conn.__dict__)
        self.__dict__.pop("_pool", None)
        self._lender = lender

    def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
        """As psycopg's.  Raises Unavailable if the connection is lost or its deadline passes meanwhile."""
        try:
            return super().wait(gen, *arguments, **options)
        except psycopg.OperationalError as error:
            if self.pgconn.status != _BAD and not isinstance(error, Expired):
                raise
            raise Unavailable(f"the connection was lost: {first_line(error)}") from error

    def _refuse(self, gen: Any, *_: Any, **__: Any) -> Any:
        gen.close()
        raise Unavailable("the connection's deadline has passed")

    def rollback(self) -> None:
        if self._closed:
            raise psycopg.OperationalError(_CLOSED)
        super().rollback()

    def close(self) -> None:
        """Rolls back an open transaction and gives the connection back.  Closing it again does nothing."""
        lender: Lender | None = self.__dict__.pop("_lender", None)  # in one step, as two threads may close it
        if lender is None:
            return
        pgconn, is_lost = self.pgconn, False
        if not lender.is_foreign:
            if pgconn.transaction_status in _ENDED:
                with contextlib.suppress(psycopg.Error):
                    self.rollback()
            # Otherwise another thread runs a query on it, it has expired, or the rollback was refused.
            is_lost = pgconn.transaction_status != IDLE
        self.wait = _refuse_closed  # type: ignore[method-assign]  # for cursors, which keep their PGconn
        self.pgconn = _closed_session()
        self._closed = True
        lender.end(self, is_lost=is_lost)

    def __del__(self, *_: Any) -> None:
        lender: Lender | None = self.__dict__.pop("_lender", None)
        if lender is not None:
            lender.forget()
