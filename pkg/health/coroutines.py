"""Runs checks that are coroutine functions, for the threads of the checks.

      ASGI      on the application's event loop, where its pools and clients belong; a blocked loop makes the check fail
      others    in an event loop of its own, new for each run

A thread waits for the timeout of its check, and hardly longer, whatever the event loop does.  A run that goes on, since
it does not let itself be cancelled, is not joined by another one.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

__all__ = ["Coroutines", "Gone", "Overran", "is_coroutine_function"]

CO_COROUTINE = 0x80  # as in inspect, whose import would take time
GRACE = 0.1  # seconds for the event loop to cancel a run that has taken too long


class Overran(Exception):
    """A check has taken longer than its timeout; the reason says why, if that is known."""


class Gone(Exception):
    """The event loop has ended, so the check says nothing."""


def is_coroutine_function(function: object) -> bool:
    """Also a partial, or an object that is called."""
    while isinstance(function, partial):
        function = function.func
    code = getattr(function, "__code__", None)
    if code is None and callable(function):
        code = getattr(type(function).__call__, "__code__", None)
    return code is not None and bool(code.co_flags & CO_COROUTINE)


class Coroutines:
    """Where coroutines run.  `why()` says why the event loop does not run them, or "".

    Until open() they wait, as the application has not started and may have no event loop.
    """

    def __init__(self) -> None:
        self._is_open = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.why: Callable[[], str] = lambda: ""
        self._runs: dict[str, _Run] = {}  # of each check, the last one

    def open(self, loop: asyncio.AbstractEventLoop | None = None, why: Callable[[], str] = lambda: "") -> None:
        """From now on they run on `loop`, or each in a loop of its own."""
        self._loop, self.why = loop, why
        self._is_open.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for open(), and returns whether it has been called."""
        return self._is_open.wait(timeout)

    def run(self, name: str, awaitable: Awaitable[Any], timeout: float) -> Any:
        """Returns what the coroutine of the check `name` does, or raises it.

        Raises Overran after `timeout` seconds, and Gone if the event loop has ended.
        """
        import asyncio  # takes 30 ms, which services without such a check need not spend

        if not self.wait(timeout):
            _close(awaitable)
            raise Overran("the application has not started")
        if self._loop is None:
            return asyncio.run(_within(awaitable, timeout))
        former = self._runs.get(name)
        if former is not None and not former.future.done():
            _close(awaitable)
            raise Overran(self.why() or "the run before this one has not ended")
        run = self._runs[name] = _Run(name, awaitable, timeout)
        try:
            self._loop.call_soon_threadsafe(run.begin)
            try:
                return run.future.result(timeout + GRACE)
            except TimeoutError:
                if run.future.done():
                    raise
                run.is_given_up = True
                self._loop.call_soon_threadsafe(run.cancel)
            raise Overran(self.why() or f"not finished within {timeout:g} s")
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            _close(awaitable)
            raise Gone from None


async def _within(awaitable: Awaitable[Any], timeout: float) -> Any:
    import asyncio

    scope = asyncio.timeout(timeout)
    try:
        async with scope:
            return await awaitable
    except TimeoutError:
        if scope.expired():
            raise Overran(f"not finished within {timeout:g} s") from None
        raise


def _close(awaitable: object) -> None:
    """Otherwise the interpreter warns that it was never awaited."""
    if hasattr(awaitable, "close"):
        awaitable.close()


class _Run:
    """One run on the event loop; `future` is done when it has ended there."""

    def __init__(self, name: str, awaitable: Awaitable[Any], timeout: float) -> None:
        from concurrent.futures import Future

        self.future: Future[Any] = Future()
        self.is_given_up = False
        self._name, self._awaitable, self._timeout = name, awaitable, timeout
        self._task: asyncio.Task[Any] | None = None

    def begin(self) -> None:
        import asyncio

        if self.is_given_up:
            _close(self._awaitable)
            self.future.set_exception(Overran())
            return
        self._task = asyncio.get_running_loop().create_task(
            _within(self._awaitable, self._timeout), name=f"check-{self._name}"
        )
        self._task.add_done_callback(self._end)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _end(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self.future.set_exception(RuntimeError("the check has been cancelled"))
        elif (error := task.exception()) is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(task.result())
