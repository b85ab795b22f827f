"""What SIGTERM, SIGINT, SIGHUP and SIGQUIT ask for, counted and timed; and SIGUSR1, which writes every stack.

It carries nothing out: `service.py` waits on the flags here.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

from pkg._output import last_words

__all__ = ["Interrupted", "Signals", "draining"]

_log = logging.getLogger(__name__)

DUPLICATE = 1.0  # seconds: a second signal so soon is the same one sent twice (supervisors do)
LOOK = 0.5  # seconds: how late a signal is seen at worst


def draining() -> list[signal.Signals]:
    """The signals that ask for a drain; to be asked before any of them has a handler.

    SIGHUP only if it is not ignored: whoever started this process by nohup wants it to outlive the terminal.
    """
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
    return numbers if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [*numbers, signal.SIGHUP]


class Interrupted(BaseException):
    """A signal while the application is imported; not an Exception, so that no import swallows it."""


class Flag:
    """An event that a signal handler may set: threading.Event.set() takes a lock which the wait that the handler has
    interrupted may hold, for ever then.  One thread waits."""

    def __init__(self) -> None:
        self._is_set = False
        self._news: SimpleQueue[None] = SimpleQueue()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        self._news.put(None)

    def wait(self, timeout: float = math.inf) -> bool:
        """Whether it is set within `timeout` seconds; for the main thread, during whose wait signals are handled.

        In short waits: a signal that comes while the interpreter lock is on its way to another thread, just before the
        wait, does not end it, nor does one that another thread gets (signal.raise_signal in a worker).
        """
        end = time.monotonic() + timeout
        while not self._is_set and (left := end - time.monotonic()) > 0:
            with contextlib.suppress(Empty):
                self._news.get(timeout=min(LOOK, left))
        return self._is_set


class Signals:
    """What signals ask for.  The first one drains; a second, not a duplicate, cuts the delay; a third exits at once."""

    def __init__(self) -> None:
        self.drain = Flag()
        self.hurry = Flag()
        self.name = ""
        self.at = 0.0
        self._interrupts = False
        self._last = 0.0
        self._count = 0
        self._former: dict[int, Any] = {}
        self.read_fd, self._write_fd = os.pipe()
        os.set_blocking(self.read_fd, False)
        os.set_blocking(self._write_fd, False)
        self._former_fd = -1
        self._held = threading.local()

    def install(self) -> None:
        for number in draining():
            self._former[number] = signal.signal(number, self._on_signal)
        # The number of every signal also goes to the front, which needs no interpreter lock to read it.
        self._former_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        faulthandler.enable(last_words())
        faulthandler.register(signal.SIGUSR1, last_words(), all_threads=True)
        # What is registered first runs last.  Then the interpreter takes its handlers away, which leaves the default.
        atexit.register(self._ignore)
        os.register_at_fork(before=self._hold, after_in_parent=self._release, after_in_child=self._in_child)

    @property
    def numbers(self) -> list[int]:
        """Of the signals that begin the drain; none before install()."""
        return list(self._former)

    def keep(self) -> None:
        """Takes back what the application may have taken while it was imported."""
        for number in self._former:
            if signal.getsignal(number) != self._on_signal:
                name = signal.Signals(number).name
                _log.warning("ignoring the application's %s handler; %s starts the drain", name, name)
                signal.signal(number, self._on_signal)
        if signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False) != self._write_fd:
            _log.debug("restored the signal wake-up descriptor, which the application had replaced")

    def close(self) -> None:
        """Lets go of the front.  The handlers stay until the interpreter ends: one signal more than was needed, while
        it does, must not turn a clean exit into a death by a signal."""
        signal.set_wakeup_fd(self._former_fd)
        os.close(self.read_fd)
        os.close(self._write_fd)

    def _ignore(self) -> None:
        for number in self._former:
            signal.signal(number, signal.SIG_IGN)

    # A child of the application's (multiprocessing, os.fork) is to end at a signal as any process does.  With what it
    # inherits it would not, and would write the signal to the front that it shares with us, which would drain.

    def _hold(self) -> None:
        """Lets no signal reach the child before it has its own handlers."""
        self._held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._former)

    def _release(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._held.mask)

    def _in_child(self) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._release()

    def ask(self, name: str) -> None:
        """Begins a drain for a reason other than a signal."""
        if not self.drain.is_set():
            self.name, self.at = name, time.monotonic()
            self.drain.set()

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """For what may take for ever: a first signal raises Interrupted in the block, or has come before it.

        Anywhere else that would leave halves of objects behind, and nothing else takes long.
        """
        self._interrupts = True
        try:
            if self.drain.is_set():
                raise Interrupted
            yield
        finally:
            self._interrupts = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._count and now - self._last < DUPLICATE:
            return
        self._last = now
        self._count += 1
        if self._count == 1:
            self.ask(signal.Signals(number).name)
            if number == signal.SIGINT:
                self.hurry.set()
            if self._interrupts:
                raise Interrupted
        elif self._count == 2:
            self.hurry.set()
        else:
            with contextlib.suppress(OSError):
                os.write(last_words(), b"pkg: third signal, leaving at once\n")
            os._exit(1)
