"""X-Request-Start of trusted proxies: how long requests have been on their way before they arrived here.

Nobody has standardized the field.  Its value is the time when a proxy began to handle the request, in seconds,
milliseconds or microseconds since 1970, with or without `t=` in front and with or without decimals; some proxies call
it X-Queue-Start.  It is only counted: no request is treated otherwise because of it.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from threading import Lock
from time import time
from typing import Any

from pkg._core import QUEUE_WAIT_BOUNDS

__all__ = ["RequestStart", "parse_time"]

_log = logging.getLogger("pkg.server")

# Seconds.  Clocks that are kept by NTP differ by milliseconds, so up to MAX_AHEAD the request has simply taken no time.
# No proxy lets a request wait for longer than MAX_WAIT by default (nginx 60 s, HAProxy's queue as long as a connection
# attempt, AWS 60 s, Google Cloud 30 s): behind more there is another clock or unit, and one such value would hide all
# others in the sum.
MAX_AHEAD = 1.0
MAX_WAIT = 300.0

MAX_SIZE = 32  # characters


def parse_time(text: str) -> float | None:
    """Seconds since 1970; None if it is no such time.  The unit follows from the magnitude: as seconds, the smallest
    number that counts as milliseconds is the year 5138, and as milliseconds it is 1973."""
    digits = text.removeprefix("t=")
    if len(digits) > MAX_SIZE or not digits.isascii() or not digits.replace(".", "", 1).isdecimal():
        return None
    value = float(digits)
    for factor in (1, 1_000, 1_000_000):
        if value < 1e11 * factor:
            return value / factor
    return None


class RequestStart:
    """Called with each request of a trusted proxy.  Several threads may call it at a time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts = [0] * (len(QUEUE_WAIT_BOUNDS) + 1)
        self._sum = 0.0
        self._has_ignored = False

    def __call__(self, request: Any) -> None:
        # Of two fields nobody knows which one the trusted proxy has set.
        text = request.only_header(b"x-request-start") or request.only_header(b"x-queue-start")
        if text is None:
            return
        start = parse_time(text)
        if start is None:
            return
        # The wait in our own queue, until now, is in a histogram of its own.
        wait = time() - request.duration - start
        if not -MAX_AHEAD <= wait <= MAX_WAIT:
            self._ignore(wait)
            return
        wait = max(0.0, wait)
        place = bisect_left(QUEUE_WAIT_BOUNDS, wait)
        with self._lock:
            self._counts[place] += 1
            self._sum += wait

    def waits(self) -> tuple[list[int], float]:
        """As `Front.queue_waits()`: the count of each bucket, not cumulative, and the sum in seconds."""
        with self._lock:
            return self._counts.copy(), self._sum

    def _ignore(self, wait: float) -> None:
        if not self._has_ignored:
            self._has_ignored = True
            _log.warning(
                "ignoring X-Request-Start of a proxy, %.1f s in the %s: check its unit and the clocks of both machines "
                "(logged only once)",
                abs(wait),
                "past" if wait > 0 else "future",
            )
