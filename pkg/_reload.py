"""For development: the service in a child process, which is followed by another when a Python file has changed.

Each child is forked before anything of the application is imported, and so imports all of it anew.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

__all__ = ["serve_again"]

INTERVAL = 0.5  # seconds between two looks at the files
_SKIPPED = ("__pycache__", "node_modules")


def serve_again(serve: Callable[[], int]) -> int:
    """serve() in one child after the other, until SIGTERM or SIGINT; the exit code is the last child's.

    A child that fails, in an import say, has its successor with the next change, too; one that ends well has none.
    Returns in the children as well, what serve() returns there.
    """
    child = 0
    is_over = False

    def forward(number: int, _: FrameType | None) -> None:
        nonlocal is_over
        is_over = True
        if child:
            os.kill(child, number)

    former = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    code = 0
    while True:
        seen = _files()
        signal.pthread_sigmask(signal.SIG_BLOCK, former)  # until it is known whom to tell
        if is_over:
            return code
        child = os.fork()
        if child == 0:
            for number, handler in former.items():
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, former)
        if child == 0:
            return serve()
        changed, status = "", None
        while status is None:
            time.sleep(INTERVAL)
            if not (changed or is_over) and (changed := _difference(seen, _files())):
                _say(f"{changed} has changed: starting again")
                os.kill(child, signal.SIGINT)  # which drains without a delay
            status = _status(child)
        code, ended, child = status, child, 0  # nobody is told by that number from here on
        os.waitpid(ended, 0)
        if code == 0 and not changed:
            return code
        if not (changed or is_over):
            _say(f"ended with exit code {code}: waiting for a file to change")
        while not (changed or is_over):
            time.sleep(INTERVAL)
            changed = _difference(seen, _files())


def _status(child: int) -> int | None:
    """The exit code, as a shell has it, of a child that has ended; its number stays taken."""
    state = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if state is None:
        return None
    return state.si_status if state.si_code == os.CLD_EXITED else 128 + state.si_status


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
                    found[path] = state.st_mtime_ns, state.st_size
    return found


def _difference(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> str:
    """One of the files that have come, gone or changed; empty: there is none."""
    changed = dict(before.items() ^ after.items())
    return min(changed, default="").removeprefix("./")


def _say(text: str) -> None:
    sys.stderr.write(f"pkg: {text}\n")
    sys.stderr.flush()
