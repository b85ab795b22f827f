"""Says which line blocks the event loop of an ASGI application: now, for the pages, and in the log while it happens.

      front's thread    one turn lasts longer than slow_callback_duration --> Front.watch_turns() returns
      this thread       gets the interpreter lock, looks at the stack of the event loop's thread, writes a warning

Nobody wakes up while the turns are short.  Code that holds the interpreter lock, in an extension, is seen only when it
releases the lock: the line is right then, and the warning late.  If other threads wait for the lock as well, the turn
may end before this one has it; then the warning says that the line was not seen.  If the lock is never released,
liveness fails at last, and the stacks go to stderr.

It is no verdict on the line: a turn may also be long because of others.  What is told apart: time in which the process
stood still or had no CPU does not count (the front's own thread was late as well), and a turn that the garbage
collector has taken more than half of is held against it.  If another thread holds the interpreter lock, the line is the
one where the event loop waits for it; the warning says that the lock was held, and where the other threads are.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections import deque
from typing import Any, NamedTuple

from pkg.diagnostics import stacks, tasks
from pkg.logs import context
from pkg.logs.records import Ids

__all__ = ["Blocked", "Watcher", "look"]

_log = logging.getLogger("pkg.asgi")

AGAIN = 60.0  # seconds after which a place is named again
LONG = 1.0  # seconds; the end of a turn that took longer is logged as well
MAX_PLACES = 1000  # that are remembered
MAX_OTHERS = 5  # other threads that are named
MOMENT = 0.01  # seconds for an idle event loop to say so
LOCKED = 0.02  # seconds without the interpreter lock; a thread that gives it up every 5 ms is no reason for so many
NO_IDS: Ids = ("", "", "")
_UNSEEN = "the event loop was blocked for %.2f s; the line was not seen, because the interpreter lock was held"


class Blocked(NamedTuple):
    """The event loop in a turn that lasts: for how many seconds, where, and in which task."""

    seconds: float
    task: tasks.TaskState

    @property
    def place(self) -> stacks.Frame | None:
        return tasks.place(self.task.frames)

    @property
    def is_idle(self) -> bool:
        """It runs no Python; uvloop may not have told the front yet that the turn is over."""
        return not self.task.name and all(stacks.is_own(frame.file) for frame in self.task.frames)

    @property
    def where(self) -> str:
        """As in "at app.py:41: requests.get(url), in GET /slow"."""
        place = self.place
        if place is None:
            return "at an unknown place"
        what = place.source or place.function
        return f"at {stacks.short(place.file)}:{place.line}: {what}, in {self.whose}"

    @property
    def whose(self) -> str:
        if self.task.serves is not None:
            return str(self.task.serves)
        return f"task {self.task.name}" if self.task.name else "a callback"

    def __str__(self) -> str:
        return f"the event loop has been blocked for {self.seconds:.2f} s {self.where}"


def look(front: Any, eventloop: Any, least: float) -> Blocked | None:
    """How it is blocked now, if it has been in one turn for longer than `least` seconds."""
    seconds = front.eventloop_turn
    if seconds <= least:
        return None
    task = _running(eventloop)
    return Blocked(max(seconds, front.eventloop_turn), task)


def _running(eventloop: Any) -> tasks.TaskState:
    """The task that runs, without the call of _Collector that may be in it."""
    task = tasks.running(eventloop)
    return task._replace(frames=tuple(frame for frame in task.frames if frame.file != __file__))


class _Collector:
    """How long the garbage collector has stopped all threads lately."""

    def __init__(self) -> None:
        self._began = 0.0
        self._pauses: deque[tuple[float, float]] = deque(maxlen=16)  # end and duration

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        now = time.monotonic()
        if phase == "start":
            self._began = now
        else:
            if now - self._began > 0.005:
                self._pauses.append((now, now - self._began))
            self._began = 0.0

    def since(self, moment: float) -> float:
        """Seconds of pauses that ended after this moment, and of one that has not ended."""
        began = self._began
        now = time.monotonic() - began if began else 0.0  # when this thread runs, it is about to end
        return now + sum(duration for end, duration in tuple(self._pauses) if end > moment)


class _Place:
    """What is known of one place: when it was named last, and what has not been told since."""

    def __init__(self) -> None:
        self.told = float("-inf")
        self.times = 0
        self.seconds = 0.0


class Watcher:
    """Warns of each line that blocks the event loop, once, and again after AGAIN seconds with the number of times.

    `front` has watch_turns() and eventloop_looks; `eventloop` has `loop`, `thread` and serving().
    """

    def __init__(self, front: Any, eventloop: Any) -> None:
        self._front, self._eventloop = front, eventloop
        self._places: dict[object, _Place] = {}
        self._now: tuple[int, _Place, str, Ids] | None = None  # the turn that lasts
        self._unseen: int | None = None  # a turn that ended before this thread had the interpreter lock
        self._collector = _Collector()
        self._thread = threading.Thread(target=self._run, name="event-loop-watch", daemon=True)

    def start(self) -> None:
        """Call it when the front serves by the event loop.  The thread ends with the front."""
        gc.callbacks.append(self._collector)
        self._thread.start()

    def _run(self) -> None:
        try:
            while (turn := self._front.watch_turns()) is not None:
                try:
                    if not turn.took:
                        self._begins(turn)
                    else:
                        self._ends(turn)
                except Exception:
                    _log.exception("looking at a blocked event loop failed")
        finally:
            gc.callbacks.remove(self._collector)

    def _begins(self, turn: Any) -> None:
        self._now = None
        self._unseen = turn.number if turn.waited > LOCKED else None
        if self._front.eventloop_looks != turn.number:
            return  # it has ended before this thread could run; a line named now would be another one
        seconds = self._front.eventloop_turn
        blocked = Blocked(seconds, _running(self._eventloop))
        if blocked.is_idle:
            time.sleep(MOMENT)
        if self._front.eventloop_looks != turn.number:
            return
        self._unseen = None
        paused = self._collector.since(time.monotonic() - seconds)
        if paused > seconds / 2:
            key: object = "collector"
            where = f"by the garbage collector, which took {paused:.2f} s, in {blocked.whose}"
        else:
            frame = blocked.place
            key = (frame.file, frame.line) if frame is not None else None
            where = blocked.where
        serves = blocked.task.serves
        ids = serves.ids if serves is not None and serves.ids is not None else NO_IDS
        place = self._place(key)
        self._now = turn.number, place, where, ids
        place.times += 1
        now = time.monotonic()
        if now - place.told < AGAIN:
            return
        message = f"the event loop has been blocked for {seconds:.2f} s {where}"
        if place.times > 1:
            message += f" ({place.times} times since this was last said, {place.seconds + seconds:.1f} s altogether)"
        stack = stacks.text(blocked.task.frames, indent="")
        if turn.waited > seconds / 4 and key != "collector":
            message += f"; the interpreter lock was held for {turn.waited:.2f} s"
            stack += self._others()
        place.told, place.times, place.seconds = now, 0, 0.0
        self._say(message, ids, stack)

    def _ends(self, turn: Any) -> None:
        if self._unseen == turn.number:
            self._unseen, place = None, self._place("unseen")
            if time.monotonic() - place.told >= AGAIN:
                place.told = time.monotonic()
                self._say(_UNSEEN % turn.took, NO_IDS, "")
            return
        if self._now is None or self._now[0] != turn.number:
            return
        _, place, where, ids = self._now
        self._now = None
        if place.times:
            place.seconds += turn.took
        elif turn.took > LONG:
            self._say(f"the event loop goes on after {turn.took:.2f} s; it was blocked {where}", ids, "")

    def _place(self, key: object) -> _Place:
        if (place := self._places.get(key)) is None:
            if len(self._places) >= MAX_PLACES:
                del self._places[min(self._places, key=lambda other: self._places[other].told)]
            place = self._places[key] = _Place()
        return place

    def _others(self) -> str:
        """Where the application is in other threads, as lines of text; one of them may have held the lock."""
        lines = []
        for stack in stacks.capture():
            place = stacks.place(stack) if stack.native_id != self._eventloop.thread.native_id else None
            if place is not None and stack.name != "MainThread":
                lines.append(f"\nthread {stack.name} is at {place}\n    {place.source}")
        return "".join(lines[:MAX_OTHERS])

    @staticmethod
    def _say(message: str, ids: Ids, stack: str) -> None:
        record = _log.makeRecord(_log.name, logging.WARNING, __file__, 0, "%s", (message,), None)
        record.stack_info = stack or None
        token = context.bind(*ids)
        try:
            if _log.isEnabledFor(logging.WARNING):
                _log.handle(record)
        finally:
            context.bound.reset(token)
