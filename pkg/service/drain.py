"""The drain: from the signal until no request is left.

It ends requests and connections; what else the process has is closed by `Service`.

      0 s     the front sees the signal by itself: /readyz 503 `shutdown`, `Connection: close` on every response
      |       drain_delay (0 after SIGINT, cut short by a second signal): new requests are still accepted and served
      v       no new handshakes, the backlog is accepted, the listener closes; idle connections get one more second
      |       drain_timeout: requests in flight finish; in its first half WebSockets are closed one by one;
      |       2 s before its end, or after half of it, streams of ASGI
      |       applications are told to end; 1 s before its end, stacks and requests are logged
      v       remaining requests are aborted
"""

from __future__ import annotations

import faulthandler
import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pkg.logs.output import last_words

if TYPE_CHECKING:
    from pkg._core import Front
    from pkg.health.checks import Checker
    from pkg.http.server import Server
    from pkg.service.signals import Signals

__all__ = ["GIVE_UP", "Drained", "Streams", "drain"]

_log = logging.getLogger("pkg.service")

STREAMS_END = 2.0  # seconds before the deadline of the drain, when streams are told to end
LAST_WORDS = 1.0  # seconds before the deadline of the drain, when stacks are logged
GIVE_UP = 1.5  # seconds after the deadline, when the process ends in any case (grace_period leaves 2 until SIGKILL)


class Streams(Protocol):
    """What can end streams and WebSockets before the deadline: an event loop, or those of all workers."""

    def end_streams(self) -> None: ...
    def end_websockets(self, seconds: float) -> None:
        """`seconds`: over which to spread it."""


class Drained(NamedTuple):
    """What became of the requests, and since when (`begun`, in time.monotonic())."""

    begun: float
    served: int  # while draining
    aborted: int  # at the deadline
    served_in_all: int  # since the start
    cut_off: int  # since the start, by clients and by time limits

    def log(self) -> None:
        _log.info(
            "stopped: %d served while draining, %d aborted%s, after %.1f s; since the start %d served, %d cut off",
            self.served,
            self.aborted,
            " at the deadline" if self.aborted else "",
            time.monotonic() - self.begun,
            self.served_in_all,
            self.cut_off,
        )


def drain(
    server: Server,
    checker: Checker,
    signals: Signals,
    *,
    delay: float,
    timeout: float,
    say: Callable[[str], None],
    streams: Streams | None = None,
) -> Drained:
    """Makes readiness fail, stops accepting after `delay` seconds, and gives requests another `timeout` seconds.

    `say` is called with a reason one second before requests are aborted, if there are any.
    """
    front = server.front
    assert front is not None
    begun, over = signals.at, signals.at + delay + timeout + GIVE_UP
    delay = 0.0 if signals.hurry.is_set() else delay
    before = front.stats()
    _log.info(
        "draining after %s: %d requests in flight, %d connections; "
        "accepting new connections for %g s, then waiting at most %g s for requests to finish",
        signals.name,
        before.in_flight,
        before.connections,
        delay,
        timeout,
    )
    server.drain()
    # The interpreter runs at this point, so faulthandler watches from now on, which shows stacks; see also
    # Front.watch_signals().
    faulthandler.dump_traceback_later(max(0.1, over - time.monotonic()), exit=True, file=last_words())
    checker.drain()
    if delay:
        signals.hurry.wait(begun + delay - time.monotonic())
    server.close_listener()
    if streams is not None:
        streams.end_websockets(timeout / 2)
    deadline = time.monotonic() + timeout
    aborted = 0
    has_ended = False
    if streams is not None and not (has_ended := server.join(max(timeout / 2, timeout - STREAMS_END))):
        streams.end_streams()
    if not has_ended and not server.join(max(0.0, deadline - LAST_WORDS - time.monotonic())):
        _warn(front, deadline, say)
        if not server.join(max(0.0, deadline - time.monotonic())):
            aborted = -front.stats().aborted
            server.shutdown()
            aborted += front.stats().aborted
    if front.close_fault:
        _log.warning(
            "new connections could not be stopped before the listener closed (%s); "
            "a connection made at that moment was reset",
            os.strerror(front.close_fault),
        )
    after = front.stats()
    return Drained(
        begun=begun,
        served=after.served - before.served,
        aborted=aborted,
        served_in_all=after.served,
        cut_off=after.aborted - aborted,
    )


def _warn(front: Front, deadline: float, say: Callable[[str], None]) -> None:
    """Logs what is in flight one second before the deadline.  Connections without a request are no reason for alarm."""
    stats = front.stats()
    if stats.in_flight:
        say("the drain deadline is in 1 s")
    else:
        left = max(0.0, deadline - time.monotonic())
        _log.info(
            "the drain deadline is in %.1f s: %d connections are left, no request is in flight",
            left,
            stats.connections,
        )
