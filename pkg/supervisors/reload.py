"""For development: runs the service in a child process, and starts a new one when a Python file has changed.

Each child is forked before the application is imported, so it imports all of it again.  Inherited sockets stay open in
this process, for the next child; connections that arrive meanwhile wait for it.
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

from pkg.service.signals import draining
from pkg.supervisors.systemd import hand_on

__all__ = ["serve_again"]

INTERVAL = 0.5  # seconds between two scans of the files
SHARE = 0.1  # maximum share of the time spent scanning
PATIENCE = 5.0  # seconds for a child to end by itself; with an endless stream it would not
PR_SET_PDEATHSIG = 1  # prctl(2)
_SKIPPED = ("__pycache__", "node_modules")


def serve_again(serve: Callable[[], int]) -> int:
    """Runs serve() in one child after another until a signal starts the drain.  Returns the last child's exit code.

    After a child that fails, for example in an import, the next change also starts a new one; after a child that ends
    successfully it does not.  In a child this function returns the result of serve().
    """
    child = 0
    is_over = False

    def forward(number: int, _: FrameType | None) -> None:
        nonlocal is_over
        is_over = is_over or number != signal.SIGUSR1
        if child:
            os.kill(child, number)

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # with SIG_IGN the kernel would not report how children end
    handlers = {number: signal.signal(number, forward) for number in (*draining(), signal.SIGUSR1)}
    handlers[signal.SIGUSR1] = signal.SIG_IGN  # in a child, until it has its own handler
    parent, code = os.getpid(), 0
    while True:
        begun = time.monotonic()
        seen = _files()
        pause = max(INTERVAL, (time.monotonic() - begun) / SHARE)
        signal.pthread_sigmask(signal.SIG_BLOCK, handlers)  # until the child's process id is known
        if is_over:
            return code
        child = os.fork()
        if child == 0:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # even if the parent is killed
            if os.getppid() != parent:
                return 0
            hand_on(parent)
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
                os.kill(child, signal.SIGINT)  # drains without delay
                until = time.monotonic() + PATIENCE
            if time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
            status = _status(child)
        code, ended, child = status, child, 0  # from now on no signal goes to this process id
        os.waitpid(ended, 0)
        if code == 0 and not changed:
            return code
        if not (changed or is_over):
            _say(f"the service exited with code {code}; waiting for a file to change")
        while not (changed or is_over):
            time.sleep(pause)
            changed = _changes(seen)


def _status(child: int) -> int | None:
    """The exit code of the child, as a shell reports it, or None while it runs.  It is not reaped yet.

    Other children are orphans, which process 1 of a container has to reap.
    """
    while (state := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
        if state.si_pid == child:
            return state.si_status if state.si_code == os.CLD_EXITED else 128 + state.si_status
        os.waitpid(state.si_pid, 0)
    return None


def _files() -> dict[str, tuple[int, int]]:
    """The Python files below the current directory, each with modification time and size."""
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
                with contextlib.suppress(OSError):  # deleted meanwhile
                    state = os.stat(path)
                    found[path.removeprefix("./")] = state.st_mtime_ns, state.st_size
    return found


def _changes(before: dict[str, tuple[int, int]]) -> list[str]:
    """The files that were added, removed or changed.  Deletes their byte code, which Python would still use for a
    source of the same size and second."""
    changed = sorted(dict(before.items() ^ _files().items()))
    for path in changed:
        with contextlib.suppress(OSError):
            os.unlink(importlib.util.cache_from_source(path))
    return changed


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr is closed or has no reader
        sys.stderr.write(f"pkg: {text}\n")
        sys.stderr.flush()
