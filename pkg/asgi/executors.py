"""Executors: the threads beside the event loop, of run_in_executor() and of anyio; how many, and who waits for one.

They run what the application gives them; the front and the tasks do not use them.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

__all__ = ["Executors"]

Stats = tuple[str, float, int, int]  # name, maximum number of threads, busy ones, calls that wait for one

LIMIT_OF_ANYIO = 40  # its default (anyio: _backends/_asyncio.py, current_default_thread_limiter)
LOOK_EVERY = 1.0  # seconds; how soon anyio is found that is imported while requests are served


class _Counted(ThreadPoolExecutor):
    """Knows how many of its threads are busy."""

    def __init__(self, threads: int | None) -> None:
        super().__init__(threads, thread_name_prefix="asyncio")
        self._busy: set[int] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(self._call, fn, args, kwargs)

    def _call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        me = threading.get_ident()
        self._busy.add(me)
        try:
            return fn(*args, **kwargs)
        finally:
            self._busy.discard(me)

    def stats(self) -> Stats:
        return ("asyncio", self._max_workers, len(self._busy), self._work_queue.qsize())


class Executors:
    """`threads`: how many each of the two has; None: as many as it has of its own accord, 40 for anyio, and for
    run_in_executor() those of ThreadPoolExecutor, min(32, CPUs + 4)."""

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asyncio: _Counted | None = None
        self._anyio: Any = None  # its CapacityLimiter
        self._adopts: asyncio.Task[None] | None = None

    def open(self) -> None:
        """For a task of the event loop, before it runs the application."""
        self._loop = asyncio.get_running_loop()
        self._asyncio = _Counted(self._threads)
        self._loop.set_default_executor(self._asyncio)
        self._look()

    def _look(self) -> None:
        """anyio keeps its limit with the event loop, for which anyio must have been imported."""
        self.adopt()
        if self._anyio is None and self._threads is not None:
            assert self._loop is not None
            self._loop.call_later(LOOK_EVERY, self._look)

    def adopt(self) -> None:
        """Looks for anyio, in the thread of the event loop."""
        if self._anyio is None and self._adopts is None and "anyio" in sys.modules:
            assert self._loop is not None
            self._adopts = self._loop.create_task(
                self._adopt(), name="threads of anyio"
            )  # its limit is found in a task only

    async def _adopt(self) -> None:
        from anyio import to_thread

        limiter = to_thread.current_default_thread_limiter()
        if self._threads is not None and limiter.total_tokens == LIMIT_OF_ANYIO:  # the application may have set its own
            limiter.total_tokens = self._threads
        self._anyio = limiter

    def stats(self) -> list[Stats]:
        """One for each of the two that is there.  From any thread."""
        if self._asyncio is None or self._loop is None:
            return []
        found = [self._asyncio.stats()]
        if (limiter := self._anyio) is not None:
            waits = limiter.statistics()
            found.append(("anyio", waits.total_tokens, waits.borrowed_tokens, waits.tasks_waiting))
        elif "anyio" in sys.modules and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.adopt)  # to be seen the next time
        return found
