"""An ASGI application each of whose paths does what no application should."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import json
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

from pkg import _core

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Coroutine[Any, Any, None]]

START: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
PAGES: dict[str, Callable[[Scope, Receive, Send], Awaitable[Any]]] = {}
kept: set[Any] = set()


def page(function: Any) -> Any:
    PAGES["/" + function.__name__] = function
    return function


def start(*headers: Any, status: Any = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data: Any = b"", more: Any = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def respond(send: Send, data: bytes = b"ok") -> None:
    await send(START)
    await send(body(data))


def drive(step: Coroutine[Any, Any, None]) -> None:
    """Runs it without an event loop, as long as it need not wait."""
    with contextlib.suppress(StopIteration):
        step.send(None)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    await PAGES[scope["path"]](scope, receive, send)


@page
async def fine(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send)


@page
async def state(scope: Scope, receive: Receive, send: Send) -> None:
    gc.collect()
    counts = {
        "tasks": len(asyncio.all_tasks()),
        "exchanges": sum(issubclass(type(o), _core.Exchange) for o in gc.get_objects()),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }
    await respond(send, json.dumps(counts).encode())


# ------------------------------------------------------------- messages


@page
async def classes_of_its_own(scope: Scope, receive: Receive, send: Send) -> None:
    class Status(int):
        def __int__(self) -> int:
            return 5

        def __format__(self, spec: str) -> str:
            return "200 OK\r\nX: y"

        __str__ = __repr__ = lambda self: "2\r\n"

    await send(collections.OrderedDict(start(status=Status(299))))
    await send(collections.OrderedDict(body(bytearray(b"ok"))))


@page
async def headers_that_send(scope: Scope, receive: Receive, send: Send) -> None:
    """The inner response has begun when the outer one would."""

    def headers() -> Iterator[tuple[bytes, bytes]]:
        drive(send(START))
        drive(send(body(b"inner", True)))
        yield b"a", b"b"

    await send(START | {"headers": headers()})
    await send(body(b"outer"))


@page
async def nonsense(scope: Scope, receive: Receive, send: Send) -> None:
    """Nothing of it is sent, and the response is as if it had not been."""

    class NeitherTrueNorFalse:
        def __bool__(self) -> bool:
            raise ValueError

    kind = "http.response.start"
    before: list[Any] = [None, 1, "x", [], b"", {"type": 1}, {"type": None}, {"type": kind.encode()}]
    before += [start(status=s) for s in (10**30, -1, 2.5, True, None, "200")]
    before += [
        {"type": kind, "status": 200, "headers": h} for h in (5, [1], [(b"a",)], [(b"a", b"b", b"c")], [(b"a", None)])
    ]
    before += [start((b"a\r\nb", b"c")), start((b"a", b"c\r\n\r\nHTTP/1.1 200 OK")), start((b"a", b"\0"))]
    before += [
        start((b"a", b"x" * 2_000_000)),
        start((b"content-length", b"9" * 30)),
        start((b"content-length", b"-1")),
    ]
    after: list[Any] = [None, body("x"), body(1), body(None), body([b"x"]), START, body(memoryview(b"abcdef")[::2])]
    after += [body(b"x", NeitherTrueNorFalse())]
    for messages in (before, [START], after):
        for message in messages:
            try:
                await send(message)
            except Exception:
                assert message is not START or messages is after
            else:
                assert messages == [START], f"{message!r} was sent"
    await send(body(b"ok"))


@page
async def many_tasks_send(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.gather(*(send(START) for _ in range(5)), return_exceptions=True)
    await asyncio.gather(*(send(body(b"x" * 100_000, True)) for _ in range(50)))
    await asyncio.gather(*(send(body()) for _ in range(5)), return_exceptions=True)


@page
async def many_tasks_receive(scope: Scope, receive: Receive, send: Send) -> None:
    waits = (asyncio.wait_for(receive(), 0.02) for _ in range(5))
    found = await asyncio.gather(receive(), *waits, return_exceptions=True)
    assert isinstance(found[0], dict) and found[0]["more_body"] is False
    assert all(isinstance(error, TimeoutError) for error in found[1:])
    await respond(send)


@page
async def messages_after_the_end(scope: Scope, receive: Receive, send: Send) -> None:
    """While the next request is being served."""

    async def later() -> None:
        for _ in range(20):
            await asyncio.sleep(0.001)
            with contextlib.suppress(Exception):
                await send(body(b"HTTP/1.1 200 OK\r\n\r\n", True))
            assert (await receive())["type"] == "http.disconnect"

    await respond(send)
    task = asyncio.create_task(later())
    kept.add(task)
    task.add_done_callback(kept.discard)


@page
async def other_threads(scope: Scope, receive: Receive, send: Send) -> None:
    loop = asyncio.get_running_loop()

    def work() -> None:
        asyncio.run_coroutine_threadsafe(send(START), loop).result()
        asyncio.run_coroutine_threadsafe(send(body(b"ok", True)), loop).result()
        thread = threading.Thread(target=drive, args=(send(body(b"")),))
        thread.start()
        thread.join()

    await loop.run_in_executor(None, work)


@page
async def many_empty_parts(scope: Scope, receive: Receive, send: Send) -> None:
    await send(START)
    for _ in range(1000):
        await send(body(b"", True))
    await send(body(b"ok"))


@page
async def content_with_204(scope: Scope, receive: Receive, send: Send) -> None:
    await send(start((b"content-length", b"2"), status=204))
    await send(body(b"ok", True))
    await send(body(b"ok"))


@page
async def content_with_304(scope: Scope, receive: Receive, send: Send) -> None:
    await send(start((b"content-length", b"2"), status=304))
    await send(body(b"ok"))


# ------------------------------------------------------------ exceptions


class Own(BaseException):
    pass


RAISED: dict[str, Callable[[], BaseException]] = {
    "own": Own,
    "interrupt": KeyboardInterrupt,
    "exit": lambda: SystemExit(3),
    "cancelled": asyncio.CancelledError,
    "generator": GeneratorExit,
    "iteration": StopIteration,
    "iteration2": StopAsyncIteration,
    "memory": MemoryError,
    "group": lambda: BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError()]),
    "os": lambda: OSError(24, "too many open files"),
    "reset": ConnectionResetError,
}


@page
async def raises(scope: Scope, receive: Receive, send: Send) -> None:
    raise RAISED[scope["query_string"].decode()]()


@page
async def raises_later(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(0)
    raise RAISED[scope["query_string"].decode()]()


@page
async def exits_in_its_response(scope: Scope, receive: Receive, send: Send) -> None:
    await send(START)
    await send(body(b"x", True))
    sys.exit(3)


@page
async def task_that_exits(scope: Scope, receive: Receive, send: Send) -> None:
    async def work() -> None:
        sys.exit(3)

    kept.add(asyncio.create_task(work()))
    await asyncio.sleep(0.01)
    kept.clear()
    await respond(send)


@page
async def callback_that_exits(scope: Scope, receive: Receive, send: Send) -> None:
    asyncio.get_running_loop().call_soon(sys.exit, 3)
    await asyncio.sleep(0.01)
    await respond(send)


@page
async def callback_that_interrupts(scope: Scope, receive: Receive, send: Send) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    asyncio.get_running_loop().call_later(0.001, interrupt)
    await asyncio.sleep(0.01)
    await respond(send)


# -------------------------------------------------------- the event loop


@page
async def stop(scope: Scope, receive: Receive, send: Send) -> None:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.01)
    await respond(send)


@page
async def close(scope: Scope, receive: Receive, send: Send) -> None:
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop().close()
    await respond(send)


@page
async def cancel_all(scope: Scope, receive: Receive, send: Send) -> None:
    for task in asyncio.all_tasks():
        if task is not asyncio.current_task():
            task.cancel()
    await asyncio.sleep(0.01)
    await respond(send)


@page
async def cancelled_while_sending(scope: Scope, receive: Receive, send: Send) -> None:
    """What was not sent is sent with the next message, or the response is cut off."""
    await send(START)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0):
            await send(body(b"x" * 30_000_000, scope["query_string"] == b"more"))
    if scope["query_string"] == b"more":
        await send(body(b"end"))


@page
async def cancels_itself(scope: Scope, receive: Receive, send: Send) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(60)
    await respond(send)


@page
async def is_cancelled(scope: Scope, receive: Receive, send: Send) -> None:
    """By itself, or by another task."""
    task = asyncio.current_task()
    assert task is not None
    if scope["query_string"] == b"itself":
        task.cancel()
    else:
        asyncio.get_running_loop().call_soon(task.cancel)
    await asyncio.sleep(60)


@page
async def never_ends(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send)
    await asyncio.Event().wait()


# ------------------------------------------------------------------ forks


async def result_of(child: int, send: Send) -> None:
    while (found := os.waitpid(child, os.WNOHANG)) == (0, 0):
        await asyncio.sleep(0.01)
    await respond(send, str(os.waitstatus_to_exitcode(found[1])).encode())


@page
async def fork_that_raises(scope: Scope, receive: Receive, send: Send) -> None:
    if (child := os.fork()) == 0:
        raise ValueError("in the child")
    await result_of(child, send)


@page
async def fork_that_waits(scope: Scope, receive: Receive, send: Send) -> None:
    event = asyncio.Event()
    if (child := os.fork()) == 0:
        await event.wait()
    await result_of(child, send)


@page
async def fork_that_responds(scope: Scope, receive: Receive, send: Send) -> None:
    if (child := os.fork()) == 0:
        await respond(send, b"from the child")
    await result_of(child, send)
