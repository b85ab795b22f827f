"""A connection of the pool in the hands of a task: psycopg's AsyncConnection over the session of the pool's connection.

The pool, its check, the watchdog and all they do stay in their threads, so that an event loop that is blocked hinders
none of them.  Nothing here blocks the loop: what cannot be awaited, as in a task that has been cancelled, ends the
session instead, and the pool replaces it.

    a task is cancelled while a statement runs    the watchdog's threads cancel it on the server; the session ends
    the same while none runs                      rolled back, within ROLLBACK_TIMEOUT; then the session ends
    a coroutine is closed, or collected           the session ends unless nothing is open
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from sys import _getframe
from time import monotonic
from types import TracebackType
from typing import Any

import psycopg
from psycopg import capabilities, pq, waiting
from psycopg._preparing import PrepareManager

from pkg.database.cancel import prepare
from pkg.database.connection import IDLE, BeginsWithStatement, Connection, Unavailable, closed_session
from pkg.database.lending import Lending, Loan
from pkg.database.place import taker
from pkg.database.pool import first_line

__all__ = ["AsyncConnection", "AsyncLease", "AsyncLoan"]

ROLLBACK_TIMEOUT = 1.0  # seconds; closing the session rolls back as well

_CLOSED = "the connection is closed"  # psycopg's words
_BAD = pq.ConnStatus.BAD
_ACTIVE = pq.TransactionStatus.ACTIVE
_INTERVAL = 0.1  # seconds between two looks, as psycopg's own


class AsyncCursor(BeginsWithStatement, psycopg.AsyncCursor[Any]):
    """The cursor of an AsyncConnection."""

    __slots__ = ()
    _conn: AsyncConnection

    async def executemany(self, *args: Any, **options: Any) -> None:
        await super().executemany(*args, **options)
        if self._conn.autocommit:
            self._conn.answered = monotonic()


class AsyncConnection(psycopg.AsyncConnection[Any]):
    """psycopg's AsyncConnection for one loan: close() rolls back what is open and gives the connection back.

    Whoever keeps it after that cannot reach the session's next borrower.
    """

    answered = 0.0  # monotonic time of the last response at the end of a transaction or in autocommit mode
    begins_later = False  # the cursor sends BEGIN by itself
    _ready: asyncio.Future[None] | None = None  # of the task that waits for the session

    def __init__(self, conn: Connection, loan: AsyncLoan) -> None:
        pgconn = conn.pgconn
        self._usual_handlers = (pgconn.notice_handler, pgconn.notify_handler)
        super().__init__(pgconn)
        if conn.last_word is not None:
            self.add_notice_handler(conn.last_word)
        # What belongs to the session, or has caches; the pool's connection undoes what is set there.
        self._prepared = conn._prepared
        self._adapters = conn._adapters
        self.cursor_factory = AsyncCursor
        self._loan = loan

    # ------------------------------------------------------------------ use

    async def wait(self, gen: Any, interval: float = _INTERVAL, timeout: float | None = None) -> Any:
        """As psycopg's, which would wait for seconds in a task that has been cancelled.

        Raises Unavailable if the connection is lost or its deadline passes meanwhile.
        """
        loan: AsyncLoan | None = self.__dict__.get("_loan")
        if loan is None:
            gen.close()
            raise psycopg.OperationalError(_CLOSED)
        if loan.is_shut:
            gen.close()
            raise Unavailable(loan.why(None))
        try:
            if timeout is None and interval == _INTERVAL and self._ready is None:
                return await self._run(gen)
            options = {} if timeout is None else {"timeout": timeout}  # psycopg 3.2.2 does not have it
            return await waiting.wait_async(gen, self.pgconn.socket, interval, **options)
        except psycopg.OperationalError as error:
            if self.pgconn.status != _BAD and not loan.is_shut:
                raise
            raise Unavailable(loan.why(error)) from error
        except BaseException as error:
            if not isinstance(error, Exception) and self.pgconn.transaction_status == _ACTIVE:
                self._release()
                loan.cut()
                with contextlib.suppress(psycopg.Error):  # psycopg would go on with a pipeline, which is gone
                    gen.close()
            raise

    async def _run(self, gen: Any) -> Any:
        """Waits as psycopg's wait_async() does, which also wakes up ten times a second, with a timer for each wait."""
        fd = self.pgconn.socket
        try:
            wanted = next(gen)
            loop = asyncio.get_running_loop()
            while wanted == waiting.WAIT_R:
                self._ready = ready = loop.create_future()
                loop.add_reader(fd, _settle, ready)
                try:
                    await ready
                finally:
                    if self._ready is ready:
                        self._ready = None
                        loop.remove_reader(fd)
                wanted = gen.send(waiting.READY_R)
            return await waiting.wait_async(_resumed(gen, wanted), fd, _INTERVAL)  # rare: there is much to send
        except StopIteration as end:
            return end.value
        except OSError as error:  # the descriptor is closed
            raise psycopg.OperationalError(f"the connection was lost: {error}") from error

    def _release(self) -> None:
        """Wakes another task that waits for the session.  It must not touch the descriptor afterwards, since its number
        may belong to another connection."""
        ready, self._ready = self._ready, None
        if ready is not None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                with contextlib.suppress(psycopg.Error):  # the session is closed
                    ready.get_loop().remove_reader(self.pgconn.socket)
                _settle(ready)

    def _start_query(self) -> Any:
        if not self.begins_later:
            yield from super()._start_query()

    async def commit(self) -> None:
        is_open = self.pgconn.transaction_status != IDLE
        await super().commit()
        if is_open:
            self.answered = monotonic()

    async def rollback(self) -> None:
        is_open = self.pgconn.transaction_status != IDLE
        await super().rollback()
        if is_open:
            self.answered = monotonic()

    @contextlib.asynccontextmanager
    async def transaction(self, *args: Any, **options: Any) -> AsyncIterator[psycopg.AsyncTransaction]:
        async with super().transaction(*args, **options) as transaction:
            yield transaction
        self.answered = monotonic()

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """As psycopg's, which with libpq before 17 would stop the whole process while a server does not answer."""
        if capabilities.has_cancel_safe():
            await super().cancel_safe(timeout=timeout)
        elif self._should_cancel() and (request := prepare(self.pgconn)) is not None:
            try:
                await asyncio.to_thread(request.send, timeout)
            except OSError as error:
                raise psycopg.OperationalError(f"the cancel request has failed: {error}") from error

    # ------------------------------------------------------------------ giving back

    async def close(self) -> None:
        """Rolls back an open transaction and gives the connection back.  Closing it again does nothing."""
        loan: AsyncLoan | None = self.__dict__.get("_loan")
        if loan is None or self._closed:
            return
        self._closed = True
        try:
            if not (loan.is_foreign or loan.is_shut) and self.pgconn.transaction_status != IDLE:
                if self.pgconn.transaction_status == _ACTIVE:  # another task runs a statement, which ends now
                    loan.shut()
                with contextlib.suppress(psycopg.Error, TimeoutError):
                    async with asyncio.timeout(ROLLBACK_TIMEOUT):
                        await self.rollback()
        finally:
            self.let_go()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if "_loan" not in self.__dict__:
            return
        if kind is GeneratorExit:  # a coroutine that is being closed may not await anything
            self.let_go()
            return
        try:
            if kind is None and not self.closed:
                await self.commit()
        finally:
            await self.close()

    def let_go(self) -> None:
        """Gives the connection back at once; if something is open on it, the session ends."""
        loan: AsyncLoan | None = self.__dict__.pop("_loan", None)
        if loan is None:
            return
        pgconn = self.pgconn
        self._release()
        pgconn.notice_handler, pgconn.notify_handler = self._usual_handlers
        self.pgconn = closed_session()
        self._closed = True
        self._prepared, self._adapters = PrepareManager(), None
        loan.end_in_task(self.answered)

    def __del__(self, *_: Any) -> None:
        loan: AsyncLoan | None = self.__dict__.pop("_loan", None)
        if loan is not None:
            self.pgconn.notice_handler, self.pgconn.notify_handler = self._usual_handlers
            loan.forget()


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _resumed(gen: Any, wanted: int) -> Any:
    """A generator that has begun, for whoever would begin it.  `wanted`: what it has asked for last."""
    try:
        while True:
            wanted = gen.send((yield wanted))
    except StopIteration as end:
        return end.value


