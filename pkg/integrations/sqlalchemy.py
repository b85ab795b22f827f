"""Readiness from an engine of SQLAlchemy whose own pool is kept, as with PKG_POOL=off.

It opens no pool and changes none of the engine's options.  `judgement` decides; here is how an engine is asked.

                 a free connection                       a new connection, outside of the pool
    Engine       in a thread                             in a thread
    AsyncEngine  on the event loop that has opened it    in an event loop of its own, in a thread
"""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.pool import QueuePool
from sqlalchemy.util import greenlet_spawn

import pkg
from pkg.integrations.judgement import ATTEMPT_TIMEOUT, READ_ONLY, PoolCheck, Question, ReadOnly, Usage

if TYPE_CHECKING:
    from sqlalchemy import Dialect, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.pool import ConnectionPoolEntry

__all__ = ["check_engine"]

_is_checks = ContextVar("is_checks", default=False)  # whether the connection that is being opened is the check's


def check_engine(
    engine: Engine | AsyncEngine,
    name: str = "database",
    *,
    interval: float = 2.0,
    timeout: float = 1.0,
    required: bool = True,
    role: str = "any",
) -> None:
    """Makes the engine's database a readiness check, which asks only if no statement has shown that it responds.

    Call it where the engine is made, also while the application is imported.  `name`, `interval`, `timeout` and
    `required` are those of `pkg.check`, in seconds.  `role`: "primary" lets the check fail while the server is
    read-only, which is asked each time.  An engine with a `creator` should give it a time limit for connecting.

    Raises ValueError for a name, a number or a role out of range.
    """
    if role not in ("any", "primary"):
        raise ValueError(f"check {name}: role must be any or primary")
    sync = engine.sync_engine if hasattr(engine, "sync_engine") else engine
    pool = (_AsyncPool if sync.dialect.is_async else _EnginePool)(sync, primary=role == "primary")
    check = PoolCheck(pool, primary=role == "primary", timeout=timeout)
    pkg.check(name, interval=interval, timeout=timeout, required=required)(check.run)

    def answered(*_: object) -> None:
        check.answered = monotonic()

    event.listen(sync, "after_cursor_execute", answered)
    event.listen(sync, "connect", pool.connected)
    event.listen(sync, "do_connect", _limit)


def _limit(dialect: Dialect, _record: object, _arguments: object, parameters: dict[str, Any]) -> None:
    """Gives up the check's own attempts to connect, which may have got lost with the server that took them."""
    if _is_checks.get() and dialect.driver.startswith("psycopg"):
        own = float(parameters.get("connect_timeout") or ATTEMPT_TIMEOUT)
        parameters["connect_timeout"] = round(min(own, ATTEMPT_TIMEOUT))


