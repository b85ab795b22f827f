"""Chains of coroutines, read from another thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from types import SimpleNamespace
from typing import Any

import pytest

from pkg.diagnostics import tasks
from tests.support.client import wait_for


class Loop:
    """An event loop in a thread; `serving()` has no request."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def serving(self) -> list[tuple[Any, Any]]:
        return []

    def end(self) -> None:
        async def cancel() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(cancel(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def loop() -> Generator[Loop]:
    found = Loop()
    yield found
    found.end()


async def innermost() -> None:
    await asyncio.get_running_loop().create_future()


async def outer(inner: Callable[[], Awaitable[Any]]) -> None:
    await inner()


async def rows() -> AsyncIterator[int]:
    yield 1
    await innermost()


async def reads_rows() -> None:
    async for _ in rows():
        pass


async def next_row() -> None:
    found = rows()
    await anext(found)
    await anext(found, None)


class Wrapped:
    def __await__(self) -> Generator[Any, None, None]:
        return innermost().__await__()


async def awaits_wrapped() -> None:
    await Wrapped()


async def gathers() -> None:
    await asyncio.gather(innermost(), innermost())


async def awaits_task() -> None:
    await asyncio.create_task(innermost(), name="other")


async def sleeps() -> None:
    await asyncio.sleep(3600)


@pytest.mark.parametrize(
    ("function", "calls", "awaits"),
    [
        (innermost, ["innermost"], "a future"),
        (reads_rows, ["reads_rows", "rows", "innermost"], "a future"),
        (next_row, ["next_row", "rows", "innermost"], "a future"),
        (awaits_wrapped, ["awaits_wrapped", "innermost"], "a future"),
        (gathers, ["gathers"], "2 tasks"),
        (awaits_task, ["awaits_task"], "task other"),
        (sleeps, ["sleeps", "sleep"], "a future"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_chain_goes_down_to_what_is_awaited(
    loop: Loop, function: Callable[[], Awaitable[Any]], calls: list[str], awaits: str
) -> None:
    async def start() -> asyncio.Task[None]:
        return asyncio.create_task(outer(function), name="ours")

    task = asyncio.run_coroutine_threadsafe(start(), loop.loop).result(10)
    wait_for(lambda: task._fut_waiter is not None)  # type: ignore[attr-defined]
    (found,) = (state for state in tasks.capture(loop) if state.name == "ours")
    assert found.state == "waiting"
    assert [frame.function for frame in found.frames] == ["outer", *calls]
    assert found.frames[0].source == "await inner()"
    assert found.awaits == awaits
    assert "await inner()" in tasks.text(found) and f"waits for {awaits}" in tasks.text(found)


def test_a_task_that_runs_is_seen_by_its_stack(loop: Loop) -> None:
    runs, may_end = threading.Event(), threading.Event()

    async def blocks() -> None:
        runs.set()
        may_end.wait(10)

    async def start() -> asyncio.Task[None]:
        return asyncio.create_task(blocks(), name="blocks")

    started = asyncio.run_coroutine_threadsafe(start(), loop.loop)
    assert runs.wait(10)
    now = tasks.running(loop)
    assert (now.name, now.state) == ("blocks", "running")
    assert "blocks" in [frame.function for frame in now.frames]
    (same,) = (state for state in tasks.capture(loop) if state.name == "blocks")
    assert same.state == "running" and "may_end.wait(10)" in tasks.text(same)
    may_end.set()
    started.result(10)
    wait_for(lambda: tasks.running(loop).name == "")


def test_a_task_belongs_to_the_request_of_its_context(loop: Loop) -> None:
    """Also one that a library has made for it; before Python 3.12 that cannot be seen."""
    from pkg.logs import context

    def request(number: str) -> Any:
        return SimpleNamespace(
            method="GET", target=f"/{number}?secret", status=0, duration=1.0, context=("", "", number),
            is_finished=False,
        )  # fmt: skip

    async def serve(number: str) -> None:
        context.bind(request_id=number)
        loop_made.append(asyncio.create_task(innermost(), name=f"child-{number}"))
        await innermost()

    loop_made: list[Any] = []

    async def start() -> list[tuple[Any, Any]]:
        return [(request(n), asyncio.create_task(serve(n), name=f"task-{n}")) for n in ("1", "2")]

    pairs = asyncio.run_coroutine_threadsafe(start(), loop.loop).result(10)
    wait_for(lambda: len(loop_made) == 2)
    loop.serving = lambda: pairs  # type: ignore[method-assign]
    found = {state.name: str(state.serves) for state in tasks.capture(loop) if state.serves is not None}
    own = {"task-1": "GET /1", "task-2": "GET /2"}
    made = {"child-1": "GET /1", "child-2": "GET /2"} if hasattr(asyncio.Task, "get_context") else {}
    assert found == own | made


def test_reading_while_everything_changes(loop: Loop) -> None:
    ends = threading.Event()

    async def churn(depth: int) -> None:
        if depth:
            await churn(depth - 1)
        await asyncio.sleep(0)

    async def many() -> int:
        turns = 0
        while not ends.is_set():
            async with asyncio.TaskGroup() as group:
                for depth in range(20):
                    group.create_task(churn(depth))
            turns += 1
        return turns

    done = asyncio.run_coroutine_threadsafe(many(), loop.loop)

    def look() -> int:
        return sum(len(state.frames) > 0 and len(tasks.text(state)) > 0 for state in tasks.capture(loop))

    seen: list[int] = []
    wait_for(lambda: seen.append(look()) or sum(seen) > 2000)
    ends.set()
    assert done.result(10) > 0
