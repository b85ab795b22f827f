"""What an exchange does where it has to wait; `_core.Exchange` knows the messages, and waits for nothing."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pkg._core import Exchange

__all__ = ["await_it", "receive", "send"]


async def await_it(awaitable: Awaitable[object]) -> None:
    """For an application that is no coroutine function, and returns something else that can be awaited."""
    await awaitable


async def receive(exchange: Exchange) -> dict[str, Any]:
    """The next message."""
    while (message := exchange.next_message()) is None:
        exchange.readers += 1
        try:
            await _wait(exchange)
        finally:
            exchange.readers -= 1
    return message


async def send(exchange: Exchange, message: dict[str, Any] | None) -> None:
    """Waits until all has been sent, and then sends `message`, if that could not yet be taken."""
    await _drain(exchange)
    if message is not None:
        while (is_left := exchange.put(message)) is None:  # another task was faster
            await _drain(exchange)
        if is_left:
            await _drain(exchange)


async def _drain(exchange: Exchange) -> None:
    exchange.begin_period()
    while not exchange.flush():
        await _wait(exchange)


async def _wait(exchange: Exchange) -> None:
    host = exchange.tasks.host
    future = host.loop.create_future()
    exchange.waiting.append(future)
    if exchange.is_reading or exchange.is_full:
        host.watch(exchange)
    try:
        await future
    except BaseException:  # cancelled, as by whoever asks again and again whether the client has left
        if future in exchange.waiting:
            exchange.waiting.remove(future)
        raise
