"""Deadlines that free a thread which waits for a server, and cancel the query that it waits for.

It makes no decisions: whoever waits says until when.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from itertools import count
from time import monotonic, sleep

import psycopg

from pkg.database.cancel import Cancel
from pkg.database.connection import Connection

__all__ = ["Deadline", "Watchdog", "shut"]

MAX_CANCELS = 1024  # waiting requests, more than a pool has connections by default; the oldest is dropped
CANCEL_TIMEOUT = 5.0  # seconds, for one
CANCEL_ATTEMPTS = 6  # behind a round-robin balancer with this many servers, one attempt reaches the right one
CANCEL_ANSWER = 0.1  # seconds for the server to end the query; then the request is sent again
CANCEL_GRACE = 1.0  # seconds that a connection is kept for its cancel request, which a pooler assigns by it
TLS_GRACE = 0.25  # the same if the thread has to wait meanwhile
MAX_WAIT = 3600.0  # seconds for one wait; a wait of 300 years would be an OverflowError


def shut(fd: int, how: int = socket.SHUT_RDWR) -> None:
    """Shuts a connection down; a thread that waits for a response on it gets an OperationalError at once.

    Nothing else helps with a server that is stopped or unreachable: not the pool's timeout, not `statement_timeout`
    (which the server enforces), and not a cancel request (which the server must process).
    """
    end = socket.socket(fileno=fd)
    try:
        end.shutdown(how)
    except OSError:
        pass  # the peer has closed it already
    finally:
        end.detach()


def _has_data(fd: int) -> bool:
    end = socket.socket(fileno=fd)
    try:
        return bool(
            end.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        )  # a socket that is shut down for reading still receives
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        end.detach()


def _started(target: Callable[[], object], name: str) -> threading.Thread:
    """A started daemon thread.  Raises RuntimeError if no thread can be started."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


class Deadline:
    """One watched connection.  `fired`: whether its deadline has passed."""

    __slots__ = ("conn", "fd", "fired")

    def __init__(self, fd: int, conn: Connection | None) -> None:
        self.fd = fd  # a duplicate that belongs to the watchdog; -1 if closed
        self.conn = conn  # the connection whose query is to be cancelled, or None
        self.fired = False


