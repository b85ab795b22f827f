"""The database: a pool of PostgreSQL connections, what is lent of it, and its check.

It only combines the parts.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

import psycopg

from pkg.database.borrowed import BorrowedConnection
from pkg.database.check import DatabaseCheck
from pkg.database.connection import Connection
from pkg.database.lending import Lease, Lending
from pkg.database.pool import POOL_NAME, Pool, quiet
from pkg.database.source import Source
from pkg.health.checks import Degraded
from pkg.logs import context

if TYPE_CHECKING:
    from pkg.database.asynchronous import AsyncConnection, AsyncLease

__all__ = ["Database"]

ANSWERED = 1.0  # extra time after a request's deadline, so that the front sends its 504 before a query ends in 503
LAST_CANCELS = 0.5  # for cancelling queries that still run when the pool closes


class Database:
    """A pool of connections and its check: those of the settings, or one of your own.

        with pkg.Database("postgresql://...", name="reports") as reports, reports.connection(timeout=5) as conn:
            conn.execute("select 1")

    `url` or `url_file`: the file is read for each new connection, so that a new password needs no restart.
    `name`: name of the pool in the log; no two pools that are open in a process have the same.
    `role`: `primary` refuses servers that are read-only.
    `pool_timeout`: maximum time in seconds to wait for a connection.
    `connect_timeout`: maximum time in seconds to establish one (libpq takes whole seconds, at least 2).
    `prepare`: whether psycopg prepares repeated statements; False for a pooler that gives each transaction another
    session and does not support prepared statements.
    `variable`: the environment variable that `url` is from, for messages; with _FILE behind it, that of `url_file`.
    `processes`: how many have such a pool, for a warning that PostgreSQL has too few connections for all.

    It connects when it is opened.  `check` is a probe for `pkg.check`.  Raises ValueError if the sizes do not fit.
    """

    def __init__(
        self,
        url: str = "",
        *,
        name: str = POOL_NAME,
        url_file: str = "",
        role: str = "any",
        min_size: int = 2,
        max_size: int = 10,
        pool_timeout: float = 5.0,
        connect_timeout: float = 3.0,
        prepare: bool = True,
        variable: str = "",
        processes: int = 1,
    ) -> None:
        self.name = name
        self._source = Source(url, url_file, connect_timeout, variable)
        self._primary = role == "primary"
        self._connect_timeout = connect_timeout
        self._prepare = prepare
        self._pool = Pool(
            self._conninfo,
            name=name,
            min_size=min_size,
            max_size=max_size,
            timeout=pool_timeout,
            configure=self._configure,
        )
        self._lending = Lending(
            self._pool,
            max_size=max_size,
            timeout=pool_timeout,
            primary=self._primary,
            prefix=f"{name}: " if name != POOL_NAME else "",
        )
        self._check = DatabaseCheck(
            self._source,
            self._pool,
            self._lending,
            max_size=max_size,
            processes=processes,
            connect_timeout=connect_timeout,
            primary=self._primary,
        )

    # ------------------------------------------------------------------ life

    def open(self, oldest: Callable[[], float] | None = None) -> None:
        """Starts to connect and returns at once; it is not an error if the database is down.

        `oldest`: tells the monotonic time at which the oldest request in flight has begun, or now if there is none.
        With it, the check is degraded by connections that were taken earlier and are still out.

        Raises ConfigurationError if libpq does not accept the URL, and ValueError if a pool with this name is open.
        """
        self._source.verify()
        self._pool.take_name()
        quiet()
        self._check.open(oldest)
        self._lending.open()
        self._pool.open(wait=False)

    def close(self, timeout: float = 5.0) -> None:
        """Closes every connection; those in use are shut down, which frees the threads that wait for a response.

        Their queries are cancelled, since the server would go on running them, and hold their locks, after this process
        has ended.  Does nothing in a process that the application has forked.
        """
        if self._lending.is_foreign:
            return
        self._pool.close(timeout / (self._pool.num_workers + 1))  # for each of its threads
        self._lending.close(LAST_CANCELS)

    def __enter__(self) -> Database:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ connecting

    def _conninfo(self) -> str:
        """The connection string; the pool's workers ask for it before each attempt to connect."""
        self._check.gate()
        return self._source.conninfo()

    def _configure(self, conn: Connection) -> None:
        conn.listen()
        if not self._prepare:
            conn.usual_threshold = conn.prepare_threshold = None
        # A report that the server is a primary may be outdated; the check finds out.  To ask here each time would cost
        # each new connection a query.
        if self._primary and conn.reports_read_only():
            deadline = self._lending.watchdog.watch(conn, monotonic() + self._connect_timeout)
            try:
                read_only = conn.is_read_only()
            finally:
                self._lending.watchdog.release(deadline)
            if read_only:
                conn.close()
                raise psycopg.OperationalError("the server is read-only, but database_role=primary is set")

    # ------------------------------------------------------------------ use

    def connection(self, timeout: float | None = None) -> Lease:
        """A connection for a `with` block, which commits at its end, or rolls back if it raised.

        `timeout`: seconds for the whole block: the wait, the body and the commit.  When it passes, the connection is
        shut down and the query in it ends with DatabaseUnavailable.  None: only the wait is limited, by `pool_timeout`.
        A request that has a deadline (`request_timeout`) limits it as well.
        What the block sets on the connection object (autocommit, row_factory, isolation_level ...) is undone at its
        end.

        Raises DatabaseUnavailable if no connection is free in time, or the deadline passes.
        """
        if timeout is not None:
            _require_seconds("timeout", timeout)
        if (at := context.deadline()) is not None:
            timeout = _within(at, timeout)
        return Lease(self._lending, timeout)

    def connect(self, timeout: float | None = None, *, deadline: float | None = None) -> BorrowedConnection:
        """A psycopg connection whose close() rolls back what is open and gives it back to the pool.

        For libraries that open and close connections: ORMs, `contextlib.closing`.  Nothing is committed unless the
        borrower does.

        `timeout`: maximum time in seconds to wait for a connection, at most `pool_timeout`.  `deadline`: seconds from
        now until it must have been closed; when they pass, the connection is shut down and the query in it ends with
        an OperationalError.

        Raises DatabaseUnavailable if no connection is free in time.
        """
        if timeout is not None:
            _require_seconds("timeout", timeout)
        if deadline is not None:
            _require_seconds("deadline", deadline)
        if (at := context.deadline()) is not None:
            deadline = _within(at, deadline)
        return self._lending.connect(timeout, deadline)

    def aconnection(self, timeout: float | None = None) -> AsyncLease:
        """The same as `connection` for an `async with` block, with psycopg's AsyncConnection.

        Nothing in it blocks the event loop.  If the task is cancelled while a statement runs, the statement is
        cancelled on the server, and the connection is closed.
        """
        from pkg.database.asynchronous import AsyncLease

        if timeout is not None:
            _require_seconds("timeout", timeout)
        if (at := context.deadline()) is not None:
            timeout = _within(at, timeout)
        return AsyncLease(self._lending, timeout)

    async def aconnect(self, timeout: float | None = None, *, deadline: float | None = None) -> AsyncConnection:
        """The same as `connect`, with psycopg's AsyncConnection, whose `await close()` gives it back."""
        from pkg.database.asynchronous import AsyncLoan

        if timeout is not None:
            _require_seconds("timeout", timeout)
        if deadline is not None:
            _require_seconds("deadline", deadline)
        if (at := context.deadline()) is not None:
            deadline = _within(at, deadline)
        return await AsyncLoan(self._lending).begin_in_task(timeout, deadline)

    # ------------------------------------------------------------------ for the admin pages and the health pages

    def check(self) -> Degraded | None:
        """Checks the database, within a second.  Returns None or Degraded; raises DatabaseUnavailable if it fails."""
        return self._check.run()

    def taken(self) -> list[str]:
        """The connections that are out: for how long, and where the application took them."""
        return self._lending.taken()

    @property
    def shortage(self) -> str:
        """Why the server cannot give the pool all of its connections, and what to set; "" if nothing is known of it."""
        return self._check.shortage

    @property
    def locks(self) -> str:
        """For whose lock in the server statements of the application wait; "" if none does, or nothing is known."""
        return self._check.locks

    def stats(self) -> dict[str, float]:
        """The statistics of psycopg_pool under its names ("Pool stats"), including zeros, and those of the check."""
        stats: dict[str, float] = dict.fromkeys(_POOL_STATS, 0)
        stats.update(self._pool.get_stats())
        stats["usage_ms"] = round(self._lending.use_time * 1e3, 3)
        stats["connections_used"] = self._lending.in_use
        stats["deadlines_passed"] = self._lending.watchdog.fired
        stats.update(self._check.counts)
        return stats


def _within(at: float, timeout: float | None) -> float:
    """A timeout that ends not much later than the request, whose deadline is at that monotonic time."""
    left = max(0.0, at - monotonic()) + ANSWERED
    return left if timeout is None else min(timeout, left)


def _require_seconds(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} is {value!r}, not a positive number of seconds")


_POOL_STATS = (
    "pool_min",
    "pool_max",
    "pool_size",
    "pool_available",
    "requests_waiting",
    "requests_num",
    "requests_queued",
    "requests_wait_ms",
    "requests_errors",
    "usage_ms",
    "returns_bad",
    "connections_num",
    "connections_ms",
    "connections_errors",
    "connections_lost",
)
