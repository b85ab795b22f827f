"""HTTPExchange: `receive` and `send` of one request.

`_core.Exchange` knows the messages and checks them; this waits where it must, and holds clients to their pace.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from pkg import _core

__all__ = ["HTTPExchange"]


class Host(Protocol):
    """The event loop that serves the request."""

    loop: asyncio.AbstractEventLoop

    def watch(self, exchange: HTTPExchange) -> None:
        """The client is waited for from now on, and held to its pace with keep_pace()."""

    def on_end(self, exchange: HTTPExchange) -> None:
        """The response is complete."""


class HTTPExchange(_core.Exchange):
    """One request of an event loop, which calls wake() when the front says that the connection can go on."""

    __slots__ = ("_host", "_mark", "_readers", "_waiting", "_written_for", "task")

    def __init__(self, request: _core.Request, host: Host) -> None:
        self._host = host
        self._waiting: list[asyncio.Future[None]] = []
        self._readers = 0  # how many tasks wait in receive()
        self._written_for = 0.0  # seconds that the client has had to take what is left of a response
        self._mark = 0  # `taken` when that time began
        self.task: asyncio.Task[None] | None = None  # asyncio itself only has a weak reference

    async def receive(self) -> dict[str, Any]:
        """The next message.  After the body it waits until the client leaves, or the response is complete."""
        while (message := self.next_message()) is None:
            self._readers += 1
            try:
                await self._wait()
            finally:
                self._readers -= 1
        return message

    async def send(self, message: dict[str, Any]) -> None:
        """Sends a message; waits until the client, or its buffer, has taken all of it.

        Raises ClientDisconnected, an OSError, if the client does not take it any more, and ResponseError for what HTTP
        does not allow; nothing of that message has been sent then.
        """
        if self.is_full:  # another task is sending
            await self._drain()
        self.put(message)
        if self.is_full:
            await self._drain()
        if self.has_ended:
            self._host.on_end(self)
            self._wake_readers()

    async def _drain(self) -> None:
        self._written_for, self._mark = 0.0, self.taken
        while not self.flush():
            await self._wait()

    async def _wait(self) -> None:
        future = self._host.loop.create_future()
        self._waiting.append(future)
        if self.is_reading or self.is_full:
            self._host.watch(self)
        await future

    def wake(self) -> None:
        """Lets all that wait try again."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def _wake_readers(self) -> None:
        """With the end of a response there is nothing left to receive."""
        if self._waiting:
            self.wake()

    def keep_pace(self, seconds: float, write_timeout: float) -> bool:
        """Counts `seconds` of waiting for the client, and gives it up if it does not keep up.

        Whether it still has to be watched.
        """
        if self.is_finished:
            return False
        is_watched = False
        if self.is_reading and self._readers:
            is_watched = True
            if not self.wait_on(seconds):
                self.wake()
                return False
        if self.is_full:
            is_watched = True
            self._written_for += seconds
            if self._written_for >= write_timeout:
                if not self.send_on(self.taken - self._mark):
                    self.wake()
                    return False
                self._written_for, self._mark = 0.0, self.taken
        return is_watched
