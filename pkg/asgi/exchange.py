"""HTTPExchange: `receive` and `send` of one request.

`_core.Exchange` knows the messages and checks them; this waits where it must, and holds clients to their pace.
"""

from __future__ import annotations

from typing import Any

from pkg import _core

__all__ = ["HTTPExchange"]


class HTTPExchange(_core.Exchange):
    """One request of an event loop, which calls wake() when the front says that the connection can go on."""

    __slots__ = ()

    async def receive(self) -> dict[str, Any]:
        """The next message.  After the body it waits until the client leaves, or the response is complete."""
        while (message := self.next_message()) is None:
            self.readers += 1
            try:
                await self._wait()
            finally:
                self.readers -= 1
        return message

    async def send(self, message: dict[str, Any]) -> None:
        """Sends a message; waits until the client, or its buffer, has taken all of it.

        Raises ClientDisconnected, an OSError, if the client does not take it any more, and ResponseError for what HTTP
        does not allow; nothing of that message has been sent then.
        """
        while (is_left := self.put(message)) is None:  # another task is sending
            await self._drain()
        if is_left:
            await self._drain()

    async def _drain(self) -> None:
        self.written_for, self.mark = 0.0, self.taken
        while not self.flush():
            await self._wait()

    async def _wait(self) -> None:
        host = self.tasks.host
        future = host.loop.create_future()
        self.waiting.append(future)
        if self.is_reading or self.is_full:
            host.watch(self)
        await future

    def keep_pace(self, seconds: float, write_timeout: float) -> bool:
        """Counts `seconds` of waiting for the client, and gives it up if it does not keep up.

        Whether it still has to be watched.
        """
        if self.is_finished:
            return False
        is_watched = False
        if self.is_reading and self.readers:
            is_watched = True
            if not self.wait_on(seconds):
                self.wake()
                return False
        if self.is_full:
            is_watched = True
            self.written_for += seconds
            if self.written_for >= write_timeout:
                if not self.send_on(self.taken - self.mark):
                    self.wake()
                    return False
                self.written_for, self.mark = 0.0, self.taken
        return is_watched
