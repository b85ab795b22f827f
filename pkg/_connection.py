"""psycopg's connection and cursor: BEGIN goes with the first statement, a lost session is seen, what was set ends."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import traceback
import weakref
from collections.abc import Iterator
from time import monotonic
from typing import Any

import psycopg
from psycopg import pq, rows
from psycopg._preparing import Prepare, PrepareManager
from psycopg._queries import PostgresQuery
from psycopg.abc import PQGen
from psycopg.adapt import AdaptersMap
from psycopg.generators import fetch_many, send
from psycopg.pq.abc import PGresult
from psycopg.types import TypesRegistry

from pkg._cancel import Cancel, prepare

IDLE = pq.TransactionStatus.IDLE
_BAD = pq.ConnStatus.BAD
_FATAL_ERROR = pq.ExecStatus.FATAL_ERROR
_COPIES = (pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH)
_PIPELINE_SYNC = pq.ExecStatus.PIPELINE_SYNC
_SQLSTATE = pq.DiagnosticField.SQLSTATE
_HAS_PIPELINES = psycopg.Pipeline.is_supported()

__all__ = ["IDLE", "Connection", "Cursor", "Expired", "generation"]


# Held while a connection is closed on purpose, and while another thread reads what a request to cancel takes of it:
# psycopg's Python implementation calls libpq without the interpreter lock.
_closing = threading.Lock()

_sessions: weakref.WeakSet[Connection] = weakref.WeakSet()
_generation = 0


def generation() -> int:
    """Another number in each process that is forked: what was opened under another one belongs to the parent."""
    return _generation


def _leave_to_parent() -> None:
    """In a child: puts a socket without a peer in the place of every session's.

    On the parent's each byte, that of a Terminate message at the latest, would be said in the middle of its exchange.
    """
    global _closing, _generation
    _closing = threading.Lock()  # another thread may have held it
    _generation += 1
    sessions = list(_sessions)
    if not sessions:
        return
    ours, peer = socket.socketpair()
    with ours:
        peer.close()
        for conn in sessions:
            with contextlib.suppress(psycopg.Error, OSError):
                os.dup2(ours.fileno(), conn.pgconn.socket, inheritable=False)
    _sessions.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


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
            self.text = diagnostic.message_primary or "the server closed the session"


class Adapters(AdaptersMap):
    """The adapters of one connection, which knows whether it is still what a new connection would have.

    psycopg's would have to be compared with the global one, at each block's end.
    """

    def __init__(self, template: AdaptersMap | None = None, types: TypesRegistry | None = None) -> None:
        super().__init__(template, types)
        self.is_changed = template is not psycopg.adapters  # Django calls this again, with a template of its own

    def register_dumper(self, *args: Any, **options: Any) -> None:
        self.is_changed = True
        super().register_dumper(*args, **options)

    def register_loader(self, *args: Any, **options: Any) -> None:
        self.is_changed = True
        super().register_loader(*args, **options)


class Expired(psycopg.OperationalError):
    """The deadline of a connection passed while nothing ran on it; nothing more is sent."""


class Cursor(psycopg.Cursor[Any]):
    """Sends BEGIN along with the first statement of a transaction; psycopg sends it a round trip ahead.

    pgjdbc and Npgsql do so, too.  It takes libpq's pipeline mode, where a message holds one statement, and COPY is not
    provided for.  One with parameters will do, and one that is prepared by now; before any other, BEGIN goes alone.

    What is used and overridden here, with a leading underscore, is the same in psycopg 3.2 and 3.3.
    """

    __slots__ = ()
    _conn: Connection

    def _execute_gen(
        self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> PQGen[None]:
        conn = self._conn
        if self._pgconn.transaction_status == IDLE and not (conn.autocommit or conn._pipeline or self._closed):
            yield from self._begin_and_execute_gen(query, params, prepare, binary)
            return
        yield from super()._execute_gen(query, params, prepare=prepare, binary=binary)
        if conn.autocommit:
            conn.answered = monotonic()  # no end of a transaction will say so

    def executemany(self, *args: Any, **options: Any) -> None:
        super().executemany(*args, **options)
        if self._conn.autocommit:
            self._conn.answered = monotonic()

    def _begin_and_execute_gen(self, query: Any, params: Any, prepare: bool | None, binary: bool | None) -> PQGen[None]:
        conn = self._conn
        conn.begins_later = True
        try:
            yield from self._start_query(query)
        finally:
            conn.begins_later = False
        statement = self._convert_query(query, params)
        prep, name = self._get_prepared(statement, prepare)
        if _HAS_PIPELINES and (prep is Prepare.YES or (prep is Prepare.NO and statement.params)):
            answers = yield from self._begin_and_send_gen(statement, name, binary)
            self._check_results(answers[0])
            results = answers[1]
            key = conn._prepared.maybe_add_to_cache(statement, prep, name)
            if key is not None:
                conn._prepared.validate(key, prep, name, results)
            self._check_results(results)
            self._set_results(results)
        else:
            yield from conn._start_query()
            yield from self._maybe_prepare_gen(statement, prepare=prepare, binary=binary)
        self._last_query = query
        yield from conn._prepared.maintain_gen(conn)

    def _begin_and_send_gen(
        self, statement: PostgresQuery, name: bytes, binary: bool | None
    ) -> PQGen[list[list[PGresult]]]:
        """The results of both; of the first alone if the connection was lost with it, and the server said why.

        name: of the prepared statement, or empty.
        """
        pgconn = self._pgconn
        unsent = None
        try:
            pgconn.enter_pipeline_mode()
            pgconn.send_query_params(self._conn._get_tx_start_command(), None)
            try:
                if name:
                    self._send_query_prepared(name, statement, binary=binary)
                else:
                    self._execute_send(statement, binary=binary)
            except psycopg.Error as error:  # too many parameters, say; a transaction is begun, as it is by psycopg
                unsent = error
            try:
                pgconn.pipeline_sync()
                yield from send(pgconn)
            except psycopg.OperationalError:
                if pgconn.status != _BAD:
                    raise  # else reading tells why the connection was lost
            answers = yield from self._answers_gen()
        except BaseException:
            if pgconn.status != _BAD and pgconn.pipeline_status:
                pgconn.finish()  # in the middle of an exchange that nobody will end
            raise
        if unsent is not None:
            raise unsent
        return answers

    def _answers_gen(self) -> PQGen[list[list[PGresult]]]:
        """What comes until the pipeline's end, and leaves it; or until the connection's."""
        pgconn = self._pgconn
        answers: list[list[PGresult]] = []
        while True:
            try:
                results = yield from fetch_many(pgconn)
            except psycopg.Error:
                if _has_said_why(answers):
                    return answers
                raise
            if results and results[0].status == _PIPELINE_SYNC:
                pgconn.exit_pipeline_mode()
                return answers
            answers.append(results)
            # A COPY after all, with a parameter in a comment: libpq would say so for ever.
            if not results or results[-1].status in _COPIES:
                return answers
            if pgconn.status == _BAD:
                if _has_said_why(answers):
                    return answers
                if results[-1].status == _FATAL_ERROR:  # in libpq's own words
                    raise psycopg.OperationalError(results[-1].get_error_message())


def _has_said_why(answers: list[list[PGresult]]) -> bool:
    """Whether an error of the server's own is among them."""
    return any(result.error_field(_SQLSTATE) for results in answers for result in results)


