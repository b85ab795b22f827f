"""The phases of the process's life, and named signals that others (tests among them) wait on.

It does not make anything happen: `service.py` does, and says so here.

    STARTING --> READY --> DRAINING --> STOPPED
        |                     ^
        +---- a signal -------+        (start-up that fails goes straight to STOPPED)
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable

__all__ = ["Lifecycle", "Phase"]


class Phase(enum.Enum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"


_NEXT = {
    Phase.STARTING: {Phase.READY, Phase.DRAINING, Phase.STOPPED},
    Phase.READY: {Phase.DRAINING, Phase.STOPPED},
    Phase.DRAINING: {Phase.STOPPED},
    Phase.STOPPED: set(),
}


class Lifecycle:
    """The present phase.  Signals are events that are set once and never cleared."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._subscribers: list[Callable[[Phase, str], object]] = []
        self.phase = Phase.STARTING
        self.reason = ""
        self.since = clock()
        self.started = threading.Event()
        self.draining = threading.Event()
        self.listeners_closed = threading.Event()
        self.drained = threading.Event()
        self.stopped = threading.Event()
        self._signals = {Phase.READY: self.started, Phase.DRAINING: self.draining, Phase.STOPPED: self.stopped}

    def advance(self, phase: Phase, reason: str = "") -> None:
        """Enters `phase`.  ValueError: there is no way to it from the present one."""
        with self._lock:
            if phase not in _NEXT[self.phase]:
                raise ValueError(f"no way from {self.phase.value} to {phase.value}")
            self.phase, self.reason, self.since = phase, reason, self._clock()
            subscribers = list(self._subscribers)
        self._signals[phase].set()
        for subscriber in subscribers:
            subscriber(phase, reason)

    def subscribe(self, subscriber: Callable[[Phase, str], object]) -> None:
        """Calls `subscriber(phase, reason)` after each change."""
        with self._lock:
            self._subscribers.append(subscriber)
