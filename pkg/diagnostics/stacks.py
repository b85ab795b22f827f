"""The stacks of all threads, for the log, the admin pages and the profiler.

They contain files, lines and functions, never the value of a variable.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import sys
import threading
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import NamedTuple

from pkg.diagnostics import procfs

__all__ = ["Frame", "Stack", "capture", "grouped", "is_library", "is_own", "place", "place_of", "text", "walk"]

MAX_DEPTH = 128  # innermost frames of a stack that are kept


class Frame(NamedTuple):
    """One call and its current line."""

    file: str
    line: int
    function: str

    @property
    def source(self) -> str:
        """The line of code, if its file can be read (an image may lack it)."""
        return linecache.getline(self.file, self.line).strip()

    def __str__(self) -> str:
        return f"{short(self.file)}:{self.line} in {self.function}"


class Stack(NamedTuple):
    """One thread: its frames from the outermost to the innermost, and its state in the kernel."""

    name: str
    native_id: int
    daemon: bool
    state: str  # running, sleeping, blocked on a disk, ...; "" if unknown
    cpu: float  # seconds used so far
    frames: tuple[Frame, ...]


_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARY = os.path.dirname(os.__file__) + os.sep  # sysconfig knows it too, but takes 200 kB
_OTHERS = ("site-packages" + os.sep, "dist-packages" + os.sep)
_BEGIN = ("_bootstrap", "_bootstrap_inner", "run", "_run_module_as_main", "_run_code")
_BEGINNERS = (threading.__file__, "<frozen runpy>")
_STATES = {"R": "running", "S": "sleeping", "D": "blocked in the kernel", "T": "stopped", "t": "traced", "Z": "ended"}


def short(file: str) -> str:
    """The file's path without the prefix of its folder (packages, library, current directory)."""
    for mark in _OTHERS:
        if mark in file:
            return file.rpartition(mark)[2]
    for prefix in (os.path.dirname(_PACKAGE.rstrip(os.sep)) + os.sep, _LIBRARY):
        if file.startswith(prefix):
            return file[len(prefix) :]
    with contextlib.suppress(OSError):  # the folder may have been deleted
        return file.removeprefix(os.getcwd() + os.sep)
    return file


def is_own(file: str) -> bool:
    """Whether a file belongs to this package, the interpreter or the pool, and not to the application."""
    if file.startswith((_PACKAGE, "<frozen")) or "psycopg_pool" + os.sep in file:
        return True
    return file.startswith(_LIBRARY) and not any(mark in file for mark in _OTHERS)


def is_library(file: str) -> bool:
    """Whether a file belongs to an installed package."""
    return any(mark in file for mark in _OTHERS)


def walk(frame: FrameType | None) -> tuple[Frame, ...]:
    """The calls of a stack, outermost first."""
    frames: list[Frame] = []
    while frame is not None and len(frames) < MAX_DEPTH:
        code = frame.f_code
        frames.append(Frame(code.co_filename, frame.f_lineno or code.co_firstlineno, code.co_name))
        frame = frame.f_back
    # The frames that start a thread or a module are always the same and carry no information.
    while len(frames) > 1 and frames[-1].function in _BEGIN and frames[-1].file in _BEGINNERS:
        frames.pop()
    frames.reverse()
    return tuple(frames)


def _kernel(native_id: int) -> tuple[str, float]:
    try:
        fields = procfs.stat(f"self/task/{native_id}")
    except OSError:  # the thread has ended, or no descriptor is free
        return "", 0.0
    letter = fields[0].decode()
    return _STATES.get(letter, letter), procfs.cpu_seconds(fields)


def capture() -> list[Stack]:
    """The stacks of all threads of this interpreter except the calling one, sorted by name."""
    known = {thread.ident: thread for thread in threading.enumerate()}
    stacks = []
    for ident, frame in sys._current_frames().items():
        if ident == threading.get_ident():
            continue
        thread = known.get(ident)
        native_id = (thread.native_id if thread is not None else None) or 0
        state, cpu = _kernel(native_id) if native_id else ("", 0.0)
        name = thread.name if thread is not None else f"thread {ident:#x}"
        stacks.append(Stack(name, native_id, thread is None or thread.daemon, state, cpu, walk(frame)))
    return sorted(stacks, key=lambda stack: _order(stack.name))


def _order(name: str) -> tuple[str, int, str]:
    """Sorts `worker-10` after `worker-9`."""
    stem = name.rstrip("0123456789")
    number = name[len(stem) :]
    return stem, len(number), number


def place(stack: Stack) -> Frame | None:
    """Where the application is in a stack: the innermost frame of its own code, otherwise of a package it uses."""
    return place_of(stack.frames)


def place_of(frames: Sequence[Frame]) -> Frame | None:
    """The same for frames, the innermost last."""
    foreign = [frame for frame in reversed(frames) if not is_own(frame.file)]
    own = (frame for frame in foreign if not any(mark in frame.file for mark in _OTHERS))
    return next(own, foreign[0] if foreign else None)


def grouped(stacks: Iterable[Stack]) -> list[tuple[list[Stack], tuple[Frame, ...]]]:
    """Threads with the same stack, grouped, the largest group first."""
    groups: dict[tuple[Frame, ...], list[Stack]] = {}
    for stack in stacks:
        groups.setdefault(stack.frames, []).append(stack)
    return [(members, frames) for frames, members in sorted(groups.items(), key=lambda group: -len(group[1]))]


def text(frames: Iterable[Frame], indent: str = "    ") -> str:
    """Frames as lines of text, the innermost last, as in a traceback."""
    lines = []
    for frame in frames:
        lines.append(f"{indent}{frame}")
        if source := frame.source:
            lines.append(f"{indent}    {source}")
    return "\n".join(lines)
