"""Process 1 of a container: the service in a child, whose signals it passes on, and every orphan reaped.

Orphans are given to process 1, which has to reap them, or they fill the table of processes.  The service cannot do that
itself: to the kernel an orphan is a child like one that the application has started, whose exit code the application
will ask for (subprocess).  So a process in front does it, which starts nothing but the service.

It is a fork, no second interpreter: that costs no start, and it gives its memory back (ext/init.h).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

__all__ = ["hold_signals", "serve_in_child"]


def hold_signals() -> None:
    """Keeps signals until there is somebody to pass them on to.  Process 1 does not get those it has no handler for."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def serve_in_child() -> None:
    """Forks, and returns in the child, with no signal blocked.  The parent ends with the child's exit code.

    Returns in this process, having done nothing else, where it has other threads, which no child would have (a program
    has called the command line), or cannot fork.
    """
    from pkg import _core  # before the fork: both want it

    child = 0
    if _threads() == 1:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who has it ignored is not told how children end
        try:
            child = os.fork()
        except OSError as error:
            _say(f"process 1 cannot fork a child process to serve in ({error.strerror}); orphans will not be reaped")
    if child:
        _core.watch_over(child)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 1


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or nobody reads it
        sys.stderr.write(f"pkg: {text}\n")
        sys.stderr.flush()
