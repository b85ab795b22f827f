"""Where memory was allocated: the totals of tracemalloc by line of code, while tracing is on.

It is not a heap dump: it shows how much memory was allocated where, not its content.
"""

from __future__ import annotations

import gc
import threading
from typing import Any

from pkg.diagnostics.metrics import process

__all__ = ["MAX_SECONDS", "Memory"]

MAX_SECONDS = 600.0
MAX_LINES = 50


class Memory:
    """Turns tracing on for a while, and reports."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def start(self, seconds: float) -> None:
        """Traces allocations for `seconds` from now on, which makes each of them two to four times slower."""
        import tracemalloc

        with self._lock:
            if self._timer is None and tracemalloc.is_tracing():
                return  # tracing was turned on permanently (PYTHONTRACEMALLOC)
            timer = threading.Timer(seconds, self.stop)
            timer.daemon = True
            timer.start()  # started first: if there is no thread for it, nothing would end the tracing
            if self._timer is not None:
                self._timer.cancel()
            self._timer = timer
            tracemalloc.start()

    def stop(self) -> None:
        """Ends the tracing that `start` began."""
        with self._lock:
            if self._timer is not None:
                import tracemalloc

                self._timer.cancel()
                self._timer = None
                tracemalloc.stop()

    def report(self) -> dict[str, Any]:
        """Resident memory, counts of the garbage collector and, while tracing, the lines that have allocated most."""
        import tracemalloc

        from pkg.diagnostics.stacks import short

        document: dict[str, Any] = {
            "resident_memory_bytes": process().get("resident_memory_bytes"),
            "gc": {"enabled": gc.isenabled(), "counts": gc.get_count(), "objects": len(gc.get_objects())},
            "tracing": tracemalloc.is_tracing(),
        }
        if tracemalloc.is_tracing():
            with self._lock:  # a snapshot takes long, so one at a time
                current, peak = tracemalloc.get_traced_memory()
                ignored = [tracemalloc.Filter(False, tracemalloc.__file__), tracemalloc.Filter(False, __file__)]
                statistics = tracemalloc.take_snapshot().filter_traces(ignored).statistics("lineno")
            document |= {
                "traced_bytes": current,
                "peak_bytes": peak,
                "lines": [
                    {
                        "file": short(statistic.traceback[0].filename),
                        "line": statistic.traceback[0].lineno,
                        "size": statistic.size,
                        "count": statistic.count,
                    }
                    for statistic in statistics[:MAX_LINES]
                ],
            }
        return document
