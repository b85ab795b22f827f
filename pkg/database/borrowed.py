"""A connection of the pool in the hands of a library that opens and closes connections, such as an ORM.

Each loan has an object of its own over the pool's connection: who keeps it after close() cannot reach the session's
next borrower.
"""

from __future__ import annotations

import functools
from types import TracebackType
from typing import Any, Protocol

import psycopg
from psycopg import pq
from psycopg.adapt import AdaptersMap

from pkg.database.connection import IDLE, Adapters, Connection, Unavailable, closed_session
from pkg.database.pool import first_line

__all__ = ["BorrowedConnection", "Lender"]

_CLOSED = "the connection is closed"  # psycopg's words
_BAD = pq.ConnStatus.BAD
_wait = Connection.wait  # the look-up of super() is felt here, twice in each loan


def _refuse_closed(gen: Any, *_: Any, **__: Any) -> Any:
    """In the place of a method: a bound one would be a cycle, and the object would wait for the garbage collection."""
    gen.close()
    raise psycopg.OperationalError(_CLOSED)


@functools.cache
def _closed_state() -> dict[str, Any]:
    """The attributes of a connection that was closed."""
    # Cursors keep their PGconn; what they send passes wait().
    return Connection(closed_session()).__dict__ | {"_closed": True, "wait": _refuse_closed}


class Lender(Protocol):
    """Where a connection is given back."""

    def end(self) -> None:
        """Rolls back what is open and takes the connection back."""

    def forget(self) -> None:
        """Notes that the borrower was collected as garbage.  It may be called anywhere, also where locks are held."""


class BorrowedConnection(Connection):
    """A psycopg connection whose close() rolls back what is open and gives the connection back to the pool.

    Until then it has its attributes in common with the pool's connection, which undoes at the end what has been set.
    close() exchanges them for those of a closed connection.

    psycopg_pool has `close_returns` for this.  It cannot be used here: the pool itself closes connections with close(),
    and the return would pass by the deadline, the evidence for the check, and what restores the connection.
    """

    __slots__ = ("_lender", "ends_unheard")
    _lender: Lender | None
    ends_unheard: bool  # whether rollback() only sends; for a borrower that always closes the connection after it

    def __init__(self, conn: Connection, lender: Lender) -> None:
        self._lender = lender
        self.ends_unheard = False
        self.__dict__ = conn.__dict__

    def adapt_like(self, template: AdaptersMap) -> None:
        """Uses adapters made from these, until it is closed.

        The session keeps them for the next borrower with the same template, as to make them and to fill their caches
        takes longer than a short query.
        """
        kept = self.kept_adapters
        if kept is None or kept.template is not template or kept.is_changed:
            kept = self.kept_adapters = Adapters(template)
            kept.is_changed = False
        self._adapters = kept

    def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
        """As psycopg's.  Raises Unavailable if the connection is lost or its deadline passes meanwhile."""
        try:
            if self.is_ending:
                _wait(self, self.end_gen())
            return _wait(self, gen, *arguments, **options)
        except psycopg.OperationalError as error:
            # The server's word that it has cancelled a statement may arrive before the end of the connection is seen.
            # To ROLLBACK it has no other word than that of its end.
            if self.pgconn.status != _BAD and not (self.is_expired or self.is_ending):
                raise
            lost = Unavailable(f"the connection was lost: {first_line(error)}")
            lost.sqlstate = error.sqlstate
            raise lost from error

    def set_autocommit(self, value: bool) -> None:
        if self.pgconn.transaction_status == IDLE and not (self._closed or self._pipeline or self.is_expired):
            self._autocommit = bool(value)  # psycopg takes the lock for this, and waits for an empty generator
        else:
            super().set_autocommit(value)

    def rollback(self) -> None:
        if self._closed:
            raise psycopg.OperationalError(_CLOSED)
        if not (self.ends_unheard and (self.is_ending or self.send_rollback())):
            super().rollback()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self._closed:
                self.commit()  # psycopg says nothing if the connection was lost, and with it the transaction
            else:
                super().__exit__(kind, error, trace)
        finally:
            self.close()  # psycopg leaves a connection whose commit has failed to the garbage collector

    def close(self) -> None:
        """Gives the connection back; what was not committed is rolled back.  Closing it again does nothing.

        If another thread has sent a statement on it, this waits for its end.
        """
        if self._lender is None:
            return
        with self.lock:  # whoever waits for it finds a closed connection, and not the session of the next borrower
            lender, self._lender = self._lender, None
            if lender is None:
                return
            pipeline = self._pipeline
            self.__dict__ = _closed_state().copy()
            self._pipeline = pipeline  # psycopg expects it at the end of the pipeline's block
        lender.end()

    def __del__(self, *_: Any) -> None:
        if self._lender is not None:
            self._lender.forget()
