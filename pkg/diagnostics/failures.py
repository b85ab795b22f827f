"""Exceptions that have been logged lately, by kind and place, so that a page can say what fails without the log.

It keeps no text of theirs, which may contain secrets.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from types import TracebackType
from typing import NamedTuple

from pkg.diagnostics.stacks import Frame, place_of

__all__ = ["Failure", "Failures"]

LATELY = 60.0  # seconds
MOST = 1000  # that are remembered; there may have been more


class Failure(NamedTuple):
    """`at`: the application's line; "" if it has none in the traceback.  `times`: in the last LATELY seconds."""

    kind: str
    at: str
    times: int


class Failures:
    """Without a lock: note() is called while logging holds its own, also in signal handlers and in forked children."""

    def __init__(self) -> None:
        self._last: deque[tuple[float, str, str]] = deque(maxlen=MOST)

    def note(self, record: logging.LogRecord) -> None:
        """Remembers a record of level error or above that has an exception."""
        if record.levelno < logging.ERROR or not record.exc_info or record.exc_info[0] is None:
            return
        kind, _, trace = record.exc_info
        self._last.append((time.monotonic(), kind.__name__, str(place_of(_frames(trace)) or "")))

    def lately(self) -> list[Failure]:
        """The most frequent first."""
        since = time.monotonic() - LATELY
        found = Counter((kind, at) for when, kind, at in self._last.copy() if when >= since)  # copy() is one step
        return [Failure(kind, at, times) for (kind, at), times in found.most_common()]


def _frames(trace: TracebackType | None) -> list[Frame]:
    frames = []
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(Frame(code.co_filename, trace.tb_lineno, code.co_name))
        trace = trace.tb_next
    return frames
