"""When all workers, or the event loop, count as stuck.

It only looks at the front's counters; liveness fails by what it says.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["StuckEventLoop", "StuckWorkers"]


class StuckWorkers:
    """Detects that every worker has been busy with its request for more than `timeout` seconds and none has
    finished."""

    def __init__(self, front: Any, threads: int, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._front, self._threads, self._timeout, self._clock = front, threads, timeout, clock
        self._finished = -1
        self._since = clock()

    def __call__(self) -> str | None:
        """The reason if all workers are stuck now, otherwise None.  Call it about once a second."""
        stats, now = self._front.stats(), self._clock()
        finished = stats.finished
        busy = stats.in_flight - stats.queued
        if busy < self._threads or finished != self._finished:
            self._finished, self._since = finished, now
        if now - self._since <= self._timeout:
            return None
        return (
            f"all {self._threads} worker threads have been busy with their requests for more than {self._timeout:g} s, "
            "and none has finished"
        )


class StuckEventLoop:
    """Detects that the event loop of an ASGI application has been in the same turn for more than `timeout` seconds.

    `where()` says where it is blocked, as in "at app.py:41: time.sleep(3), in GET /slow"; or "".
    """

    def __init__(self, front: Any, timeout: float, where: Callable[[], str] = lambda: "") -> None:
        self._front, self._timeout, self._where = front, timeout, where

    def __call__(self) -> str | None:
        """The reason if it is blocked now, otherwise None."""
        if self._front.eventloop_turn <= self._timeout:
            return None
        return f"the event loop has been blocked for more than {self._timeout:g} s {self._where()}".rstrip()
