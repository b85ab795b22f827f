"""Hooks: the functions that the application has registered for its start and its end, and how they are run.

      start()   in the order of registration, each in the main thread, which a signal interrupts; a failure ends it
      stop()    in reverse order, each in a thread of its own, which is left behind when its time is over

Coroutine functions run on the application's event loop.  When all of this happens, `Service` decides.
"""

from __future__ import annotations

import enum
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from pkg.errors import StartupError, one_line
from pkg.health.coroutines import is_coroutine_function

__all__ = ["Hooks"]

_log = logging.getLogger("pkg.service")

Function = Callable[[], object]
# Runs a coroutine function on the event loop, and returns whether it has ended in so many seconds; raises what it does.
OnLoop = Callable[[Callable[[], Any], float | None], bool]

NO_LOOP = "is a coroutine function, and only an ASGI application has an event loop to run it on"
LEAST = 0.1  # seconds for all stop functions together, even if requests have taken all the time there was


class Phase(enum.IntEnum):
    """Each is followed by the next one."""

    REGISTERING = 0  # while the application is imported
    STARTING = 1  # start functions run; what they register is run as well
    STARTED = 2  # or not, and it is over
    STOPPED = 3


class Hooks:
    """`end_child(error)` ends the process if the application has forked it in one of the functions."""

    def __init__(
        self, starts: Sequence[Function], stops: Sequence[Function], end_child: Callable[[BaseException | None], None]
    ) -> None:
        self._starts, self._stops = list(starts), list(stops)
        self._end_child = end_child
        self._phase = Phase.REGISTERING
        self._on_loop: OnLoop | None = None

    @property
    def has_stops(self) -> bool:
        """Whether stop() has something to do; it has not if the start did not get as far as the start functions."""
        return bool(self._stops) and self._phase is not Phase.REGISTERING

    def add_start(self, function: Function) -> None:
        """Raises RuntimeError if the application has started."""
        if self._phase > Phase.STARTING:
            raise RuntimeError(f"on_start({_name(function)}) comes too late: the application has started")
        self._check(function)
        self._starts.append(function)

    def add_stop(self, function: Function) -> None:
        """Raises RuntimeError if the application has stopped."""
        if self._phase is Phase.STOPPED:
            raise RuntimeError(f"on_stop({_name(function)}) comes too late: the application has stopped")
        self._check(function)
        self._stops.append(function)

    def start(self, on_loop: OnLoop | None) -> None:
        """Raises StartupError for the first function that fails.  `on_loop`: None where there is no event loop."""
        if on_loop is None:
            for function in filter(is_coroutine_function, (*self._starts, *self._stops)):
                raise StartupError(f"{_name(function)} {NO_LOOP}")
        self._on_loop = on_loop
        self._phase = Phase.STARTING
        for function in self._starts:  # also those that are added meanwhile
            _log.debug("running the start function %s", _name(function))
            try:
                if is_coroutine_function(function):
                    assert on_loop is not None
                    on_loop(function, None)
                else:
                    _call(function)
            except (Exception, SystemExit) as error:
                self._end_child(error)
                _log.critical("the start function %s has failed", _name(function), exc_info=error)
                raise StartupError(f"the start function {_name(function)} has failed: {one_line(error)}") from error
            self._end_child(None)
        self._phase = Phase.STARTED

    def stop(self, timeout: float) -> None:
        """Logs what fails.  All functions together get `timeout` seconds; each has its share of what is left."""
        if self._phase is Phase.REGISTERING:
            return
        self._phase = Phase.STARTED
        until = time.monotonic() + max(timeout, LEAST)
        while self._stops:
            share = max(0.0, until - time.monotonic()) / len(self._stops)
            function = self._stops.pop()
            _log.debug("running the stop function %s", _name(function))
            try:
                run = self._on_loop if is_coroutine_function(function) else self._in_thread
                assert run is not None
                if not run(function, share):
                    _log.error("the stop function %s has not ended within %.1f s", _name(function), share)
            except BaseException as error:  # the others still run
                _log.error("the stop function %s has failed", _name(function), exc_info=error)
        self._phase = Phase.STOPPED

    def _check(self, function: Function) -> None:
        """Raises TypeError for a coroutine function without an event loop, once that is known."""
        if self._phase is not Phase.REGISTERING and self._on_loop is None and is_coroutine_function(function):
            raise TypeError(f"{_name(function)} {NO_LOOP}")

    def _in_thread(self, function: Function, timeout: float | None) -> bool:
        """Returns whether it has ended in time."""
        errors: list[BaseException | None] = [None]

        def run() -> None:
            try:
                _call(function)
            except BaseException as error:
                errors[0] = error
            self._end_child(errors[0])

        thread = threading.Thread(target=run, name="stops", daemon=True)
        thread.start()
        thread.join(timeout)
        if errors[0] is not None:
            raise errors[0]
        return not thread.is_alive()


def _call(function: Function) -> None:
    outcome = function()
    if isinstance(outcome, (AsyncGeneratorType, CoroutineType, GeneratorType)):
        raise TypeError(f"it has returned a {type(outcome).__name__}, which nobody runs")


def _name(function: Any) -> str:
    """With its place, as in "open_client (shop.py:41)"; the path is short if it is below the working directory."""
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    code = getattr(function, "__code__", None)
    if code is None:
        return str(name)
    path = code.co_filename.removeprefix(os.path.join(os.path.abspath(os.curdir), ""))
    return f"{name} ({path}:{code.co_firstlineno})"
