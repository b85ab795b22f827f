"""psycopg's connection and cursor with three additions.

BEGIN is sent with the first statement, a lost session is noticed without a query, and what a block has set on its
connection is undone at its end.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import socket
import threading
import traceback
import weakref
from collections.abc import Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq, rows
from psycopg._preparing import Prepare, PrepareManager
from psycopg._queries import PostgresQuery
from psycopg.abc import PQGen
from psycopg.adapt import AdaptersMap
from psycopg.generators import fetch, send
from psycopg.pq.abc import PGresult
from psycopg.types import TypesRegistry

from pkg.database.cancel import Cancel, prepare
from pkg.errors import DatabaseUnavailable

IDLE = pq.TransactionStatus.IDLE
_BAD = pq.ConnStatus.BAD
_COMMAND_OK = pq.ExecStatus.COMMAND_OK
_FATAL_ERROR = pq.ExecStatus.FATAL_ERROR
_COPIES = (pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH)
_PIPELINE_SYNC = pq.ExecStatus.PIPELINE_SYNC
_SQLSTATE = pq.DiagnosticField.SQLSTATE
_IS_READ_ONLY = b"select pg_is_in_recovery() or current_setting('transaction_read_only')::bool"
_OPEN = (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)
_HAS_PIPELINES = psycopg.Pipeline.is_supported()

__all__ = [
    "IDLE",
    "BeginsWithStatement",
    "Connection",
    "Cursor",
    "Expired",
    "Unavailable",
    "closed_session",
    "generation",
]


# Held while a connection is closed on purpose, and while another thread reads from it what a cancel request needs:
# psycopg's Python implementation calls libpq without the interpreter lock.
_closing = threading.Lock()


@functools.cache
def closed_session() -> Any:
    """A PGconn that never was open: "host" alone is not a connection string."""
    pgconn = pq.PGconn.connect_start(b"host")
    pgconn.finish()
    return pgconn


_sessions: weakref.WeakSet[Connection] = weakref.WeakSet()
_generation = 0


def generation() -> int:
    """A number that differs in each forked process.  What was opened under another number belongs to the parent."""
    return _generation


def _leave_to_parent() -> None:
    """Runs in a forked child: replaces the socket of every session by one without a peer.

    Any byte sent on the parent's socket, a Terminate message at the latest, would disturb the parent's session.
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
    """The message with which the server closed the session, if it did.

    It has no reference to its connection: the cycle would keep the connection's memory, and the descriptor of one that
    was not closed, until the next garbage collection.
    """

    text = ""
    heard = False  # whether anything has arrived since the last look

    def __call__(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        self.heard = True
        if diagnostic.severity_nonlocalized in ("FATAL", "PANIC"):
            self.text = diagnostic.message_primary or "the server closed the session"


class Adapters(AdaptersMap):
    """The adapters of one connection; they know whether they still are those of a new connection.

    Those of psycopg would have to be compared with the global ones at the end of each block.
    """

    def __init__(self, template: AdaptersMap | None = None, types: TypesRegistry | None = None) -> None:
        super().__init__(template, types)
        self.template = template
        self.is_changed = template is not psycopg.adapters  # Django calls this again with its own template

    def register_dumper(self, *args: Any, **options: Any) -> None:
        self.is_changed = True
        super().register_dumper(*args, **options)

    def register_loader(self, *args: Any, **options: Any) -> None:
        self.is_changed = True
        super().register_loader(*args, **options)


class Unavailable(DatabaseUnavailable, psycopg.OperationalError):
    """Raised by whoever lends connections.  An application may catch it as either class; if it does not, the client
    gets 503."""


class Expired(Unavailable):
    """Raised when the deadline of a connection has passed: nothing more is sent on it."""


class BeginsWithStatement:
    """A cursor that sends BEGIN together with the first statement of a transaction; psycopg sends it one round trip
    earlier.

    pgjdbc and Npgsql also do this.  It requires libpq's pipeline mode, in which a message holds one statement and COPY
    is impossible.  So it is done for a statement with parameters, or one that is already prepared; before any other
    statement, BEGIN is sent alone.

    tests/support/psycopg_privates.py lists the names with a leading underscore that are used and overridden here.
    """

    if not TYPE_CHECKING:
        __slots__ = ()
    else:

        def __getattr__(self, name: str) -> Any:
            """What the cursor has that it is mixed into."""

    def _execute_gen(
        self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> PQGen[None]:
        conn = self._conn
        if self._pgconn.transaction_status == IDLE and not (conn.autocommit or conn._pipeline or self._closed):
            yield from self._begin_and_execute_gen(query, params, prepare, binary)
            return
        yield from super()._execute_gen(query, params, prepare=prepare, binary=binary)  # type: ignore[misc]
        if conn.autocommit:
            conn.answered = monotonic()  # in autocommit mode there is no end of a transaction to tell

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
        """The results of BEGIN and of the statement; only of the first if the server closed the session and said why.

        `name`: name of the prepared statement, or empty.
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
            except (
                psycopg.Error
            ) as error:  # for example too many parameters; a transaction is open then, as with psycopg
                unsent = error
            try:
                pgconn.pipeline_sync()
                yield from send(pgconn)
            except psycopg.OperationalError:
                if pgconn.status != _BAD:
                    raise  # otherwise reading tells why the connection was lost
            answers = yield from self._answers_gen()
        except BaseException:
            if pgconn.status != _BAD and pgconn.pipeline_status:
                pgconn.finish()  # the exchange cannot be completed any more
            raise
        if unsent is not None:
            raise unsent
        return answers

    def _answers_gen(self) -> PQGen[list[list[PGresult]]]:
        """The results until the end of the pipeline, which it leaves, or until the end of the connection."""
        pgconn = self._pgconn
        answers: list[list[PGresult]] = []
        while True:
            try:
                result = yield from fetch(pgconn)
            except psycopg.Error:
                if _has_said_why(answers):
                    return answers
                raise
            if result is None:
                answers.append([])
                return answers
            status = result.status
            if status == _PIPELINE_SYNC:
                pgconn.exit_pipeline_mode()
                return answers
            answers.append([result])
            # A COPY with a parameter in a comment: libpq would report it forever.
            if status in _COPIES:
                return answers
            # After the only result of a message PQgetResult() says NULL without waiting, so there is no need to ask
            # whether it would: each question gives up the interpreter lock, and takes it back.
            end = pgconn.get_result()
            if end is not None:
                answers[-1].append(end)
            if pgconn.status == _BAD:
                if _has_said_why(answers):
                    return answers
                if status == _FATAL_ERROR:  # an error of libpq
                    raise psycopg.OperationalError(result.get_error_message())


class Cursor(BeginsWithStatement, psycopg.Cursor[Any]):
    """The cursor of the pool's connections."""

    __slots__ = ()
    _conn: Connection

    def executemany(self, *args: Any, **options: Any) -> None:
        super().executemany(*args, **options)
        if self._conn.autocommit:
            self._conn.answered = monotonic()


def _has_said_why(answers: list[list[PGresult]]) -> bool:
    """Whether one of the results is an error from the server."""
    return any(result.error_field(_SQLSTATE) for results in answers for result in results)


class Connection(psycopg.Connection[Any]):
    """A connection that can tell without a query that it is dead."""

    last_word: LastWord | None = None  # set by listen()
    answered = 0.0  # monotonic time of the last response at the end of a transaction or in autocommit mode
    _notifies_backlog: Any = ()  # psycopg 3.2.2 does not have it
    lent = 0.0  # monotonic time at which it was last lent
    usual_threshold = PrepareManager.prepare_threshold  # executions before a statement is prepared; None: never
    kept_adapters: Adapters | None = None  # of a library that has its own; with their caches, for the next loan
    begins_later = False  # the cursor sends BEGIN by itself
    is_ending = False  # ROLLBACK has been sent, and its response not been read

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.cursor_factory = Cursor
        self._adapters: Adapters = Adapters(psycopg.adapters)
        self.usual_adapters = self._adapters

    @classmethod
    def connect(cls, conninfo: str = "", **options: Any) -> Connection:
        """Like psycopg's, but a failed attempt leaves no descriptor to the garbage collector.

        After a timeout in psycopg (3.3.8), the error, its frames and the unfinished connection in them form a cycle.
        """
        try:
            conn = super().connect(conninfo, **options)
        except psycopg.Error as error:
            traceback.clear_frames(error.__traceback__)
            raise error.with_traceback(None) from None
        _sessions.add(conn)
        return conn

    # The end of a transaction is an exchange with the server, and its response proves that the server is alive; without
    # a transaction there is no exchange.  Watching every exchange, in wait(), would make each of them slower.

    def commit(self) -> None:
        is_open = self.pgconn.transaction_status != IDLE
        super().commit()
        if is_open:
            self.answered = monotonic()

    def rollback(self) -> None:
        if "wait" in self.__dict__:
            return  # it has expired and will be closed
        is_open = self.pgconn.transaction_status != IDLE
        super().rollback()
        if is_open:
            self.answered = monotonic()

    def send_rollback(self) -> bool:
        """Does what rollback() does, but leaves the response to the session's next user.

        To wait for it is a large part of a short transaction, since the thread then waits for the interpreter lock as
        well.  Returns False, and does nothing, where psycopg has more to do than to send ROLLBACK, or where restore()
        has, which needs an idle session.
        """
        if (
            self.is_expired
            or self.pgconn.transaction_status not in _OPEN
            or self._pipeline
            or self._num_transactions
            or self._tpc
            or self._isolation_level is not None
            or self._read_only is not None
            or self._deferrable is not None
            or self._prepared.clear()  # as psycopg does; True if the server has to forget them as well
        ):
            return False
        with self.lock:
            self.wait(self._send_rollback_gen())
        self.answered = max(self.answered, self.lent)  # the transaction has begun since then
        return True

    def _send_rollback_gen(self) -> PQGen[None]:
        self.pgconn.send_query(b"ROLLBACK")
        yield from send(self.pgconn)
        self.is_ending = True

    def end_gen(self) -> PQGen[None]:
        """Reads the response to what send_rollback() has sent."""
        while self.is_ending:
            self._note_end((yield from fetch(self.pgconn)))

    def _note_end(self, result: PGresult | None) -> None:
        """One part of that response.  Raises psycopg.OperationalError if it is the end of the session."""
        if result is None:
            self.is_ending = False
            self.answered = monotonic()
        elif result.status != _COMMAND_OK:
            raise psycopg.OperationalError(result.get_error_message())

    def has_ended(self, until: float) -> bool:
        """Reads the response to ROLLBACK.  Returns whether it has come by the monotonic time `until`.

        Raises psycopg.OperationalError if the session is lost.
        """
        ready = None
        while True:
            self.pgconn.consume_input()
            while not self.pgconn.is_busy():
                self._note_end(self.pgconn.get_result())
                if not self.is_ending:
                    return True
            left = until - monotonic()
            if left <= 0:
                return False
            if ready is None:
                ready = select.poll()
                ready.register(self.pgconn.socket, select.POLLIN)
            ready.poll(left * 1000)

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
        """Stops all further sending, from another thread than the one that uses the connection.

        Returns a request to cancel what runs, or None.  Everything that the connection does goes through wait(), which
        costs nothing as long as it is not replaced.
        """
        self.wait = self._refuse  # type: ignore[method-assign]
        with _closing:
            return None if self.closed else prepare(self.pgconn)

    @property
    def is_expired(self) -> bool:
        return "wait" in self.__dict__

    def _refuse(self, gen: Any, *_: Any, **__: Any) -> Any:
        gen.close()
        raise Expired("the connection's deadline has passed")

    def restore(self) -> None:
        """Undoes what a borrower has set on the connection, so that the next one gets it as new.

        Raises psycopg.Error if that is impossible.
        """
        if self.pgconn.pipeline_status:
            raise psycopg.ProgrammingError("the connection was left in pipeline mode")
        if self._num_transactions or self._tpc:
            raise psycopg.ProgrammingError("the connection was left in a transaction block")
        # Reads the attributes and not psycopg's properties, because this runs at the end of each block.
        if self._autocommit:
            self._autocommit = False  # the property takes the lock, and waits for an empty generator
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
        if adapters is self.kept_adapters:
            adapters = self._adapters = self.usual_adapters
        if adapters.is_changed or adapters.types._registry is not psycopg.adapters.types._registry:
            self._adapters = self.usual_adapters = Adapters(psycopg.adapters)

    def is_lost(self) -> bool:
        """Whether the server has closed this idle session, which is not ending.  Needs no query: it looks at what has
        arrived.

        A server that stops, or ends a session, first sends a FATAL message (PostgreSQL 55.2.3, "Function of the
        `ErrorResponse` in idle state") and then closes the connection.  One that stops immediately, or because one of
        its processes has crashed, sends a warning.  A server that has died has closed the connection.  Apart from that,
        only notices, notifications and changed parameters can arrive on an idle connection, which are harmless.
        """
        pgconn, last_word = self.pgconn, self.last_word
        try:
            while True:
                # One recv(), and what has arrived is parsed.  poll() and is_busy() would release the interpreter lock,
                # for which this thread would queue behind all that run.
                pgconn.consume_input()
                pgconn.get_result()
                if last_word is None or not last_word.heard:
                    return pgconn.status == _BAD
                if last_word.text:
                    return True
                last_word.heard = False  # the end may follow the message
        except psycopg.Error:
            return True

    def listen(self) -> None:
        """Records the message with which the server closes the session."""
        self.last_word = LastWord()
        self.add_notice_handler(self.last_word)

    def reports_read_only(self) -> bool | None:
        """What the server, or a pooler, reported by itself (PostgreSQL 14 and later); None if it reported nothing."""
        standby = self.pgconn.parameter_status(b"in_hot_standby")
        if standby is None:
            return None
        return standby == b"on" or self.pgconn.parameter_status(b"default_transaction_read_only") == b"on"

    def is_read_only(self) -> bool:
        """Asks the server.  Raises psycopg.Error if it does not respond."""
        autocommit = self.autocommit
        self.autocommit = True  # one round trip instead of three
        try:
            row = self.execute(_IS_READ_ONLY).fetchone()
            assert row is not None
            return bool(row[0])
        finally:
            if not self.closed:
                self.autocommit = autocommit
