"""What the log says of turns of an event loop; tests/asgi/test_blocked.py has the whole service."""

from __future__ import annotations

import asyncio
import gc
import logging
import queue
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pkg._core import Turn
from pkg.diagnostics import blocked
from pkg.diagnostics.blocked import Watcher, look
from tests.support.client import wait_for


class Front:
    """A front that tells what the test tells it."""

    def __init__(self) -> None:
        self.told: queue.SimpleQueue[Turn | None] = queue.SimpleQueue()
        self.eventloop_looks = -1
        self.eventloop_turn = 0.0

    def watch_turns(self) -> Turn | None:
        return self.told.get()


class Blocking:
    """An event loop that is blocked in a callback from enter() to leave(), and its watcher."""

    def __init__(self) -> None:
        self.front = Front()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self._turns = 0
        self._may_go_on = threading.Event()
        self.watcher = Watcher(self.front, self)
        self.watcher.start()

    def serving(self) -> list[Any]:
        return []

    def _wait(self, entered: threading.Event) -> None:
        entered.set()
        self._may_go_on.wait(30)

    def enter(self, seconds: float, waited: float = 0.0, is_seen: bool = True) -> None:
        entered = threading.Event()
        self._may_go_on.clear()
        self.loop.call_soon_threadsafe(self._wait, entered)
        assert entered.wait(10)
        self._turns += 1
        self.front.eventloop_turn = seconds
        self.front.eventloop_looks = self._turns if is_seen else -1
        self.front.told.put(Turn(self._turns, 0.0, waited))

    def leave(self, seconds: float) -> None:
        wait_for(self.front.told.empty)
        self.front.told.put(Turn(self._turns, seconds, 0.0))
        wait_for(self.front.told.empty)
        self.front.eventloop_looks = -1
        self.front.eventloop_turn = 0.0
        self._may_go_on.set()

    def end(self) -> None:
        self.front.told.put(None)
        self._may_go_on.set()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def blocking(caplog: pytest.LogCaptureFixture) -> Iterator[Blocking]:
    caplog.set_level(logging.WARNING, "pkg.asgi")
    callbacks = len(gc.callbacks)
    found = Blocking()
    yield found
    found.end()
    wait_for(lambda: len(gc.callbacks) == callbacks)


PLACE = r"at tests/diagnostics/test_blocked.py:[0-9]+: self._may_go_on.wait\(30\), in a callback"


def messages(caplog: pytest.LogCaptureFixture, count: int) -> list[str]:
    wait_for(lambda: len(caplog.records) >= count)
    assert len(caplog.records) == count
    return [record.getMessage() for record in caplog.records]


def test_a_place_is_named_once_and_its_end_if_that_took_long(
    blocking: Blocking, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocking.enter(0.12)
    (first,) = messages(caplog, 1)
    assert re.fullmatch(f"the event loop has been blocked for 0.12 s {PLACE}", first)
    assert "self._may_go_on.wait(30)" in (caplog.records[0].stack_info or "")
    now = look(blocking.front, blocking, 0.1)
    assert now is not None and str(now) == first
    assert look(blocking.front, blocking, 0.2) is None
    blocking.leave(3.2)
    _, end = messages(caplog, 2)
    assert re.fullmatch(f"the event loop goes on after 3.20 s; it was blocked {PLACE}", end)

    for _ in range(3):
        blocking.enter(0.12)
        blocking.leave(2.0)
    monkeypatch.setattr(blocked, "AGAIN", 0.0)
    assert len(messages(caplog, 2)) == 2
    blocking.enter(0.5)
    *_, again = messages(caplog, 3)
    assert re.fullmatch(
        rf"the event loop has been blocked for 0.50 s {PLACE} \(4 times since this was last said, 6.5 s altogether\)",
        again,
    )
    blocking.leave(0.5)


def test_what_held_the_interpreter_lock(blocking: Blocking, caplog: pytest.LogCaptureFixture) -> None:
    blocking.enter(0.6, waited=0.5)
    (text,) = messages(caplog, 1)
    assert re.fullmatch(
        f"the event loop has been blocked for 0.60 s {PLACE}; the interpreter lock was held for 0.50 s", text
    )
    blocking.leave(0.6)
    blocking.enter(0.6, waited=0.5, is_seen=False)
    blocking.leave(0.7)
    _, unseen = messages(caplog, 2)
    assert unseen == (
        "the event loop was blocked for 0.70 s; the line was not seen, because the interpreter lock was held"
    )
    blocking.enter(0.12, is_seen=False)  # it just ended; that is no news
    blocking.leave(0.12)
    assert len(messages(caplog, 2)) == 2
