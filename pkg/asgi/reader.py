"""FrontReader: for event loops with a wait of their own, as uvloop: a descriptor says that the front has something.

It serves nothing itself: what the front has is given to whoever has attached it.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pkg._core import Front

__all__ = ["FrontReader"]


class FrontReader:
    """For any event loop that has add_reader().  `new_loop` makes it."""

    def __init__(self, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.new_loop = new_loop
        self._loop: asyncio.AbstractEventLoop
        self._front: Front
        self._serve: Callable[[int], object]
        self._thread = 0

    def attach(self, loop: asyncio.AbstractEventLoop, front: Front, serve: Callable[[int], object]) -> None:
        """Calls serve(news) from now on, a set of `News`, when the front has requests or connections can go on.

        For the thread of the event loop.  `serve` must not raise.
        """
        fd = front.serve_by_reader()
        self._loop, self._front, self._serve = loop, front, serve
        self._thread = threading.get_ident()
        in_child = weakref.WeakMethod(self._in_child)  # what is registered cannot be taken back
        os.register_at_fork(after_in_child=lambda: (method := in_child()) is not None and method())
        loop.add_reader(fd, self._look)
        self._settle()

    def _in_child(self) -> None:
        """Called in a process that the application has forked: ends it when it goes on in this event loop."""
        if threading.get_ident() == self._thread:
            from pkg.child import end_in_loop

            self._loop.call_soon(end_in_loop)

    def _look(self) -> None:
        if news := self._front.look():
            self._serve(news)
            self._loop.call_soon(self._settle)

    def _settle(self) -> None:
        """What has come while tasks ran, for which nobody has woken this thread."""
        if news := self._front.settle():
            self._serve(news)
            self._loop.call_soon(self._settle)
