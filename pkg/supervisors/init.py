"""Process 1 of a container: runs the service in a child process, forwards signals to it, and reaps orphans.

The kernel gives orphans to process 1, which must reap them before they fill the process table.  The service cannot do
so itself: to the kernel an orphan is a child like those that the application has started, whose exit codes the
application will ask for (subprocess).  So a separate process does it, whose only own child is the service.

It is a fork and not a second interpreter: it needs no start of its own, and releases its memory (ext/front/init.h).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from pkg.supervisors.systemd import hand_on

__all__ = ["hold_signals", "serve_in_child"]


def hold_signals() -> None:
    """Blocks signals until there is a child to forward them to; process 1 ignores signals without a handler."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def serve_in_child() -> None:
    """Forks and returns in the child, with no signal blocked.  The parent exits with the child's exit code.

    If this process has other threads, which the child would lack (a program has called the command line), or cannot
    fork, it returns in this process and does nothing else.
    """
    from pkg import _core  # before the fork, as both processes need it

    child, parent = 0, os.getpid()
    if _threads() == 1:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # with SIG_IGN the kernel would not report how children end
        try:
            child = os.fork()
        except OSError as error:
            _say(f"process 1 cannot fork a child process to serve in ({error.strerror}); orphans will not be reaped")
    if child:
        _close_descriptors()
        _core.watch_over(child)
    hand_on(parent)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _close_descriptors() -> None:
    """Closes what this process has inherited and only its child needs.

    If process 1 kept an inherited socket that listens, the kernel would still accept connections for it after the
    child has closed it in the drain.  Nobody would read them, and their clients would not try another server.
    """
    with contextlib.suppress(OSError):
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            if descriptor > 2:
                with contextlib.suppress(OSError):  # the one that has listed them
                    os.close(descriptor)


def _threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 1


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr is closed or has no reader
        sys.stderr.write(f"pkg: {text}\n")
        sys.stderr.flush()
