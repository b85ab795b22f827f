"""The check that decides whether the database can be used.

It runs no timer: `health.checks` decides when to check and damps the results.

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
import threading
from collections.abc import Callable
from time import monotonic, sleep

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import PoolClosed, TooManyRequests

from pkg.database.connection import Connection
from pkg.database.lending import Lending
from pkg.database.locks import blocker
from pkg.database.pool import NotNow, Pool, PoolTimeout, first_line
from pkg.database.refusals import is_one_too_many, is_servers
from pkg.database.slots import shortage
from pkg.database.source import Source
from pkg.errors import DatabaseUnavailable
from pkg.health.checks import Degraded

__all__ = ["DatabaseCheck"]

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
LONG_STATEMENT = 2.0  # seconds after which the server is asked whether it waits for a lock
LOCKS_TIMEOUT = 0.2  # for the response to that
RECENTLY = 10.0  # if connections were returned within this time, the pool is saturated and not dead
GATE_EXPIRY = 10.0  # an older result of the check does not prevent the pool from connecting


class DatabaseCheck:
    """Asks through the pool, or on a connection of its own, and tells the lending what it has found.

    `processes`: how many have such a pool.  `primary`: whether a server that is read-only fails.  `connect_timeout`:
    maximum time in seconds to establish a connection.  `counts`: how often it has run, asked, connected, flushed and
    refilled the pool.  `shortage`: why the pool cannot get all of its connections, "" if nothing is known of that.
    `locks`: for whose lock statements of the application wait, "" if none does.
    """

    def __init__(
        self,
        source: Source,
        pool: Pool,
        lending: Lending,
        *,
        max_size: int,
        processes: int,
        connect_timeout: float,
        primary: bool,
    ) -> None:
        self._source = source
        self._pool = pool
        self._lending = lending
        self._max_size, self._processes = max_size, processes
        self._connect_timeout = connect_timeout
        self._primary = primary
        self._prefix = lending.prefix
        self._began = self._ended = monotonic()  # of the last check
        self._doubt = ""  # why the pool's connections cannot be trusted
        self._doubted = ""  # the same at the previous check, so that a read-only server does not fill the log
        self._oldest: Callable[[], float] | None = None
        self._read_only = False  # what the server last reported, with role=primary
        self._crowded = False  # whether somebody was waiting for a connection at the last check
        self.shortage = self.locks = ""
        self._has_passed = self._knows_slots = False
        self._news = threading.Condition(threading.Lock())
        self._attempts: set[_Attempt] = set()
        self.counts = dict.fromkeys(("checks", "check_queries", "check_connections", "flushes", "refills"), 0)

    def open(self, oldest: Callable[[], float] | None) -> None:
        """From now on there is evidence; what was before does not count.  `oldest` is described at `Database.open`."""
        self._oldest = oldest
        self._began = self._ended = monotonic()

    def gate(self) -> None:
        """Raises NotNow if it is known to be in vain to connect."""
        if self._lending.failures and monotonic() - self._began < GATE_EXPIRY:
            raise NotNow(self._lending.reason)

    def run(self) -> Degraded | None:
        """Checks the database, within a second.  Returns None or Degraded; raises DatabaseUnavailable if it fails."""
        self._began = monotonic()
        self.counts["checks"] += 1
        self._doubt = ""
        if not self._long_statements():
            self.locks = ""
        self._lending.reclaim()
        try:
            verdict = self._judge(self._ended)
        except DatabaseUnavailable as error:
            self._lending.reason = str(error)
            self._lending.failures += 1
            self._flush()
            raise
        finally:
            self._ended = monotonic()
        if self._lending.failures:
            _log.info("%sthe database responds again after %d failed checks", self._prefix, self._lending.failures)
        self._lending.failures, self._lending.reason = 0, ""
        self._flush()
        if self._pool.size < self._pool.min_size:
            self.counts["refills"] += 1
        self._pool.refill()
        if self._has_passed and not self._knows_slots:  # not in the first one, whose result readiness waits for
            self._count_slots()
        self._has_passed = True
        if self._oldest is None or not (kept := self._lending.kept(self._oldest())):
            return verdict
        return Degraded(f"{verdict.reason}; {kept}" if verdict is not None else kept)

    def _judge(self, since: float) -> Degraded | None:
        lending = self._lending
        crowded, self._crowded = self._crowded, self._pool.waiting > 0
        proved = lending.proved > since and self._began - lending.proved < PROOF_AGE and not self._pool.prune()
        if proved and not self._primary:
            if self._long_statements():
                self._ask_free(self._began + ANSWER_TIMEOUT)
            if crowded and self._crowded:
                return Degraded(
                    f"saturated: {lending.in_use} connections are in use, {self._pool.waiting} callers are waiting"
                )
            return None
        if self._ask_free(self._began + ANSWER_TIMEOUT):
            return None
        in_use = lending.in_use
        try:
            self._ask_new()
        except DatabaseUnavailable as error:
            # A server that refuses one more connection is alive, and serves those of the pool.  If its message is in an
            # unknown language, the reason may be another one; then only its recent responses count.
            full = in_use >= self._max_size and self._began - lending.returned < RECENTLY and is_servers(str(error))
            if (full or is_one_too_many(str(error))) and not self._read_only:
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
            self._look_for_locks(conn)
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
            if self._lending.failures or monotonic() >= end:
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
        self.counts["check_queries"] += 1
        begun, read_only = monotonic(), False
        try:
            deadline = self._lending.watchdog.watch(conn, at)
            try:
                if self._primary:
                    self._read_only = read_only = conn.is_read_only()
                else:
                    Pool.check_connection(conn)
            finally:
                late = self._lending.watchdog.release(deadline)
        except (psycopg.Error, OSError) as error:
            late = monotonic() >= at
            text = f"no response to a query within {at - begun:.2f} s" if late else first_line(error)
            raise DatabaseUnavailable(text) from None
        if late:
            raise DatabaseUnavailable(f"no response to a query within {at - begun:.2f} s")
        if read_only:
            self._doubt = "the server is read-only"
            raise DatabaseUnavailable("the server is read-only, but database_role=primary is set")

    def _count_slots(self) -> None:
        """Asks once whether the server has as many connections as the pool may want, if one is free for it."""
        is_late = monotonic() - self._began > ANSWER_TIMEOUT
        if is_late or not self._pool.available or (conn := self._free()) is None:
            return
        self._knows_slots = True
        try:
            deadline = self._lending.watchdog.watch(conn, self._began + CHECK_TIMEOUT)
            try:
                self.shortage = shortage(conn, self._max_size, self._processes)
            finally:
                self._lending.watchdog.release(deadline)
        except Exception as error:  # not PostgreSQL, or not all of it; the check has passed all the same
            _log.debug("%sthe server's limit of connections is not known: %s", self._prefix, first_line(error))
            conn.close()
        finally:
            self._pool.putconn(conn)
        if self.shortage:
            _log.warning("%s%s", self._prefix, self.shortage)

    def _long_statements(self) -> list[int]:
        return list(self._lending.places(monotonic() - LONG_STATEMENT, running=True))

    def _look_for_locks(self, conn: Connection) -> None:
        """Finds out whether long statements wait for a lock, and whose it is."""
        waiting = self._long_statements()
        if not waiting:
            return
        before = self.locks
        try:
            deadline = self._lending.watchdog.watch(conn, monotonic() + LOCKS_TIMEOUT)
            try:
                self.locks = blocker(conn, waiting, self._lending.places(monotonic()))
            finally:
                self._lending.watchdog.release(deadline)
        except Exception as error:  # not PostgreSQL, or not all of it; the check has passed all the same
            _log.debug("%sit is not known whether statements wait for locks: %s", self._prefix, first_line(error))
            conn.close()
        if self.locks and not before:
            _log.warning("%s%s", self._prefix, self.locks)

    def _ask_new(self) -> None:
        """The same on a new connection.  Responses from before the start of this check do not count."""
        self._attempts = {attempt for attempt in self._attempts if attempt.is_alive()}
        attempt = None
        if len(self._attempts) < MAX_ATTEMPTS:
            self.counts["check_connections"] += 1
            attempt = _Attempt(self._connect_and_ask, self._tried)
            self._attempts.add(attempt)
            attempt.start()
        with self._news:
            self._news.wait_for(
                lambda: self._lending.proved > self._began or (attempt is not None and attempt.error is not None),
                max(0.0, self._began + CHECK_TIMEOUT - monotonic()),
            )
        if self._lending.proved > self._began:
            return
        if attempt is not None and attempt.error is not None:
            raise attempt.error
        raise DatabaseUnavailable(f"no response to a new connection within {monotonic() - self._began:.2f} s")

    def _flush(self) -> None:
        """If one connection is in doubt, closes and replaces all; those in use when they are returned."""
        if self._doubt:
            if self._doubt != self._doubted:
                _log.info("%sreplacing the pool's connections: %s", self._prefix, self._doubt)
            self.counts["flushes"] += 1
            self._pool.drain()
        self._doubted = self._doubt

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
            self._look_for_locks(conn)
        finally:
            conn.close()

    def _tried(self, attempt: _Attempt, text: str) -> None:
        """Takes note of an attempt that has ended, with a response or with the error of this text."""
        with self._news:
            if text:
                attempt.error = DatabaseUnavailable(text)
            else:
                self._lending.proved = monotonic()
            self._news.notify_all()


class _Attempt(threading.Thread):
    """Opens a new connection for the check, asks, and closes it.  It may hang in libpq, mostly in name resolution.

    `ask` does all of this; `tried` is called at the end, with the text of the error or "".
    """

    def __init__(self, ask: Callable[[], None], tried: Callable[[_Attempt, str], None]) -> None:
        super().__init__(name="database-check-connects", daemon=True)
        self._ask = ask
        self._tried = tried
        self.error: DatabaseUnavailable | None = None

    def run(self) -> None:
        text = ""
        try:
            self._ask()
        except Exception as error:
            # Keep only the text: the exception's frames hold the connection and its descriptor.
            text = first_line(error)
        self._tried(self, text)
