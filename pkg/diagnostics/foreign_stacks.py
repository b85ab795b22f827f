"""The stacks of another process, which may be stuck: its signal handler, in C, writes them into a pipe.

Neither its interpreter lock nor its event loop is needed for that.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import os
import select
import signal
import threading
import time

from pkg.logs.output import LAST_WORDS_SIZE

__all__ = ["SIGNAL", "ForeignStacks", "write_to"]

SIGNAL = signal.SIGRTMAX  # to be ignored until write_to() has been called; no library is known to use it
BEGIN = 0.5  # seconds for the other process to begin
PAUSE = 0.05  # seconds after which nothing more is expected
LONGEST = 1.0  # seconds for all of them


def write_to(descriptor: int) -> None:
    """From now on this process writes its stacks there whenever SIGNAL comes."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, LAST_WORDS_SIZE)
    faulthandler.register(SIGNAL, descriptor, all_threads=True)


class ForeignStacks:
    """The reader's end.  `writing`: for the other process, which never waits for the reader; to be closed here then."""

    def __init__(self) -> None:
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._reading, self.writing = os.fdopen(reading, "rb", 0), os.fdopen(writing, "wb", 0)
        self._lock = threading.Lock()

    def take(self, pidfd: int) -> str:
        """Text for people; "" if the process does not write any."""
        with self._lock, contextlib.suppress(OSError):
            if self._reading.closed:
                return ""
            self._reading.read(LAST_WORDS_SIZE)  # what came too late
            poll = select.poll()
            poll.register(self._reading, select.POLLIN)
            signal.pidfd_send_signal(pidfd, SIGNAL)
            end, found = time.monotonic() + LONGEST, b""
            while time.monotonic() < end and poll.poll((PAUSE if found else BEGIN) * 1000):
                if not (part := self._reading.read(65536)):
                    break
                found += part
            return found.decode("utf-8", "replace")
        return ""

    def close(self) -> None:
        """Before the pidfd is closed."""
        with self._lock:
            self._reading.close()
