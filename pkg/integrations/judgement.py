"""The check that decides whether a database can be used through a pool that is not ours.

It decides as `database.check` does for our own pool, and knows neither the pool nor its driver.

    evidence since the last check       result
    a statement has succeeded           ok, without a query; degraded if all connections were in use at two checks
    a free connection responds          ok
    a free connection does not respond  a new connection outside of the pool decides; the pool's are replaced
    no connection is free               the same; degraded if all are in use
    the server refuses the new one      degraded while a connection is in use or a free one responds
    (any, with role=primary)            each check asks the server; failed if it is read-only

Questions run elsewhere, in a thread or on an event loop, so that the check returns within its time whatever hangs.  A
blocked event loop cannot ask on the pool's connections; it is no evidence against the database.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import traceback
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple, Protocol

from pkg.database.refusals import is_one_too_many, is_servers
from pkg.errors import DatabaseUnavailable
from pkg.health.checks import Degraded

__all__ = ["ATTEMPT_TIMEOUT", "READ_ONLY", "OwnPool", "PoolCheck", "Question", "ReadOnly", "Usage"]

_log = logging.getLogger("pkg.database")

# Parts of the check's own timeout: with one second, as for our own pool.
ANSWER_PART = 0.4  # for a free connection, from the start of the check; then a new connection is tried
CHECK_PART = 0.75  # for all of it
ATTEMPT_TIMEOUT = 3.0  # seconds for a new connection; attempts that begin in an outage can get lost with its server
MAX_ATTEMPTS = 8  # such attempts at once
MAX_CHAIN = 10  # exceptions behind one another, which may form a circle
PROOF_AGE = 0.5  # seconds; maximum age of a statement that replaces a query
RECENTLY = 10.0  # seconds; if a statement has succeeded within this time, the pool is saturated and not dead

READ_ONLY = "select pg_is_in_recovery() or current_setting('transaction_read_only')::bool"


class ReadOnly(Exception):
    """Raised by a question with role=primary."""

    def __init__(self) -> None:
        super().__init__("the server is read-only, but the role is primary")


class Usage(NamedTuple):
    """Connections of a pool: free ones, those in use, and how many it may have; None if there is no limit."""

    free: int
    in_use: int
    most: int | None


class OwnPool(Protocol):
    """The pool of the application's own, as the check needs it.  The questions return at once and end later."""

    def usage(self) -> Usage: ...
    def ask_free(self, question: Question) -> None:
        """Asks on a free connection of the pool."""

    def ask_new(self, question: Question) -> None:
        """Asks on a new connection outside of the pool."""

    def is_blocked(self) -> bool:
        """Whether the event loop of the pool's connections does not run, so that they cannot respond."""

    def replace(self) -> None:
        """Lets the pool replace its connections at their next use, and those in use after it."""

    def recovered(self) -> None:
        """Called when the check passes again."""


class Question:
    """One query of the check on a connection.  It runs elsewhere, calls `hold`, `release`, and once `end`."""

    def __init__(self) -> None:
        self.begun = monotonic()
        self.is_over = False  # nobody waits for it any more
        self.error = ""
        self.is_refusal = self.is_one_too_many = self.is_read_only = False
        self.done = threading.Event()
        self._lock = threading.Lock()
        self._stop: Callable[[], object] | None = None
        self._fd = -1

    def hold(self, connection: Any, abort: Callable[[], object] | None = None) -> None:
        """From now on stop() ends the query: by `abort`, or by shutting down the connection's socket.

        The descriptor is a duplicate, as the driver closes its own when it likes, and the number may be another's then.
        """
        with self._lock:
            if abort is not None:
                self._stop = abort
            else:
                with contextlib.suppress(Exception):  # a driver without fileno(), or a connection that is closed
                    self._fd = os.dup(connection.fileno())

    def release(self) -> bool:
        """Before the connection is given back.  Returns whether it has been stopped."""
        with self._lock:
            self._stop = None
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
            return self.is_over

    def stop(self) -> None:
        """Ends the query, whoever waits for its response."""
        with self._lock:
            self.is_over = True
            if self._stop is not None:
                self._stop()
            elif self._fd >= 0:
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._fd)) as duplicate:
                    duplicate.shutdown(socket.SHUT_RDWR)

    def end(self, error: BaseException | None = None) -> None:
        """Takes note of the outcome.  Of an error it keeps the text only, since its frames hold the connection; cycles
        among them would keep its descriptor until the next garbage collection."""
        if error is not None:
            link: BaseException | None = error
            for _ in range(MAX_CHAIN):
                if link is not None:
                    traceback.clear_frames(link.__traceback__)
                    link = link.__cause__ or link.__context__
            state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)  # psycopg and asyncpg, psycopg2
            text = str(error).strip() or type(error).__name__
            self.is_refusal = state is not None or is_servers(text)
            self.is_one_too_many = state == "53300" or is_one_too_many(text)
            self.is_read_only = isinstance(error, ReadOnly)
            self.error = text.splitlines()[0].removeprefix("connection failed: ")
        self.done.set()


