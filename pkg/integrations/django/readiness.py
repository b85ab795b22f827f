"""Readiness from a database of Django whose own connections are kept, as with PKG_POOL=off; `OPTIONS["pool"]` or not.

It does not concern the backend in `base`, whose pool has a check.  `judgement` decides; here is how Django is asked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Any
from weakref import WeakSet

import psycopg
from django.db import connections
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.backends.signals import connection_created
from psycopg_pool import ConnectionPool

import pkg
from pkg.integrations.judgement import ATTEMPT_TIMEOUT, READ_ONLY, PoolCheck, Question, ReadOnly, Usage

__all__ = ["check_database"]


def check_database(
    alias: str = "default",
    name: str = "database",
    *,
    interval: float = 2.0,
    timeout: float = 1.0,
    required: bool = True,
    role: str = "any",
) -> None:
    """Makes a database of Django's a readiness check, which asks only if no statement has shown that it responds.

    Call it where the settings are known, as in wsgi.py.  `name`, `interval`, `timeout` and `required` are those of
    `pkg.check`, in seconds.  `role`: "primary" lets the check fail while the server is read-only, which is asked each
    time.

    Raises ValueError for a name, a number or a role out of range, and Django's ConnectionDoesNotExist for an alias that
    DATABASES does not have.
    """
    if role not in ("any", "primary"):
        raise ValueError(f"check {name}: role must be any or primary")
    pool = _DjangoPool(alias, primary=role == "primary")
    check = PoolCheck(pool, primary=role == "primary", timeout=timeout)
    pkg.check(name, interval=interval, timeout=timeout, required=required)(check.run)

    def executed(execute: Callable[..., Any], *arguments: Any) -> Any:
        result = execute(*arguments)
        check.answered = monotonic()
        return result

    def connected(connection: Any, **_: Any) -> None:
        if connection.alias == alias and executed not in connection.execute_wrappers:
            # In front: Django may connect within the application's execute_wrapper(), whose end takes the last away.
            connection.execute_wrappers.insert(0, executed)
            pool.wrappers.add(connection)

    connection_created.connect(connected, weak=False)


class _DjangoPool:
    """The connections of one alias.  `wrappers`: Django's objects for them, one in each thread."""

    def __init__(self, alias: str, *, primary: bool) -> None:
        self._alias = alias
        self._primary = primary
        self._wrapper = connections.create_connection(alias)  # never connected; it knows the settings and the pool
        self.wrappers: WeakSet[Any] = WeakSet()

    def _pool(self) -> ConnectionPool[Any] | None:
        return getattr(self._wrapper, "pool", None)  # new in Django 5.1

    def _in_use(self) -> int:
        return sum(wrapper.connection is not None for wrapper in self.wrappers.copy())

    def usage(self) -> Usage:
        pool = self._pool()
        if pool is None:
            return Usage(0, self._in_use(), None)
        stats = pool.get_stats()
        return Usage(stats.get("pool_available", 0), self._in_use(), stats["pool_max"])

    def ask_free(self, question: Question) -> None:
        threading.Thread(target=_run, args=(self._borrow, question), name="database-check-asks", daemon=True).start()

    def ask_new(self, question: Question) -> None:
        threading.Thread(
            target=_run, args=(self._connect, question), name="database-check-connects", daemon=True
        ).start()

    def is_blocked(self) -> bool:
        return False

    def replace(self) -> None:
        """Those in use are closed when they are returned."""
        if (pool := self._pool()) is not None:
            pool.drain()

    def recovered(self) -> None:
        """psycopg_pool retries after 1, 2, 4 .. s, so it may still wait for long: Django makes another one.

        Connections in use are closed when they are returned to theirs.
        """
        pool = self._pool()
        if pool is None:
            return
        stats = pool.get_stats()
        if not stats.get("pool_available") and stats["pool_size"] > self._in_use():
            DatabaseWrapper._connection_pools.pop(self._alias, None)
            threading.Thread(target=pool.close, name="database-check-closes", daemon=True).start()

    def _borrow(self, question: Question) -> None:
        pool = self._pool()
        assert pool is not None
        connection = pool.getconn(timeout=0.1)
        try:
            if not question.is_over:  # else CONN_HEALTH_CHECKS hung
                self._ask(question, connection)
        except BaseException:
            connection.close()
            raise
        finally:
            pool.putconn(connection)

    def _connect(self, question: Question) -> None:
        parameters = {**self._wrapper.get_connection_params(), "autocommit": True}
        own = float(parameters.get("connect_timeout") or ATTEMPT_TIMEOUT)
        parameters["connect_timeout"] = round(min(own, ATTEMPT_TIMEOUT))
        with psycopg.connect(**parameters) as connection:
            self._ask(question, connection)

    def _ask(self, question: Question, connection: psycopg.Connection[Any]) -> None:
        question.hold(connection)
        try:
            if not self._primary:
                ConnectionPool.check_connection(connection)
                return
            autocommit = connection.autocommit
            connection.autocommit = True
            row = connection.execute(READ_ONLY).fetchone()
            connection.autocommit = autocommit
            if row is not None and row[0]:
                raise ReadOnly
        finally:
            if question.release():
                connection.close()


def _run(ask: Callable[[Question], None], question: Question) -> None:
    try:
        ask(question)
    except Exception as error:
        question.end(error)
    else:
        question.end()
