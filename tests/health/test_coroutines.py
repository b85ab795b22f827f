"""Checks that are coroutine functions."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pkg.health.checks import Check, Checker, Degraded
from pkg.health.coroutines import Coroutines, is_coroutine_function
from tests.support.client import wait_for
from tests.support.processes import ask, running


class Asynchronous:
    async def __call__(self) -> None:
        pass


async def passes() -> None:
    await asyncio.sleep(0)


async def degraded() -> Degraded:
    return Degraded("slow")


async def says_no() -> bool:
    return False


async def raises() -> None:
    raise ValueError("no such host")


async def times_out_itself() -> None:
    raise TimeoutError("of its own")


async def hangs() -> None:
    await asyncio.get_running_loop().create_future()


def test_what_is_a_coroutine_function() -> None:
    for function in (passes, partial(passes), Asynchronous(), Asynchronous().__call__):
        assert is_coroutine_function(function)
    for other in (len, print, lambda: passes(), partial(len), object(), type):
        assert not is_coroutine_function(other)


@pytest.fixture(params=["own", "application"])
def coroutines(request: pytest.FixtureRequest) -> Iterator[Coroutines]:
    """In a loop of their own, and on that of an application."""
    found = Coroutines()
    if request.param == "own":
        found.open()
        yield found
        return
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    found.open(loop)
    yield found
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def result(coroutines: Coroutines, probe: Callable[[], Any], timeout: float = 5.0) -> tuple[str, str]:
    checker = Checker(publish=lambda pages: None, renew=lambda slot, seconds: None, coroutines=coroutines)
    check = Check("it", probe, timeout=timeout)
    checker.add(check)
    checker.run_once(check)
    return check.status, check.reason


@pytest.mark.parametrize(
    ("probe", "status", "reason"),
    [
        (passes, "ok", ""),
        (Asynchronous(), "ok", ""),
        (lambda: passes(), "ok", ""),
        (degraded, "degraded", "slow"),
        (says_no, "failed", "returned False"),
        (raises, "failed", "ValueError: no such host"),
        (times_out_itself, "failed", "TimeoutError: of its own"),
    ],
)
def test_the_result_is_that_of_the_coroutine(
    coroutines: Coroutines, probe: Callable[[], Any], status: str, reason: str
) -> None:
    assert result(coroutines, probe) == (status, reason)


def test_one_that_takes_too_long_is_cancelled(coroutines: Coroutines) -> None:
    cancelled = threading.Event()

    async def waits() -> None:
        try:
            await hangs()
        finally:
            cancelled.set()

    assert result(coroutines, waits, timeout=0.05) == ("failed", "not finished within 0.05 s")
    assert cancelled.wait(10)


def on_a_loop() -> tuple[Coroutines, asyncio.AbstractEventLoop, threading.Thread]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    found = Coroutines()
    found.open(loop, lambda: "it is blocked")
    return found, loop, thread


def test_a_blocked_event_loop_holds_no_thread() -> None:
    coroutines, loop, thread = on_a_loop()
    may_end = threading.Event()
    ran: list[int] = []

    async def runs() -> None:
        ran.append(1)

    loop.call_soon_threadsafe(may_end.wait, 30)
    began = time.monotonic()
    assert result(coroutines, runs, timeout=0.05) == ("failed", "it is blocked")
    assert result(coroutines, runs, timeout=0.05) == ("failed", "it is blocked")
    assert time.monotonic() - began < 10
    may_end.set()
    wait_for(lambda: result(coroutines, passes) == ("ok", ""))
    assert ran == []  # what came too late is not run any more
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    checker = Checker(publish=lambda pages: None, renew=lambda slot, seconds: None, coroutines=coroutines)
    check = Check("it", passes)
    checker.add(check)
    checker.run_once(check)
    assert (check.status, check.runs) == ("pending", 0)  # nothing can be said of it


def test_a_run_that_cannot_be_cancelled_is_not_joined_by_another() -> None:
    coroutines, loop, thread = on_a_loop()
    coroutines.why = lambda: ""
    may_end = asyncio.Event()
    runs = 0

    async def stubborn() -> None:
        nonlocal runs
        runs += 1
        while not may_end.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await may_end.wait()

    assert result(coroutines, stubborn, timeout=0.05) == ("failed", "not finished within 0.05 s")
    assert result(coroutines, stubborn, timeout=0.05) == ("failed", "the run before this one has not ended")
    assert runs == 1
    loop.call_soon_threadsafe(may_end.set)
    wait_for(lambda: result(coroutines, passes) == ("ok", ""))
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_it_waits_for_the_application() -> None:
    """Its status is pending until then, and not failed."""
    coroutines = Coroutines()
    checker = Checker(publish=lambda pages: None, renew=lambda slot, seconds: None, coroutines=coroutines)
    check = Check("it", passes, timeout=0.05)
    checker.add(check)
    checker.start()
    try:
        time.sleep(0.2)
        assert (check.status, check.runs) == ("pending", 0)
        coroutines.open()
        wait_for(lambda: check.status == "ok")
    finally:
        checker.stop()


def test_beside_a_wsgi_application(tmp_path: Path) -> None:
    source = """
import asyncio, pkg

@pkg.check("upstream", interval=0.1)
async def upstream():
    await asyncio.sleep(0)

def app(environ, start_response):
    start_response("200 OK", [])
    return [b""]
"""
    with running(tmp_path, source, PKG_ADMIN="off") as process:
        wait_for(lambda: "[+]upstream ok" in ask(process.address, "/readyz?verbose")[2])
        assert ask(process.address, "/readyz")[0] == 200
