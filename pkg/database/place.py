"""Where the application took a connection, kept in two words: its code, and the instruction in it.

It keeps no frame and no traceback, which would keep the application's objects.
"""

from __future__ import annotations

import os
from types import CodeType, FrameType

from pkg._core import first_outside

__all__ = ["own_files", "taker", "text_of"]

MAX_FILES = 4096  # names that are remembered; code that is made at run time has names without end

# Python's own files, and ours.
_ROOTS = tuple(
    os.path.join(folder, "") for folder in (os.path.dirname(os.__file__), os.path.dirname(os.path.dirname(__file__)))
)
own_files: set[str] = set()  # known to belong to the application
_other_files: set[str] = set()  # known to belong to others; an ORM's call has a dozen frames of them


def _is_own(path: str) -> bool:
    """Whether the file of this name belongs to the application, and not to Python, an installed package or us."""
    own = not (path.startswith(("<", *_ROOTS)) or "/site-packages/" in path or "/dist-packages/" in path)
    known = own_files if own else _other_files
    if len(known) < MAX_FILES:
        known.add(path)
    return own


def taker(frame: FrameType) -> FrameType:
    """The innermost frame of the application's own code, from this one outwards; the given one if there is none."""
    found = first_outside(frame, _other_files)
    while found is not None:
        path = found.f_code.co_filename
        if path in own_files or _is_own(path):
            return found
        back = found.f_back
        found = back and first_outside(back, _other_files)
    return frame


def text_of(code: CodeType, instruction: int) -> str:
    """As in "shop.py:41 in titles"; the path is short if it is below the working directory."""
    line = next((line for start, end, line in code.co_lines() if start <= instruction < end and line), 0)
    path = code.co_filename
    here = os.path.join(os.path.abspath(os.curdir), "")
    return f"{path.removeprefix(here)}:{line or code.co_firstlineno} in {code.co_qualname}"
