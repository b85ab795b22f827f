"""The phases of the process's life.

It only records them: `Service` acts and reports each change here.  Tests and others wait for the log lines that go
with the changes: `serving ...`, `draining after ...`, `stopped: ...`.

    STARTING --> READY --> DRAINING --> STOPPED
        |                     ^
        +---- a signal -------+        (what fails does not get to STOPPED)
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
    Phase.STARTING: {Phase.READY, Phase.DRAINING},
    Phase.READY: {Phase.DRAINING},
    Phase.DRAINING: {Phase.STOPPED},
    Phase.STOPPED: set(),
}


class Lifecycle:
    """The current phase, and why (`reason`) and when (`since`, in time.monotonic()) it was entered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.phase = Phase.STARTING
        self.reason = ""
        self.since = time.monotonic()

    def advance(self, phase: Phase, reason: str = "") -> None:
        """Enters `phase`.  Raises ValueError if it cannot follow the current one."""
        with self._lock:
            if phase not in _NEXT[self.phase]:
                raise ValueError(f"the phase {phase.value} cannot follow {self.phase.value}")
            self.phase, self.reason, self.since = phase, reason, time.monotonic()
