"""Lifespan: tells an application of the start and the end, and keeps its state (the ASGI lifespan specification, 2.0).

It does not know when they are; the event loop does.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable
from typing import Any

from pkg.errors import StartupError, one_line

__all__ = ["Lifespan"]

_log = logging.getLogger("pkg.asgi")


class Phase(enum.Enum):
    STARTING = "starting"
    STARTED = "started"
    STOPPING = "stopping"
    ENDED = "ended"  # or there was none


# The message that ends each phase, for better or worse, and what follows.
_ANSWERS = {
    "lifespan.startup.complete": (Phase.STARTING, Phase.STARTED),
    "lifespan.startup.failed": (Phase.STARTING, Phase.ENDED),
    "lifespan.shutdown.complete": (Phase.STOPPING, Phase.ENDED),
    "lifespan.shutdown.failed": (Phase.STOPPING, Phase.ENDED),
}

STACK = "Traceback (most recent call last)"  # begins the message of Starlette, which then raises what it tells of


class Lifespan:
    """One call of the application for the whole process.

    `mode`: `off` calls nothing; `on` insists on a lifespan; `auto` serves an application that has none.  `state`: what
    the application has put into the scope's `state`, of which each request gets a copy.
    """

    def __init__(self, app: Callable[..., Any], mode: str) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._mode = mode
        self._phase = Phase.ENDED if mode == "off" else Phase.STARTING
        self._failure: str | None = None  # the message of a failed startup or shutdown
        self._exit: BaseException | None = None  # a SystemExit or KeyboardInterrupt of the application's
        self._has_received = False
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Raises StartupError if the application says that it cannot start, or exits."""
        if self._mode == "off":
            return
        self._task = asyncio.create_task(self._run(), name="lifespan")
        await self._leaves(Phase.STARTING)
        if self._phase is Phase.STARTED:
            return
        error = self._error()
        if self._failure is not None or self._exit is not None:
            reason = self._failure or ""
            if error is not None:
                _log.critical("the application's startup has failed", exc_info=error)
                if not reason or reason.startswith(STACK):
                    reason = one_line(error)
            raise StartupError(f"the application's startup failed: {reason}".splitlines()[0]) from error
        if self._mode == "on":
            reason = f"{type(error).__name__}: {error}" if error is not None else "it has returned without an answer"
            raise StartupError(f"the application has no lifespan: {reason}".splitlines()[0]) from error
        # The specification lets an application without a lifespan raise whatever it likes.
        if error is not None and self._has_received:
            _log.warning("serving without a lifespan: the application's startup raised", exc_info=error)
        else:
            _log.info("the application has no lifespan")

    async def shutdown(self) -> None:
        """Waits for the application to shut down; logs why it did not.  Once more after a cancellation."""
        if self._phase not in (Phase.STARTED, Phase.STOPPING) or self._task is None:
            return
        self._phase = Phase.STOPPING
        self._stopping.set()
        if not self._task.done():
            await self._leaves(Phase.STOPPING)
        error = self._error()
        if self._failure is not None:
            _log.error("the application's shutdown failed: %s", self._failure)
        elif error is not None:
            _log.error("the application's shutdown raised", exc_info=error)

    async def _leaves(self, phase: Phase) -> None:
        """Waits until this phase has ended, or the call of the application has."""
        assert self._task is not None
        while self._phase is phase and not self._task.done():
            self._changed.clear()
            changed = asyncio.ensure_future(self._changed.wait())
            try:
                await asyncio.wait((changed, self._task), return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._app(scope, self._receive, self._send)
        except (SystemExit, KeyboardInterrupt) as error:  # which would end the event loop, whatever it waits for
            self._exit = error
            if self._phase is Phase.STARTED:
                _log.critical("the lifespan has raised %r; requests are served on", error, exc_info=True)

    def _error(self) -> BaseException | None:
        """What the application has raised, if its call has ended."""
        assert self._task is not None
        if not self._task.done() or self._task.cancelled():
            return None
        return self._exit or self._task.exception()

    async def _receive(self) -> dict[str, Any]:
        if not self._has_received:
            self._has_received = True
            return {"type": "lifespan.startup"}
        await self._stopping.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: dict[str, Any]) -> None:
        kind = message.get("type")
        of, following = _ANSWERS.get(str(kind), (None, Phase.ENDED))
        if of is not self._phase:
            raise RuntimeError(f"the message {kind!r} is not expected while the lifespan is {self._phase.value}")
        if str(kind).endswith(".failed"):
            self._failure = str(message.get("message", "")) or "no reason given"
        self._phase = following
        self._changed.set()