class AsyncLoan(Loan):
    """One connection that a task has borrowed.  A thread takes it back if the borrower has forgotten it."""

    __slots__ = ("_timeout",)

    async def begin_in_task(self, timeout: float | None, deadline: float | None) -> AsyncConnection:
        """Waits up to `timeout` seconds for a connection, which is shut down `deadline` seconds from now."""
        begun = monotonic()
        frame = taker(_getframe(1))
        self._code, self._instruction = frame.f_code, frame.f_lasti
        if deadline is not None:
            timeout = deadline if timeout is None else min(timeout, deadline)
        self._conn = conn = await self._lending.lend_to_task(self, timeout)
        try:
            if deadline is not None:
                self._timeout = deadline
                self._deadline = self._lending.watchdog.watch(conn, begun + deadline, cancel=True)
            return AsyncConnection(conn, self)
        except BaseException:
            self.end_in_task(0.0)
            raise

    @property
    def is_foreign(self) -> bool:
        return self._lending.is_foreign

    @property
    def is_shut(self) -> bool:
        """Whether its deadline has passed, or it has been shut down: nothing more is sent."""
        return self._conn is None or self._conn.is_expired

    def why(self, error: BaseException | None) -> str:
        """Why it cannot be used any more."""
        if self._deadline is not None and self._deadline.fired:
            return f"{self._lending.prefix}not finished within {self._timeout:g} s"
        if error is None:
            return f"{self._lending.prefix}the connection was shut down"
        return f"{self._lending.prefix}the connection was lost: {first_line(error)}"

    def cut(self) -> None:
        """Ends the session although a statement runs on it: it is cancelled on the server.  Must be called where no
        task waits for the session's socket."""
        conn = self._conn
        if conn is None or conn.closed:
            return
        self.shut()
        # The watchdog has a duplicate of the socket until the server has the cancel request.  libpq would end the
        # session on it, and PgBouncer then forget for whom the request is.
        with contextlib.suppress(OSError, psycopg.Error):  # such as no descriptor left
            ours, peer = socket.socketpair()
            with ours, peer:
                os.dup2(ours.fileno(), conn.pgconn.socket, inheritable=False)
        conn.close()

    def end_in_task(self, answered: float) -> None:
        """Gives the connection to the pool at once; if anything is open on it, the session ends.

        `answered`: when the server has last answered on it.
        """
        conn = self._conn
        if conn is None or self._lending.is_foreign:  # it belongs to the parent
            return
        if conn.pgconn.transaction_status == _ACTIVE:
            self.cut()
        elif conn.pgconn.transaction_status != IDLE or conn.is_expired:
            conn.close()
        conn.answered = max(conn.answered, answered)
        self.end()


class AsyncLease:
    """Returned by `Database.aconnection`, for one `async with` block.  `timeout`: seconds for the whole block."""

    __slots__ = ("_conn", "_lending", "_loan", "_timeout")

    def __init__(self, lending: Lending, timeout: float | None) -> None:
        self._lending = lending
        self._timeout = timeout
        self._conn: AsyncConnection | None = None

    async def __aenter__(self) -> psycopg.AsyncConnection[Any]:
        if self._conn is not None:
            raise RuntimeError("this connection is already in use; call aconnection() for each `async with` block")
        self._loan = AsyncLoan(self._lending)
        self._conn = await self._loan.begin_in_task(self._timeout, self._timeout)
        return self._conn

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        conn, self._conn = self._conn, None
        assert conn is not None
        lost = ""
        try:
            if conn.broken:
                lost = self._loan.why(error)
        finally:
            await conn.__aexit__(kind, error, trace)
        if lost and (error is None or (isinstance(error, psycopg.Error) and not isinstance(error, Unavailable))):
            raise Unavailable(lost) from error
