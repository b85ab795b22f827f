"""A task's place in the pool's queue, among those of threads: psycopg_pool's WaitingClient with a future.

It neither takes nor returns connections.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from threading import get_ident
from typing import Generic, TypeVar

from psycopg_pool import PoolTimeout
from psycopg_pool.pool import WaitingClient

__all__ = ["WaitingTask"]

Conn = TypeVar("Conn")


class WaitingTask(WaitingClient[Conn], Generic[Conn]):  # type: ignore[type-var]
    """set() and fail() may be called from any thread; everything else in that of the event loop."""

    __slots__ = ("_future", "_loop", "_thread")

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self._future: asyncio.Future[None] = self._loop.create_future()

    async def result(self, timeout: float) -> Conn:
        """The connection.  Raises PoolTimeout after `timeout` seconds, and what fail() has got."""
        timer = self._loop.call_later(timeout, self.fail, PoolTimeout("no connection has become free"))
        try:
            await self._future
        finally:
            timer.cancel()
        error = self.error
        if error is not None:
            raise type(error)(*error.args)  # its own traceback would make a cycle with this object
        assert self.conn is not None
        return self.conn

    def abandon(self) -> Conn | None:
        """From now on nothing is accepted.  Returns a connection that has been accepted before, which must go on to the
        next one."""
        with self._cond:
            conn, self.conn = self.conn, None
            self.error = self.error or PoolTimeout("nobody waits any more")
            return conn

    def soon(self, function: Callable[..., object], *arguments: object) -> None:
        """Lets the event loop call the function; it is safe wherever the garbage collector runs."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function, *arguments)

    def set(self, conn: Conn) -> bool:
        return super().set(conn) and self._wake()

    def fail(self, error: Exception) -> bool:
        return super().fail(error) and self._wake()

    def _wake(self) -> bool:
        """Returns whether there is an event loop that can be woken up."""
        try:
            if get_ident() == self._thread:  # another task gives it back: no need to wake the selector
                self._wake_here()
            else:
                self._loop.call_soon_threadsafe(self._wake_here)
        except RuntimeError:  # it is closed
            self.abandon()
            return False
        return True

    def _wake_here(self) -> None:
        if not self._future.done():
            self._future.set_result(None)
