"""FrontSelector: asyncio waits for the front and for its own descriptors in one system call, without the lock.

It serves nothing itself: what the front has is given to whoever has attached it.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import TYPE_CHECKING

from pkg._core import News

if TYPE_CHECKING:
    from pkg._core import Front

__all__ = ["FrontSelector"]

OTHERS = News.OTHERS
FOR_US = News.REQUESTS | News.MOVED | News.LATE


class FrontSelector(selectors.EpollSelector):
    """The selector of an asyncio.SelectorEventLoop.

    From attach() on it waits in Front.wait(), where the thread leads the front while it is idle.
    """

    def __init__(self) -> None:
        super().__init__()
        self._front: Front | None = None
        self._serve: Callable[[int], object] | None = None

    def new_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(self)

    def attach(self, loop: asyncio.AbstractEventLoop, front: Front, serve: Callable[[int], object]) -> None:
        """Calls serve(news) from now on, a set of `News`, when the front has requests or connections can go on.

        For the thread of the event loop.  `serve` must not raise.
        """
        front.serve_by_eventloop(self.fileno())
        self._serve = serve
        self._front = front

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        front = self._front
        if front is None:
            return super().select(timeout)
        if front.is_foreign:
            from pkg.child import end_in_loop

            end_in_loop()
        news = front.wait(-1.0 if timeout is None else timeout if timeout > 0.0 else 0.0)
        if news & FOR_US:
            assert self._serve is not None
            self._serve(news)
        return super().select(0) if news & OTHERS else []
