"""Counts and times SIGTERM, SIGINT, SIGHUP and SIGQUIT, which request a drain; SIGUSR1 writes every stack.

It sets flags, for which `Service` waits; only a start is interrupted by an exception, and the third signal ends the
process.
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

from pkg.logs.output import last_words

__all__ = ["INTERRUPT", "Interrupted", "Signals", "draining"]

_log = logging.getLogger("pkg.signals")

DUPLICATE = 1.0  # seconds; a second signal within this time is the same one sent twice (supervisors do that)
# From process 1 to a worker that starts: others send SIGTERM to all processes.  To be ignored until it has a handler.
INTERRUPT = signal.SIGRTMAX - 1
LOOK = 0.5  # seconds; the longest time until a signal is noticed


def draining() -> list[signal.Signals]:
    """The signals that request a drain; call this before any of them has a handler.

    SIGHUP is one of them unless it is ignored: a process that was started by nohup shall outlive the terminal.
    """
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
    return numbers if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [*numbers, signal.SIGHUP]


class Interrupted(BaseException):
    """A signal arrived while the application was being imported.  Not an Exception, so that no import catches it."""


class Flag:
    """An event that a signal handler may set.  Only one thread may wait for it.

    threading.Event.set() takes a lock.  If the handler has interrupted the wait that holds this lock, that is a
    deadlock.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._news: SimpleQueue[None] = SimpleQueue()

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        self._news.put(None)

    def wait(self, timeout: float = math.inf) -> bool:
        """Waits at most `timeout` seconds and returns whether the flag is set.  For the main thread, which runs
        handlers.

        It waits in short steps, because some signals do not interrupt a wait: one that arrives just before the wait,
        while the interpreter lock passes to another thread, and one that another thread gets (signal.raise_signal).
        """
        end = time.monotonic() + timeout
        while not self._is_set and (left := end - time.monotonic()) > 0:
            with contextlib.suppress(Empty):
                self._news.get(timeout=min(LOOK, left))
        return self._is_set


class Signals:
    """The first signal starts the drain; a second one that is no duplicate skips the delay; a third exits at once.

    `hangup`: whether SIGHUP is one of them.
    """

    def __init__(self, hangup: bool = True) -> None:
        self._hangup = hangup
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
            if number == signal.SIGHUP and not self._hangup:
                continue
            self._former[number] = signal.signal(number, self._on_signal)
        # The front also gets the number of every signal, and needs no interpreter lock to read it.
        self._former_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        faulthandler.enable(last_words())
        faulthandler.register(signal.SIGUSR1, last_words(), all_threads=True)
        # What is registered first runs last.  After it the interpreter removes its handlers, which restores the
        # default.
        atexit.register(self._ignore)
        os.register_at_fork(before=self._hold, after_in_parent=self._release, after_in_child=self._in_child)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the signals that start the drain; empty before install()."""
        return list(self._former)

    def keep(self) -> None:
        """Restores handlers that the application has replaced while it was imported."""
        for number in self._former:
            if signal.getsignal(number) != self._on_signal:
                name = signal.Signals(number).name
                _log.warning("ignoring the application's %s handler; %s starts the drain", name, name)
                signal.signal(number, self._on_signal)
        if signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False) != self._write_fd:
            _log.debug("restored the signal wake-up descriptor, which the application had replaced")

    def close(self) -> None:
        """Detaches from the front.  The handlers stay until the interpreter ends, so that one more signal meanwhile
        does not turn a clean exit into death by a signal."""
        signal.set_wakeup_fd(self._former_fd)
        os.close(self.read_fd)
        os.close(self._write_fd)

    def _ignore(self) -> None:
        for number in self._former:
            signal.signal(number, signal.SIG_IGN)

    # A child that the application forks (multiprocessing, os.fork) must end at a signal like any process.  With the
    # inherited handlers it would not, and it would write the signal to the parent's front, which would drain.

    def _hold(self) -> None:
        """Blocks signals until the child has its own handlers."""
        self._held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._former)

    def _release(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._held.mask)

    def _in_child(self) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._release()

    def ask(self, name: str) -> None:
        """Requests a drain for a reason other than a signal."""
        if not self.drain.is_set():
            self.name, self.at = name, time.monotonic()
            self.drain.set()

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """For a block that may take forever: the first signal raises Interrupted in it, or before it.

        Anywhere else that would leave half-made objects behind, and nothing else takes long.
        """
        self._interrupts = True
        try:
            if self.drain.is_set():
                raise Interrupted
            yield
        finally:
            self._interrupts = False

    def interrupt(self, name: str) -> None:
        """Requests a drain; for a signal handler.  Raises Interrupted in a block of interrupting(), each time: one that
        is raised in a finalizer or in a callback of a weak reference, such as those of imports, is lost."""
        self.ask(name)
        if self._interrupts:
            raise Interrupted

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._count and now - self._last < DUPLICATE:
            return
        self._last = now
        self._count += 1
        if self._count == 1:
            if number == signal.SIGINT:
                self.hurry.set()
            self.interrupt(signal.Signals(number).name)
        elif self._count == 2:
            self.hurry.set()
            self.interrupt(signal.Signals(number).name)
        else:
            with contextlib.suppress(OSError):
                os.write(last_words(), b"pkg: third signal, leaving at once\n")
            os._exit(1)