class _EnginePool:
    """The pool of an engine.  What runs in threads here runs in greenlets for an engine of asyncio."""

    def __init__(self, engine: Engine, *, primary: bool) -> None:
        self._engine = engine
        self._primary = primary
        self._lock = threading.Lock()
        self._records: WeakSet[ConnectionPoolEntry] = WeakSet()

    def connected(self, _connection: object, record: ConnectionPoolEntry) -> None:
        """The pool has opened a connection."""
        with self._lock:
            self._records.add(record)

    def usage(self) -> Usage:
        pool = self._engine.pool
        if not isinstance(pool, QueuePool):  # NullPool and others have no free connections
            return Usage(0, 0, None)
        overflow = pool._max_overflow  # has no public name; -1 stands for no limit
        return Usage(pool.checkedin(), pool.checkedout(), pool.size() + overflow if overflow >= 0 else None)

    def ask_free(self, question: Question) -> None:
        threading.Thread(target=self._borrow, args=(question,), name="database-check-asks", daemon=True).start()

    def ask_new(self, question: Question) -> None:
        threading.Thread(target=self._attempt, args=(question,), name="database-check-connects", daemon=True).start()

    def is_blocked(self) -> bool:
        return False

    def replace(self) -> None:
        """SQLAlchemy recycles them when they are next taken from the pool; nothing in use is lost."""
        with self._lock:
            records = list(self._records)
        for record in records:
            record.invalidate(soft=True)

    def recovered(self) -> None:
        """SQLAlchemy's pool connects whenever a connection is wanted."""

    def _hold(self, question: Question, connection: Any) -> None:
        question.hold(connection)

    def _ask(self, connection: Any) -> None:
        """One query on a connection of the driver.  Raises what the driver raises, and ReadOnly."""
        if not self._primary:
            self._engine.dialect.do_ping(connection)
            return
        cursor = connection.cursor()
        try:
            cursor.execute(READ_ONLY)
            (read_only,) = cursor.fetchone()
        finally:
            cursor.close()
        connection.rollback()
        if read_only:
            raise ReadOnly

    def _borrow(self, question: Question) -> None:
        try:
            if not question.is_over:
                self._ask_borrowed(question)
        except BaseException as error:  # CancelledError at the end of the event loop as well
            question.end(error)
            if not isinstance(error, Exception):
                raise
        else:
            question.end()

    def _ask_borrowed(self, question: Question) -> None:
        lent = self._engine.pool.connect()
        try:
            if not question.is_over:  # else it had to wait, or pre_ping hung
                self._hold(question, lent.driver_connection)
                self._ask(lent.dbapi_connection)
                if question.release():
                    lent.invalidate()
        except BaseException as error:
            question.release()
            lent.invalidate(error)
            raise
        lent.close()

    def _attempt(self, question: Question) -> None:
        try:
            _is_checks.set(True)
            self._connect(question)
        except Exception as error:
            question.end(error)
        else:
            question.end()

    def _connect(self, question: Question) -> None:
        self._connect_and_ask(question)

    def _connect_and_ask(self, question: Question) -> None:
        connection: Any = self._engine.pool._invoke_creator(None)  # type: ignore[arg-type]
        try:
            self._hold(question, connection)
            self._ask(connection)
        finally:
            question.release()
            connection.close()


class _AsyncPool(_EnginePool):
    """The pool of an engine of asyncio, whose connections belong to the event loop that has opened them."""

    def __init__(self, engine: Engine, *, primary: bool) -> None:
        super().__init__(engine, primary=primary)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None  # asyncio itself keeps no reference

    def connected(self, connection: object, record: ConnectionPoolEntry) -> None:
        super().connected(connection, record)
        self._loop = asyncio.get_running_loop()

    def usage(self) -> Usage:
        free, in_use, most = super().usage()
        return Usage(free if self._loop is not None and not self._loop.is_closed() else 0, in_use, most)

    def ask_free(self, question: Question) -> None:
        loop = self._loop
        assert loop is not None

        def begin() -> None:
            self._task = loop.create_task(greenlet_spawn(self._borrow, question), name="database-check-asks")

        try:
            loop.call_soon_threadsafe(begin)
        except RuntimeError as error:  # it has been closed
            question.end(error)

    def is_blocked(self) -> bool:
        runs = threading.Event()
        try:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(runs.set)
        except RuntimeError:
            return True
        return not runs.wait(0.1)

    def _hold(self, question: Question, connection: Any) -> None:
        if hasattr(connection, "fileno"):  # psycopg
            super()._hold(question, connection)
        elif hasattr(connection, "terminate"):  # asyncpg: at once, and only on its event loop
            loop = asyncio.get_running_loop()
            question.hold(connection, partial(loop.call_soon_threadsafe, connection.terminate))

    def _connect(self, question: Question) -> None:
        async def run() -> None:
            async with asyncio.timeout(ATTEMPT_TIMEOUT):
                await greenlet_spawn(self._connect_and_ask, question)

        asyncio.run(run())

    def _connect_and_ask(self, question: Question) -> None:
        connection: Any = self._engine.pool._invoke_creator(None)  # type: ignore[arg-type]
        try:
            self._hold(question, connection.driver_connection)
            self._ask(connection)
        except BaseException:
            question.release()
            self._engine.dialect.do_terminate(connection)
            raise
        question.release()
        connection.close()
