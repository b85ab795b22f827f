"""The database: a pool of PostgreSQL connections, and the check that decides whether the database can be used.

It runs no queries except those of the check, and no timer: `health` decides when to check and damps the results.

    evidence since the last check       result
    a connection was returned intact    ok, without a query, unless idle connections are known to have been lost since
    a free connection responds          ok
    a free connection does not respond  a new connection of the check decides; if it responds, the pool is flushed
    no connection is free               a new connection of the check decides; degraded if all are in use
    the server refuses the new one      degraded while a connection of the pool is in use or a free one responds
    (any, with role=primary)            each check asks the server; failed if it is read-only, and the pool is flushed

What the server reported at login (`in_hot_standby`) may be outdated information from a pooler.  It is a reason to ask
the server, or not to count a response, but it never decides.

    while the check fails               only the check connects: no worker of the pool waits in connect() for a server
                                        that is down, and none sleeps in a back-off when the server comes back
    when the check passes again         the pool is refilled at once
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from time import monotonic, sleep

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import PoolClosed, TooManyRequests

from pkg.database.connection import IDLE, Connection, generation
from pkg.database.lending import Lease, Unavailable
from pkg.database.pool import POOL_NAME, NotNow, Pool, PoolTimeout, Watchdog, first_line, quiet
from pkg.database.source import Source
from pkg.errors import DatabaseUnavailable, NotRunningError
from pkg.health.checks import Degraded

__all__ = ["Database", "Lease", "Unavailable"]

_log = logging.getLogger("pkg.database")

# Time limits of one check, in seconds.  With an interval of 2 s (1 s while failing) from start to start, and two
# failures in a row, readiness fails after at most PROOF_AGE + 2 + 0.75 + 0.25 + 0.75 = 4.25 s; 5 s are promised.
CHECK_TIMEOUT = 0.75
BORROW_TIMEOUT = 0.25
ANSWER_TIMEOUT = 0.4  # for a borrowed connection, from the start of the check; then a new connection is tried
# For a new connection of the check, per host.  It is shorter than connect_timeout may be: attempts that begin in an
# outage can get lost with the server or firewall that took them, and would prevent new attempts.
ATTEMPT_TIMEOUT = 3.0
MAX_ATTEMPTS = 8  # such attempts at once: enough for two hosts; more would only help if names did not resolve
PROOF_AGE = 0.5  # maximum age of a response that replaces a query; a dead server is noticed this much later
RECENTLY = 10.0  # if connections were returned within this time, the pool is saturated and not dead
KNOWN_DOWN_TIMEOUT = 1.0  # how long a borrower waits while the check fails: until the next check
GATE_EXPIRY = 10.0  # an older result of the check does not prevent the pool from connecting
ANSWERED = 1.0  # extra time after a request's deadline, so that the front sends its 504 before a query ends in 503
LAST_CANCELS = 0.5  # for cancelling queries that still run when the pool closes


_FOREIGN = "the pool belongs to the parent process; open a connection in this forked child instead"


class Database:
    """A pool of connections and its check.

    `url` or `url_file`: the file is read for each new connection, so that a new password needs no restart.
    `role`: `primary` refuses servers that are read-only.
    `pool_timeout`: maximum time in seconds to wait for a connection.
    `connect_timeout`: maximum time in seconds to establish one (libpq takes whole seconds, at least 2).
    `prepare`: whether psycopg prepares repeated statements; False for a pooler that gives each transaction another
    session and does not support prepared statements.
    `name`: name of the pool in the log.
    `time_left`: returns the seconds left for the caller's request, or None; no connection is lent for much longer.
    """

    def __init__(
        self,
        *,
        url: str = "",
        url_file: str = "",
        role: str = "any",
        min_size: int = 2,
        max_size: int = 10,
        pool_timeout: float = 5.0,
        connect_timeout: float = 3.0,
        prepare: bool = True,
        name: str = POOL_NAME,
        time_left: Callable[[], float | None] | None = None,
    ) -> None:
        self._time_left = time_left
        self._source = Source(url, url_file, connect_timeout)
        self._primary = role == "primary"
        self._pool_timeout = pool_timeout
        self._connect_timeout = connect_timeout
        self._max_size = max_size
        self._prepare = prepare
        self.watchdog = Watchdog()
        self._generation = generation()
        self._leases: set[Lease] = set()
        self._pool = Pool(
            self._conninfo,
            name=name,
            min_size=min_size,
            max_size=max_size,
            timeout=pool_timeout,
            configure=self._configure,
        )
        # Written by threads that return a connection, read by the check; single attributes, so there is no lock.
        self._use_time = 0.0  # seconds, for all returned connections
        self._proved = 0.0  # when the server last responded in a way that counts
        self._returned = 0.0  # the same, on a connection that was returned in good state
        # Used by the check only.
        self._began = self._ended = 0.0  # of the last check
        self._failures = 0  # in a row
        self._reason = ""
        self._doubt = ""  # why the pool's connections cannot be trusted
        self._doubted = ""  # the same at the previous check, so that a read-only server does not fill the log
        self._read_only = False  # what the server last reported, with role=primary
        self._crowded = False  # whether somebody was waiting for a connection at the last check
        self._news = threading.Condition(threading.Lock())
        self._attempts: set[_Attempt] = set()
        self._counts = dict.fromkeys(("checks", "check_queries", "check_connections", "flushes", "refills"), 0)

    # ------------------------------------------------------------------ life

    def open(self) -> None:
        """Starts to connect and returns at once; it is not an error if the database is down.

        Raises ConfigurationError if libpq does not accept the URL.
        """
        self._source.verify()
        quiet()
        self._began = self._ended = monotonic()
        self._generation = generation()
        self._pool.open(wait=False)

    @property
    def is_foreign(self) -> bool:
        """Whether this process was forked from the one that opened the pool, and so cannot use it."""
        return self._generation != generation()

    def close(self, timeout: float = 5.0) -> None:
        """Closes every connection; those in use are shut down, which frees the threads that wait for a response.

        Their queries are cancelled, since the server would go on running them, and hold their locks, after this process
        has ended.
        """
        if self.is_foreign:
            return
        self._pool.close(timeout / (self._pool.num_workers + 1))  # for each of its threads
        for lease in list(self._leases):
            lease.shut()
        self.watchdog.close(LAST_CANCELS)

    # ------------------------------------------------------------------ connecting

    def _conninfo(self) -> str:
        """The connection string; the pool's workers ask for it before each attempt to connect."""
        if self._failures and monotonic() - self._began < GATE_EXPIRY:
            raise NotNow(self._reason)
        return self._source.conninfo()

    def _configure(self, conn: Connection) -> None:
        conn.listen()
        if not self._prepare:
            conn.usual_threshold = conn.prepare_threshold = None
        # A report that the server is a primary may be outdated; the check finds out.  To ask here each time would cost
        # each new connection a query.
        if self._primary and _reports_read_only(conn):
            deadline = self.watchdog.watch(conn, monotonic() + self._connect_timeout)
            try:
                read_only = _is_read_only(conn)
            finally:
                self.watchdog.release(deadline)
            if read_only:
                conn.close()
                raise psycopg.OperationalError("the server is read-only, but database_role=primary is set")

    def _connect_and_ask(self) -> None:
        conninfo = self._source.conninfo()
        name = conninfo_to_dict(conninfo).get("application_name", "pkg")
        timeout = min(self._connect_timeout, ATTEMPT_TIMEOUT)
        conn = Connection.connect(
            conninfo,
            autocommit=True,
            application_name=f"{name} readiness check",
            connect_timeout=str(round(timeout)),
        )
        try:
            self._ask(conn, monotonic() + timeout)
        finally:
            conn.close()

    # ------------------------------------------------------------------ use

    def connection(self, timeout: float | None = None) -> Lease:
        """A connection for a `with` block, which commits at its end, or rolls back if it raised.

        `timeout`: seconds for the whole block: the wait, the body and the commit.  When it passes, the connection is
        shut down and the query in it ends with DatabaseUnavailable.  None: only the wait is limited, by `pool_timeout`.
        What the block sets on the connection object (autocommit, row_factory, isolation_level ...) is undone at its
        end.

        Raises DatabaseUnavailable if no connection is free in time, or the deadline passes.
        """
        if timeout is not None and not 0 < timeout < float("inf"):
            raise ValueError(f"timeout is {timeout!r}, not a positive number of seconds")
        if self._time_left is not None and (left := self._time_left()) is not None:
            left += ANSWERED
            timeout = left if timeout is None else min(timeout, left)
        return Lease(self, timeout)

    def lend(self, lease: Lease, timeout: float | None = None) -> Connection:
        """Lends a connection.  Raises Unavailable if none is free within `timeout` seconds or `pool_timeout`.

        Raises NotRunningError in a process that the application has forked.
        """
        if self.is_foreign:
            raise NotRunningError(_FOREIGN)
        timeout = self._pool_timeout if timeout is None else min(timeout, self._pool_timeout)
        if self._failures > 1:
            timeout = min(timeout, KNOWN_DOWN_TIMEOUT)
        try:
            conn = self._pool.borrow(timeout)
        except PoolTimeout:
            in_use = len(self._leases)
            why = (
                f"; the last check failed: {self._reason}"
                if self._failures
                else f"; {in_use} of {self._max_size} are in use"
            )
            raise Unavailable(f"no connection within {timeout:.3g} s{why}") from None
        except (PoolClosed, TooManyRequests) as error:
            raise Unavailable(str(error)) from None
        self._leases.add(lease)
        return conn

    def take_back(self, lease: Lease, conn: Connection) -> None:
        """Returns a connection to the pool; if it is intact, it proves that the server has responded during this
        use."""
        if self.is_foreign:
            raise NotRunningError(_FOREIGN)
        self._leases.discard(lease)
        use_time = monotonic() - conn.lent
        self._use_time += use_time  # no call between reading and writing it, so no other thread can come in between
        if conn.pgconn.transaction_status == IDLE:
            if conn.answered > self._returned and not (self._primary and _reports_read_only(conn)):
                self._returned = conn.answered
                self._proved = max(self._proved, conn.answered)
            try:
                conn.restore()
            except psycopg.Error:
                conn.close()
        self._pool.putconn(conn)

    # ------------------------------------------------------------------ the check

    def check(self) -> Degraded | None:
        """Checks the database, within a second.  Returns None or Degraded; raises DatabaseUnavailable if it fails."""
        self._began = monotonic()
        self._counts["checks"] += 1
        self._doubt = ""
        try:
            verdict = self._judge(self._ended)
        except DatabaseUnavailable as error:
            self._reason = str(error)
            self._failures += 1
            self._flush()
            raise
        finally:
            self._ended = monotonic()
        if self._failures:
            _log.info("the database responds again after %d failed checks", self._failures)
        self._failures, self._reason = 0, ""
        self._flush()
        if self._pool.size < self._pool.min_size:
            self._counts["refills"] += 1
        self._pool.refill()
        return verdict

    def _judge(self, since: float) -> Degraded | None:
        crowded, self._crowded = self._crowded, self._pool.waiting > 0
        proved = self._proved > since and self._began - self._proved < PROOF_AGE and not self._pool.prune()
        if proved and not self._primary:
            if crowded and self._crowded:
                return Degraded(
                    f"saturated: {len(self._leases)} connections are in use, {self._pool.waiting} callers are waiting"
                )
            return None
        if self._ask_free(self._began + ANSWER_TIMEOUT):
            return None
        in_use = len(self._leases)
        try:
            self._ask_new()
        except DatabaseUnavailable as error:
            # A server that refuses one more connection is alive, and serves those of the pool.  If its message is in an
            # unknown language, the reason may be another one; then only its recent responses count.
            full = in_use >= self._max_size and self._began - self._returned < RECENTLY and _is_servers(str(error))
            if (full or _is_one_too_many(str(error))) and not self._read_only:
                if in_use:
                    return Degraded(f"{in_use} connections are in use, and the server refuses another: {error}")
                while self._pool.available and monotonic() < self._began + CHECK_TIMEOUT:
                    if self._ask_free(self._began + CHECK_TIMEOUT):
                        return Degraded(f"the server refuses another connection: {error}")
            raise
        if in_use >= self._max_size:
            return Degraded(
                f"saturated: all {in_use} connections are in use, and none was returned since the last check"
            )
        return None

    def _ask_free(self, at: float) -> bool:
        """Whether there is a free connection that responds before the monotonic time `at`."""
        conn = self._free()
        if conn is None:
            return False
        try:
            self._ask(conn, at)
            return True
        except DatabaseUnavailable as error:
            self._doubt = str(error)
            conn.close()
            return False
        finally:
            self._pool.putconn(conn)

    def _free(self) -> Connection | None:
        """A free connection.  The check does not queue for one, which would make the pool grow."""
        end = monotonic() + BORROW_TIMEOUT
        while not self._pool.available:
            # While the check fails, the pool does not connect, so no connection will become free.
            if self._failures or monotonic() >= end:
                return None
            sleep(0.01)
        try:
            return self._pool.borrow(0.01)
        except (PoolTimeout, PoolClosed, TooManyRequests):
            return None

    def _ask(self, conn: Connection, at: float) -> None:
        """Runs one query.  Raises DatabaseUnavailable if there is no response before the monotonic time `at`, or if the
        server is read-only and must not be.

        The query is empty unless it has to distinguish a primary from a standby.
        """
        self._counts["check_queries"] += 1
        begun, read_only = monotonic(), False
        try:
            deadline = self.watchdog.watch(conn, at)
            try:
                if self._primary:
                    self._read_only = read_only = _is_read_only(conn)
                else:
                    Pool.check_connection(conn)
            finally:
                late = self.watchdog.release(deadline)
        except (psycopg.Error, OSError) as error:
            late = monotonic() >= at
            text = f"no response to a query within {at - begun:.2f} s" if late else first_line(error)
            raise DatabaseUnavailable(text) from None
        if late:
            raise DatabaseUnavailable(f"no response to a query within {at - begun:.2f} s")
        if read_only:
            self._doubt = "the server is read-only"
            raise DatabaseUnavailable("the server is read-only, but database_role=primary is set")

    def _ask_new(self) -> None:
        """The same on a new connection.  Responses from before the start of this check do not count."""
        self._attempts = {attempt for attempt in self._attempts if attempt.is_alive()}
        attempt = None
        if len(self._attempts) < MAX_ATTEMPTS:
            self._counts["check_connections"] += 1
            attempt = _Attempt(self)
            self._attempts.add(attempt)
            attempt.start()
        with self._news:
            self._news.wait_for(
                lambda: self._proved > self._began or (attempt is not None and attempt.error is not None),
                max(0.0, self._began + CHECK_TIMEOUT - monotonic()),
            )
        if self._proved > self._began:
            return
        if attempt is not None and attempt.error is not None:
            raise attempt.error
        raise DatabaseUnavailable(f"no response to a new connection within {monotonic() - self._began:.2f} s")

    def _flush(self) -> None:
        """If one connection is in doubt, closes and replaces all; those in use when they are returned."""
        if self._doubt:
            if self._doubt != self._doubted:
                _log.info("replacing the pool's connections: %s", self._doubt)
            self._counts["flushes"] += 1
            self._pool.drain()
        self._doubted = self._doubt

    # ------------------------------------------------------------------ numbers

    def stats(self) -> dict[str, float]:
        """The statistics of psycopg_pool under its names ("Pool stats"), including zeros, and those of the check."""
        stats: dict[str, float] = dict.fromkeys(_POOL_STATS, 0)
        stats.update(self._pool.get_stats())
        stats["usage_ms"] = round(self._use_time * 1e3, 3)
        stats["connections_used"] = len(self._leases)
        stats["deadlines_passed"] = self.watchdog.fired
        stats.update(self._counts)
        return stats


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