class Watchdog:
    """Shuts down connections whose deadline has passed, in one thread, which starts with the first deadline.

    A running server does not notice that its client is gone until the query ends, which may be never.  So a second
    thread asks it to cancel the query:

        deadline                the cancel request is built with the connection's secret; nothing more is sent on the
                                connection; its socket is shut down for reading, which frees the waiting thread
        request was received    the socket is shut down for writing as well.  Not earlier, because PgBouncer forgets the
                                secret of a client that has disconnected, and lets its query run
        CANCEL_GRACE later      the same, if the server has not received the request

    With TLS the thread is freed a moment later (TLS_GRACE at most): libpq, when it finds the end of the stream, would
    send a closing message to the peer.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.Lock())
        self._heap: list[tuple[float, int, Deadline]] = []
        self._count = count()
        self._released = 0  # deadlines in the heap that have been released
        self._thread: threading.Thread | None = None
        self._closed = False
        self._cancels: deque[tuple[Cancel, Deadline]] = deque(maxlen=MAX_CANCELS)
        self._canceller: threading.Thread | None = None
        self.fired = 0

    def watch(self, conn: Connection, at: float, *, cancel: bool = False) -> Deadline:
        """Shuts the connection down at the monotonic time `at`, unless it is released before.  `cancel`: cancels its
        query."""
        # A duplicate of the descriptor, because libpq may close its own at any time, and the number may be reused.
        with self._condition:
            if self._thread is None and not self._closed:
                self._thread = _started(self._run, "database-deadlines")
            deadline = Deadline(os.dup(conn.pgconn.socket), conn if cancel else None)
            heapq.heappush(self._heap, (at, next(self._count), deadline))
            if self._heap[0][2] is deadline:
                self._condition.notify_all()
        return deadline

    def release(self, deadline: Deadline, *, is_lost: bool = False) -> bool:
        """Stops watching.  Returns whether the deadline has passed; then the connection must be closed.

        `is_lost`: a query may still be running.  Otherwise everything sent has been answered, and there is nothing to
        cancel.
        """
        with self._condition:
            deadline.conn = None
            if not deadline.fired:
                os.close(deadline.fd)
                deadline.fd = -1
                self._released += 1
            elif not is_lost and deadline.fd >= 0:
                self._end(deadline)
                self._released += 1
            # Most deadlines are released long before they pass; at most half of the heap may be released ones.
            if self._released > 64 and self._released * 2 > len(self._heap):
                self._heap = [entry for entry in self._heap if entry[2].fd >= 0]
                heapq.heapify(self._heap)
                self._released = 0
        return deadline.fired

    def end(self, conn: Connection) -> None:
        """Does at once what a deadline does."""
        with self._condition, contextlib.suppress(psycopg.Error, OSError):
            self._fire(Deadline(os.dup(conn.pgconn.socket), conn))

    def _run(self) -> None:
        with self._condition:
            while not self._closed:
                while self._heap and self._heap[0][2].fd < 0:
                    heapq.heappop(self._heap)
                    self._released -= 1
                if not self._heap:
                    self._condition.wait()
                    continue
                left = self._heap[0][0] - monotonic()
                if left > 0:
                    self._condition.wait(min(left, MAX_WAIT))
                    continue
                deadline = heapq.heappop(self._heap)[2]
                if deadline.fired:
                    self._end(deadline)
                else:
                    self.fired += 1
                    self._fire(deadline)

    def _fire(self, deadline: Deadline) -> None:
        deadline.fired = True
        conn, deadline.conn = deadline.conn, None
        cancel = conn.expire() if conn is not None else None
        if cancel is None:
            self._end(deadline)
            return
        grace = TLS_GRACE if cancel.is_tls else CANCEL_GRACE
        if not cancel.is_tls:
            shut(deadline.fd, socket.SHUT_RD)
        heapq.heappush(self._heap, (monotonic() + grace, next(self._count), deadline))
        self._condition.notify_all()
        self._cancels.append((cancel, deadline))
        if self._canceller is None:
            # If no thread can be started, the request waits in the queue for the next attempt.  However late it is
            # sent, it can only affect the session for which it was made.
            with contextlib.suppress(RuntimeError):
                self._canceller = _started(self._run_cancels, "database-cancels")

    def _end(self, deadline: Deadline) -> None:
        if deadline.fd >= 0:
            shut(deadline.fd)
            os.close(deadline.fd)
            deadline.fd = -1

    def _run_cancels(self) -> None:
        while True:
            with self._condition:
                if not self._cancels or self._closed:
                    self._canceller = None
                    self._condition.notify_all()
                    return
                cancel, deadline = self._cancels.popleft()
            # A balancer may send the request to another server, which ignores it.
            for _ in range(CANCEL_ATTEMPTS if cancel.is_active else 1):
                try:
                    cancel.send(CANCEL_TIMEOUT)
                except (psycopg.Error, OSError):
                    break
                if not cancel.is_active or self._has_answered(deadline):
                    break
            with self._condition:
                if deadline.fd >= 0:
                    self._end(deadline)
                    self._released += 1  # it is still in the heap

    def _has_answered(self, deadline: Deadline) -> bool:
        """Whether the server has announced the end of the query, or nobody waits for it any more."""
        end = monotonic() + CANCEL_ANSWER
        while True:
            with self._condition:
                if deadline.fd < 0 or _has_data(deadline.fd):
                    return True
            if monotonic() >= end:
                return False
            sleep(0.005)

    def close(self, timeout: float = 0.0) -> None:
        """Ends the watchdog; cancel requests under way get `timeout` seconds."""
        with self._condition:
            self._condition.wait_for(lambda: self._canceller is None, timeout)
            self._closed = True
            self._cancels.clear()
            for _, _, deadline in self._heap:
                if deadline.fired:
                    self._end(deadline)
            self._condition.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(1.0)
