"""The place in the application that took a connection."""

from __future__ import annotations

import sys
from types import FrameType

import pytest

from pkg._core import first_outside
from pkg.database.place import taker, text_of


def called_by(depth: int) -> FrameType:
    return sys._getframe(depth)


def test_it_is_the_innermost_frame_of_another_file() -> None:
    inner = called_by(0)
    found = first_outside(inner, {__file__})
    assert found is not None and found.f_code.co_filename != __file__
    assert first_outside(inner, set()) is inner
    frames, frame = set[str](), inner
    while frame is not None:
        frames.add(frame.f_code.co_filename)
        frame = frame.f_back  # type: ignore[assignment]
    assert first_outside(inner, frames) is None


def test_it_is_no_frame() -> None:
    with pytest.raises(TypeError, match="not a frame"):
        first_outside("a frame", set())  # type: ignore[arg-type]


def test_frames_of_libraries_are_passed() -> None:
    """A function that a package calls: the application's own line is the one in it, and behind it there is another."""
    frame = eval("called_by(0)", {"called_by": lambda _: sys._getframe(1)})
    assert frame.f_code.co_filename == "<string>"
    found = taker(frame)
    assert text_of(found.f_code, found.f_lasti).endswith("in test_frames_of_libraries_are_passed")
