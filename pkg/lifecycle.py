"""The phases of the process's life.

It does not make anything happen: `service.py` does, and says so here.  What others wait on, tests among them, are the
log lines that go with the changes: `serving ...`, `draining after ...`, `stopped: ...`.

    STARTING --> READY --> DRAINING --> STOPPED
        |                     ^
        +---- a signal -------+        (start-up that fails goes straight to STOPPED)
"""

from __future__ import annotations

import enum
import threading
import time

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
    """The present phase; `reason` and `since` (time.monotonic()): why and when it was entered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.phase = Phase.STARTING
        self.reason = ""
        self.since = time.monotonic()

    def advance(self, phase: Phase, reason: str = "") -> None:
        """Enters `phase`.  ValueError: there is no way to it from the present one."""
        with self._lock:
            if phase not in _NEXT[self.phase]:
                raise ValueError(f"no way from {self.phase.value} to {phase.value}")
            self.phase, self.reason, self.since = phase, reason, time.monotonic()
