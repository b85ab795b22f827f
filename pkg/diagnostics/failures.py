"""Exceptions that have been logged lately, by kind and place, so that a page can say what fails without the log.

It keeps no text of theirs, which may contain secrets.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from types import TracebackType
from typing import NamedTuple

from pkg.diagnostics.stacks import Frame, place_of

__all__ = ["Failure", "Failures"]

LATELY = 60.0  # seconds
MOST_KINDS = 64
MOST_TIMES = 1000  # of one kind; there may have been more


class Failure(NamedTuple):
    """`at`: the application's line; "" if it has none in the traceback.  `times`: in the last LATELY seconds."""

    kind: str
    at: str
    times: int


class Failures:
    """note() may be called by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times: dict[tuple[str, str], deque[float]] = {}

    def note(self, record: logging.LogRecord) -> None:
        """Counts a record of level error or above that has an exception."""
        if record.levelno < logging.ERROR or not record.exc_info or record.exc_info[0] is None:
            return
        kind, _, trace = record.exc_info
        at = place_of(_frames(trace))
        key = kind.__name__, str(at or "")
        with self._lock:
            if key not in self._times and len(self._times) >= MOST_KINDS:
                oldest = min(self._times, key=lambda known: self._times[known][-1])
                del self._times[oldest]
            self._times.setdefault(key, deque(maxlen=MOST_TIMES)).append(time.monotonic())

    def lately(self) -> list[Failure]:
        """The most frequent first."""
        since = time.monotonic() - LATELY
        with self._lock:
            found = [(key, sum(at >= since for at in times)) for key, times in self._times.items()]
        return [Failure(*key, times) for key, times in sorted(found, key=lambda item: -item[1]) if times]


def _frames(trace: TracebackType | None) -> list[Frame]:
    frames = []
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(Frame(code.co_filename, trace.tb_lineno, code.co_name))
        trace = trace.tb_next
    return frames