class PoolCheck:
    """Decides by `pool`.  `primary`: whether a server that is read-only fails.  `timeout`: of one check, in seconds.

    `answered` is when a statement of the application's own last succeeded, on the monotonic clock: whoever sees that
    writes it, from any thread.
    """

    def __init__(self, pool: OwnPool, *, primary: bool = False, timeout: float = 1.0) -> None:
        self.answered = 0.0
        self._pool = pool
        self._primary = primary
        self._timeout = timeout
        self._responded = 0.0  # when a new connection last responded
        self._began = self._ended = monotonic()  # of the last check
        self._doubt = self._doubted = ""  # why the pool's connections cannot be trusted; at the previous check
        self._was_full = False
        self._failures = 0
        self._asking: Question | None = None  # the last one on a free connection
        self._attempts: list[Question] = []

    def run(self) -> Degraded | None:
        """Returns None or Degraded, within the timeout; raises DatabaseUnavailable if the database cannot be used."""
        self._began = monotonic()
        self._doubt = ""
        try:
            verdict = self._judge(self._ended)
        except DatabaseUnavailable:
            self._failures += 1
            self._replace()
            raise
        finally:
            self._ended = monotonic()
        self._replace()
        if self._failures:
            _log.info("the database responds again after %d failed checks", self._failures)
            self._pool.recovered()
        self._failures = 0
        return verdict

    def _judge(self, since: float) -> Degraded | None:
        usage = self._pool.usage()
        asking = self._asking is not None and not self._asking.done.is_set()  # holds a connection as well
        in_use = max(0, usage.in_use - asking)
        is_full = usage.most is not None and usage.in_use >= usage.most
        was_full, self._was_full = self._was_full, is_full
        if self.answered > since and self._began - self.answered < PROOF_AGE and not self._primary:
            return Degraded(f"saturated: all {in_use} connections are in use") if is_full and was_full else None
        if usage.free and self._ask_free(ANSWER_PART):
            return None
        attempt = self._ask_new()
        if attempt is None:
            if is_full:
                return Degraded(f"saturated: all {in_use} connections are in use, and no statement has ended since")
            return None
        # A server that refuses one more connection is alive, and serves those of the pool.  If its message is in an
        # unknown language, the reason may be another one; then only recent statements count.
        full = is_full and self._began - self.answered < RECENTLY and attempt.is_refusal
        if (full or attempt.is_one_too_many) and not attempt.is_read_only:
            if in_use:
                return Degraded(f"{in_use} connections are in use, and the server refuses another: {attempt.error}")
            if usage.free and self._ask_free(CHECK_PART):
                return Degraded(f"the server refuses another connection: {attempt.error}")
        raise DatabaseUnavailable(attempt.error)

    def _ask_free(self, part: float) -> bool:
        """Whether there is a free connection that responds in this part of the time.  Only one is asked at a time."""
        if self._asking is not None and not self._asking.done.is_set():
            return False
        question = self._asking = Question()
        self._pool.ask_free(question)
        if question.done.wait(max(0.0, self._began + part * self._timeout - monotonic())):
            self._doubt = question.error
            return not question.error
        if self._pool.is_blocked():
            question.is_over = True
            return False
        question.stop()
        self._doubt = f"no response to a query within {monotonic() - question.begun:.2f} s"
        return False

    def _ask_new(self) -> Question | None:
        """The same on a new connection.  Returns None if anything has responded since the start of the check."""
        self._attempts = [attempt for attempt in self._attempts if not attempt.done.is_set()]
        for attempt in self._attempts:
            if monotonic() - attempt.begun > ATTEMPT_TIMEOUT:
                attempt.stop()
        new = Question()
        if len(self._attempts) < MAX_ATTEMPTS:
            self._attempts.append(new)
            self._pool.ask_new(new)
        end = self._began + CHECK_PART * self._timeout
        while True:
            for attempt in self._attempts:
                if attempt.done.is_set() and not attempt.error:
                    return None
            if self.answered > self._began and not self._primary:
                return None
            if new.error or monotonic() >= end:
                break
            new.done.wait(min(0.05, max(0.0, end - monotonic())))
        if not new.error:
            late = Question()
            late.error = f"no response to a new connection within {monotonic() - self._began:.2f} s"
            return late
        return new

    def _replace(self) -> None:
        """If one connection is in doubt, all are replaced."""
        if self._doubt:
            if self._doubt != self._doubted:
                _log.info("replacing the pool's connections: %s", self._doubt)
            self._pool.replace()
        self._doubted = self._doubt
