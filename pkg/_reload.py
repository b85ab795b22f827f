"""For development: the service in a child process, which is followed by another when a Python file has changed.

Each child is forked before anything of the application is imported, and so imports all of it anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

from pkg.signals import draining

__all__ = ["serve_again"]

INTERVAL = 0.5  # seconds between two looks at the files
SHARE = 0.1  # of the time, at most, spent looking
PATIENCE = 5.0  # seconds for a child to end by itself: a stream need not
PR_SET_PDEATHSIG = 1  # prctl(2)
_SKIPPED = ("__pycache__", "node_modules")


def serve_again(serve: Callable[[], int]) -> int:
    """serve() in one child after the other, until a signal that drains; the exit code is the last child's.

    A child that fails, in an import say, has its successor with the next change, too; one that ends well has none.
    Returns in the children as well, what serve() returns there.
    """
    child = 0
    is_over = False

    def forward(number: int, _: FrameType | None) -> None:
        nonlocal is_over
        is_over = is_over or number != signal.SIGUSR1
        if child:
            os.kill(child, number)

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who has it ignored is not told how children end
    handlers = {number: signal.signal(number, forward) for number in (*draining(), signal.SIGUSR1)}
    handlers[signal.SIGUSR1] = signal.SIG_IGN  # in a child, until it has one of its own
    parent, code = os.getpid(), 0
    while True:
        begun = time.monotonic()
        seen = _files()
        pause = max(INTERVAL, (time.monotonic() - begun) / SHARE)
        signal.pthread_sigmask(signal.SIG_BLOCK, handlers)  # until it is known whom to tell
        if is_over:
            return code
        child = os.fork()
        if child == 0:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # however the parent ends
            if os.getppid() != parent:
                return 0
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)
        if child == 0:
            return serve()
        changed: list[str] = []
        status = None
        until = float("inf")
        while status is None:
            time.sleep(pause)
            if not (changed or is_over) and (changed := _changes(seen)):
                _say(f"{changed[0]} has changed; restarting")
                os.kill(child, signal.SIGINT)  # which drains without a delay
                until = time.monotonic() + PATIENCE
            if time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
            status = _status(child)
        code, ended, child = status, child, 0  # nobody is told by that number from here on
        os.waitpid(ended, 0)
        if code == 0 and not changed:
            return code
        if not (changed or is_over):
            _say(f"the service exited with code {code}; waiting for a file to change")
        while not (changed or is_over):
            time.sleep(pause)
            changed = _changes(seen)


def _status(child: int) -> int | None:
    """The exit code, as a shell has it, of a child that has ended; its number stays taken.

    Others are orphans that a container's first process is given.
    """
    while (state := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
        if state.si_pid == child:
            return state.si_status if state.si_code == os.CLD_EXITED else 128 + state.si_status
        os.waitpid(state.si_pid, 0)
    return None


def _files() -> dict[str, tuple[int, int]]:
    """The Python files below the current directory, each with what changes when it is written."""
    found = {}
    for folder, folders, names in os.walk("."):
        folders[:] = [
            name
            for name in folders
            if name[0] != "." and name not in _SKIPPED and not os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))
        ]
        for name in names:
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError):  # gone meanwhile
                    state = os.stat(path)
                    found[path.removeprefix("./")] = state.st_mtime_ns, state.st_size
    return found


def _changes(before: dict[str, tuple[int, int]]) -> list[str]:
    """The files that have come, gone or changed, without their byte code: Python would take it for that of a source of
    the same length and second."""
    changed = sorted(dict(before.items() ^ _files().items()))
    for path in changed:
        with contextlib.suppress(OSError):
            os.unlink(importlib.util.cache_from_source(path))
    return changed


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or nobody reads it
        sys.stderr.write(f"pkg: {text}\n")
        sys.stderr.flush()