class _Attempt(threading.Thread):
    """Opens a new connection for the check, asks, and closes it.  It may hang in libpq, mostly in name resolution."""

    def __init__(self, database: Database) -> None:
        super().__init__(name="database-check-connects", daemon=True)
        self.database = database
        self.error: DatabaseUnavailable | None = None

    def run(self) -> None:
        database, text = self.database, ""
        try:
            database._connect_and_ask()
        except Exception as error:
            # Keep only the text: the exception's frames hold the connection and its descriptor.
            text = first_line(error)
        with database._news:
            if text:
                self.error = DatabaseUnavailable(text)
            else:
                database._proved = monotonic()
            database._news.notify_all()


def _reports_read_only(conn: Connection) -> bool | None:
    """What the server, or a pooler, reported by itself (PostgreSQL 14 and later); None if it reported nothing."""
    standby = conn.pgconn.parameter_status(b"in_hot_standby")
    if standby is None:
        return None
    return standby == b"on" or conn.pgconn.parameter_status(b"default_transaction_read_only") == b"on"


def _is_read_only(conn: Connection) -> bool:
    """Asks the server.  Raises psycopg.Error if it does not respond."""
    autocommit = conn.autocommit
    conn.autocommit = True  # one round trip instead of three
    try:
        row = conn.execute(b"select pg_is_in_recovery() or current_setting('transaction_read_only')::bool").fetchone()
        assert row is not None
        return bool(row[0])
    finally:
        if not conn.closed:
            conn.autocommit = autocommit


# Messages of a server (SQLSTATE 53300: its own limit, the database's or the role's) and of PgBouncer when they refuse
# one more connection.  libpq has no SQLSTATE for a failed connection.
_ONE_TOO_MANY = re.compile(
    r"too many (?:clients|connections|database connections|user connections)"
    r"|remaining connection slots are reserved"
    r"|no more connections allowed"
)


def _is_one_too_many(text: str) -> bool:
    return _is_servers(text) and _ONE_TOO_MANY.search(text) is not None


def _is_servers(text: str) -> bool:
    """Whether the server itself has said this, in any language.

    libpq writes "SEVERITY:  TEXT" then, with two spaces, both in the language of the server's `lc_messages`
    (fe-protocol3.c, pqBuildErrorMessage3); its own messages have one space.
    """
    return ":  " in text