class Connection(psycopg.Connection[Any]):
    """A connection that can tell without asking that it is dead."""

    last_word: LastWord | None = None  # of a connection that listens
    answered = 0.0  # monotonic, when the server last did, at the end of a transaction or in autocommit mode
    _notifies_backlog: Any = ()  # psycopg 3.2.2 has none
    lent = 0.0  # monotonic, when it was last given to a borrower
    usual_threshold = PrepareManager.prepare_threshold  # of executions before a statement is prepared; None: it is not
    begins_later = False  # the cursor sends BEGIN, after what it prepares

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.cursor_factory = Cursor
        self._adapters: Adapters = Adapters(psycopg.adapters)

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
        _sessions.add(conn)
        return conn

    # What ends a transaction is an exchange with the server, and its answer proof that it lives; at the end of none
    # nothing is said.  To watch every exchange, in wait(), would cost each of them more.

    def commit(self) -> None:
        is_open = self.pgconn.transaction_status != IDLE
        super().commit()
        if is_open:
            self.answered = monotonic()

    def rollback(self) -> None:
        if "wait" in self.__dict__:
            return  # it has expired: closing it will do
        is_open = self.pgconn.transaction_status != IDLE
        super().rollback()
        if is_open:
            self.answered = monotonic()

    @contextlib.contextmanager
    def transaction(self, *args: Any, **options: Any) -> Iterator[psycopg.Transaction]:
        with super().transaction(*args, **options) as transaction:
            yield transaction
        self.answered = monotonic()

    def _start_query(self) -> PQGen[None]:
        if not self.begins_later:
            yield from super()._start_query()

    def close(self) -> None:
        with _closing:
            super().close()

    def expire(self) -> Cancel | None:
        """Lets nothing more be sent, from another thread than the one that uses it; a request to cancel what is.

        Whatever the connection does passes through wait(), which costs nothing as long as it is not replaced.
        """
        self.wait = self._refuse  # type: ignore[method-assign]
        with _closing:
            return None if self.closed else prepare(self.pgconn)

    def _refuse(self, gen: Any, *_: Any, **__: Any) -> Any:
        gen.close()
        raise Expired("the connection's deadline has passed")

    def restore(self) -> None:
        """Takes back what a borrower has set for itself: the next one expects a connection as new.

        psycopg.Error: that cannot be done.
        """
        if self.pgconn.pipeline_status:
            raise psycopg.ProgrammingError("the connection was left in pipeline mode")
        if self._num_transactions or self._tpc:
            raise psycopg.ProgrammingError("the connection was left in a transaction block")
        # The values themselves and not psycopg's properties: this happens at each block's end.
        if self._autocommit:
            self.autocommit = False
        if self._isolation_level is not None:
            self.isolation_level = None
        if self._read_only is not None:
            self.read_only = None
        if self._deferrable is not None:
            self.deferrable = None
        self.row_factory = rows.tuple_row
        self.cursor_factory = Cursor
        self.server_cursor_factory = psycopg.ServerCursor
        prepared = self._prepared
        prepared.prepare_threshold = self.usual_threshold
        prepared.prepared_max = PrepareManager.prepared_max
        if len(self._notice_handlers) != 1:
            self._notice_handlers[:] = (self.last_word,) if self.last_word is not None else ()
        if self._notify_handlers:
            self._notify_handlers.clear()
        if self._notifies_backlog:
            self._notifies_backlog.clear()
        adapters = self._adapters
        if adapters.is_changed or adapters.types._registry is not psycopg.adapters.types._registry:
            self._adapters = Adapters(psycopg.adapters)

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
