"""A sampling profiler: records for some seconds which code the threads execute.

It does not trace or change the code that runs: a thread looks at every stack many times a second, which costs the other
threads the interpreter lock for some ten microseconds each time.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from pkg.diagnostics.stacks import MAX_DEPTH, is_own, short

__all__ = ["MAX_HZ", "MAX_SECONDS", "Busy", "Profile", "Profiler"]

MAX_SECONDS = 60.0
MAX_HZ = 250.0
MAX_STACKS = 20_000  # different stacks; samples of further ones are counted as lost

Key = tuple[CodeType, ...]  # outermost first


class Busy(Exception):
    """Raised while another profile is being sampled."""


class Profile:
    """The samples: for each thread its stacks in the order of time."""

    def __init__(self, interval: float) -> None:
        self.interval = interval  # seconds represented by one sample
        self.seconds = 0.0  # duration of the whole profile
        self.rounds = 0
        self.idle = 0  # omitted samples, of threads in which the application was not at work
        self.lost = 0
        self._numbers: dict[Key, int] = {}
        self._names: dict[CodeType, tuple[str, str, int]] = {}
        self._samples: dict[str, list[int]] = {}  # by thread name

    def add(self, thread: str, key: Key) -> None:
        number = self._numbers.get(key)
        if number is None:
            if len(self._numbers) >= MAX_STACKS:
                self.lost += 1
                return
            number = self._numbers[key] = len(self._numbers)
        self._samples.setdefault(thread, []).append(number)

    @property
    def samples(self) -> int:
        return sum(map(len, self._samples.values()))

    def _name(self, code: CodeType) -> tuple[str, str, int]:
        named = self._names.get(code)
        if named is None:
            qualified = getattr(code, "co_qualname", code.co_name)
            named = self._names[code] = (qualified, short(code.co_filename), code.co_firstlineno)
        return named

    def folded(self) -> str:
        """One line for each stack, `thread;outermost;...;innermost count`, as read by flamegraph.pl and inferno."""
        stacks = list(self._numbers)
        lines = []
        for thread, numbers in sorted(self._samples.items()):
            for number, count in Counter(numbers).most_common():
                parts = [thread, *("{} ({}:{})".format(*self._name(code)) for code in stacks[number])]
                lines.append(f"{';'.join(part.replace(';', ',') for part in parts)} {count}")
        return "".join(f"{line}\n" for line in lines)

    def speedscope(self, name: str = "pkg") -> dict[str, Any]:
        """The file format of speedscope.app (jlfwong/speedscope: src/lib/file-format-spec.ts)."""
        # At least one thread, because speedscope does not open a file without.
        samples = self._samples or {f"idle: the application was at work in none of {self.idle} samples": []}
        frames: dict[CodeType, int] = {}
        stacks = [[frames.setdefault(code, len(frames)) for code in key] for key in self._numbers]
        return {
            "$schema": "https://www.speedscope.app/file-format-schema.json",
            "name": name,
            "exporter": "pkg",
            "shared": {
                "frames": [dict(zip(("name", "file", "line"), self._name(code), strict=True)) for code in frames]
            },
            "profiles": [
                {
                    "type": "sampled",
                    "name": thread,
                    "unit": "seconds",
                    "startValue": 0,
                    "endValue": round(len(numbers) * self.interval, 6),
                    "samples": [stacks[number] for number in numbers],
                    "weights": [round(self.interval, 6)] * len(numbers),
                }
                for thread, numbers in sorted(samples.items())
            ],
        }


def _key(frame: FrameType | None) -> tuple[Key, bool]:
    """The functions of the stack, and whether one of them belongs to the application."""
    codes: list[CodeType] = []
    at_work = False
    while frame is not None and len(codes) < MAX_DEPTH:
        code = frame.f_code
        codes.append(code)
        at_work = at_work or not _is_own(code)
        frame = frame.f_back
    codes.reverse()
    return tuple(codes), at_work


_own: dict[CodeType, bool] = {}


def _is_own(code: CodeType) -> bool:
    own = _own.get(code)
    if own is None:
        if len(_own) > 10_000:
            _own.clear()  # code objects that are created again and again must not accumulate here
        own = _own[code] = is_own(code.co_filename)
    return own


class Profiler:
    """Samples on request, one profile at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def stop(self) -> None:
        """Ends the current profile; later ones end at once."""
        self._stop.set()

    def sample(self, seconds: float, hz: float, *, all_threads: bool = False) -> Profile:
        """Samples `hz` times a second for `seconds`.  Raises Busy while another profile is being sampled.

        Threads in which the application is not at work (for example, that wait for requests) are omitted, unless
        `all_threads` is set; the calling thread always is.
        """
        if not self._lock.acquire(blocking=False):
            raise Busy
        try:
            return self._sample(seconds, hz, all_threads)
        finally:
            self._lock.release()
            _own.clear()

    def _sample(self, seconds: float, hz: float, all_threads: bool) -> Profile:
        interval = 1.0 / hz
        profile = Profile(interval)
        began = now = self._clock()
        due = began
        me = threading.get_ident()
        while now < began + seconds and not self._stop.is_set():
            names = {thread.ident: thread.name for thread in threading.enumerate()}
            for ident, frame in sys._current_frames().items():
                if ident == me:
                    continue
                key, at_work = _key(frame)
                if at_work or all_threads:
                    profile.add(names.get(ident, f"thread {ident:#x}"), key)
                else:
                    profile.idle += 1
            frame = None  # type: ignore[assignment]  # releases the last stack and its variables
            profile.rounds += 1
            due += interval
            now = self._clock()
            if due < now:  # delayed by the interpreter lock; missed samples cannot be taken later
                due = now
            self._stop.wait(due - now)
            now = self._clock()
        profile.seconds = now - began
        if profile.rounds:
            profile.interval = profile.seconds / profile.rounds
        return profile
