"""Keepalive: the clock of all WebSockets of an event loop: pings, what is overdue, and their end in the drain.

One timer for all of them.  It looks once a second at those that are due, which are the first of each queue.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from pkg._core import Request

__all__ = ["Keepalive", "Kept", "WebSocketRules"]

_log = logging.getLogger("pkg.asgi")

TICK = 1.0  # seconds
CLOSE_TIMEOUT = 5.0  # seconds in which a client has to answer a close frame
DRAIN_TICK = 0.05  # seconds
TELL_AGAIN = 60.0  # seconds


class WebSocketRules(NamedTuple):
    """What is the same for all WebSockets.

    `max_size`: bytes of a message, also of an unpacked one.  `ping_interval`, `ping_timeout`: seconds; 0: never.
    """

    max_size: int = 16 << 20
    compression: bool = True
    ping_interval: float = 20.0
    ping_timeout: float = 20.0


class Kept(Protocol):
    """A WebSocket that has been accepted."""

    def ping(self) -> None:
        """Sends a ping."""

    def check(self) -> bool:
        """Ends the connection if nothing has been heard since the ping; whether it goes on."""

    def give_up(self) -> None:
        """Ends the connection: the client has not answered the close frame in time."""

    def go_away(self) -> None:
        """Begins to close the WebSocket, because the server ends."""


class _Queue:
    """What is due after the same delay, so that the first that comes is the first that is due."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._due: dict[Kept, float] = {}

    def add(self, item: Kept, now: float) -> None:
        if self._delay > 0.0:
            self._due[item] = now + self._delay

    def __contains__(self, item: object) -> bool:
        return item in self._due

    def discard(self, item: Kept) -> None:
        self._due.pop(item, None)

    def due(self, now: float) -> Iterator[Kept]:
        while self._due:
            item, due = next(iter(self._due.items()))
            if due > now:
                return
            del self._due[item]
            yield item


class Keepalive:
    """Pings each WebSocket every `interval` seconds, and ends those that are silent for `timeout` seconds after it.

    0 for either: never.  For the thread of the event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, interval: float, timeout: float) -> None:
        self._loop = loop
        self._open: dict[Kept, None] = {}  # in the order in which they were accepted
        self._pings, self._pongs, self._closes = _Queue(interval), _Queue(timeout), _Queue(CLOSE_TIMEOUT)
        self._awaits_pongs = timeout > 0.0
        self._now = 0.0  # seconds, without those in which the event loop was blocked: no client is to blame for them
        self._looked = loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._drains_until: float | None = None
        self._told_of_room = -math.inf

    def __len__(self) -> int:
        return len(self._open)

    def add(self, item: Kept) -> None:
        """It has been accepted."""
        self._open[item] = None
        self._pings.add(item, self._now)
        if self._timer is None:
            self._looked = self._loop.time()
            self._timer = self._loop.call_later(TICK, self._look)

    def close(self, item: Kept) -> None:
        """A close frame has been sent to it."""
        self._pings.discard(item)
        self._pongs.discard(item)
        self._closes.add(item, self._now)

    def discard(self, item: Kept) -> None:
        """It has ended."""
        self._open.pop(item, None)
        for queue in (self._pings, self._pongs, self._closes):
            queue.discard(item)

    def tell_of_room(self, request: Request) -> None:
        """One of them is closed, as its message is one too many; logged once a minute."""
        now = self._loop.time()
        if now - self._told_of_room >= TELL_AGAIN:
            self._told_of_room = now
            text = "%s %s: closed with 1013: messages that have not arrived, or not been received, exceed buffer_size"
            _log.warning(text, request.method, request.target)

    def _look(self) -> None:
        now = self._loop.time()
        self._now += min(now - self._looked, 2 * TICK)
        self._looked = now
        # First, so that an error below does not end it.
        self._timer = self._loop.call_later(TICK, self._look) if self._open else None
        for item in self._pongs.due(self._now):
            if item.check() and item in self._open:
                self._pings.add(item, self._now)
        for item in self._pings.due(self._now):
            item.ping()
            if item in self._open:
                (self._pongs if self._awaits_pongs else self._pings).add(item, self._now)
        for item in self._closes.due(self._now):
            item.give_up()

    # -------------------------------------------------------------- the drain

    def drain(self, seconds: float) -> None:
        """Closes all of them in the course of `seconds`, so that their clients do not all come back at once."""
        self._drains_until = self._loop.time() + seconds
        self._close_some()

    def _close_some(self) -> None:
        assert self._drains_until is not None
        items = [item for item in self._open if item not in self._closes]
        left = max(0.0, self._drains_until - self._loop.time())
        pause = max(DRAIN_TICK, left / len(items)) if items else DRAIN_TICK  # one may still be accepted
        self._loop.call_later(pause, self._close_some)
        for item in items[: math.ceil(len(items) * pause / left) if left > pause else None]:
            item.go_away()
