"""When the event loop of an ASGI application counts as stuck."""

from __future__ import annotations

from types import SimpleNamespace

from pkg.health.stuck import StuckEventLoop


def test_an_event_loop_is_stuck_in_one_turn() -> None:
    front = SimpleNamespace(eventloop_turn=0.0)
    stuck = StuckEventLoop(front, 2.0, where=lambda: "at app.py:41: time.sleep(9), in GET /slow")
    assert stuck() is None
    front.eventloop_turn = 2.0
    assert stuck() is None
    front.eventloop_turn = 2.1
    assert stuck() == ("the event loop has been blocked for more than 2 s at app.py:41: time.sleep(9), in GET /slow")
    assert StuckEventLoop(front, 2.0)() == "the event loop has been blocked for more than 2 s"
    front.eventloop_turn = 0.0
    assert stuck() is None
