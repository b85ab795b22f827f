"""When the event loop of an ASGI application counts as stuck."""

from __future__ import annotations

from types import SimpleNamespace

from pkg.health.stuck import StuckEventLoop


def test_an_event_loop_is_stuck_in_one_turn() -> None:
    front, now = SimpleNamespace(eventloop_looks=-1), 0.0
    stuck = StuckEventLoop(front, 2.0, clock=lambda: now)

    def look(at: float, looks: int) -> bool:
        nonlocal now
        now, front.eventloop_looks = at, looks
        return stuck() is not None

    assert not look(0.0, 7)
    assert not look(2.0, 7)
    assert look(2.1, 7)
    assert look(9.0, 7)
    assert not look(9.5, 8)  # it has come back, and is busy again
    assert not look(11.0, 8)
    assert not look(11.6, -1)  # it waits for work, which may take for ever
    assert not look(60.0, -1)
    assert not look(61.0, 9)
    assert not look(63.0, 9)
    assert look(63.1, 9)
