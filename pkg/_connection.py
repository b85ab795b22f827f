"""psycopg's connection, which can tell without asking that the server has ended it, and comes back as it was lent."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from time import monotonic
from typing import Any, Self

import psycopg
from psycopg import pq, rows
from psycopg.conninfo import make_conninfo

IDLE = pq.TransactionStatus.IDLE
_BAD = pq.ConnStatus.BAD

__all__ = ["IDLE", "Connection"]


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
