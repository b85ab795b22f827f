"""What must be logged before this process may be killed.

The caller decides when to log it.
"""

from __future__ import annotations

import faulthandler
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pkg.diagnostics import stacks, tasks
from pkg.logs.output import last_words

if TYPE_CHECKING:
    import asyncio

    from pkg.diagnostics.snapshot import Status

__all__ = ["Late", "LateTasks", "say"]

_log = logging.getLogger("pkg.lastwords")

FLUSH_TIMEOUT = 0.5
MAX_REQUESTS = 100  # that are logged
MAX_NAMES = 20  # of tasks at the same place
_TOO_LONG = "%s %s took longer than %g s (request_timeout)"


def say(why: str, status: Status, flush: Callable[[float], bool]) -> None:
    """Logs the requests in flight, where each of their tasks waits, and every thread's stack; tasks and threads at the
    same place are grouped.

    `why`: the reason, for the first line.  `flush(timeout)` flushes the log; if it
    fails, the stacks are written to stderr.
    """
    taken = stacks.capture()
    blocked = status.blocked()
    requests = status.requests(taken)
    _log.critical("%s: %d requests in flight", why, sum(not request.is_websocket for request in requests))
    if blocked is not None:
        _log.critical("%s", blocked)
    for request in requests[:MAX_REQUESTS]:
        where = f", at {request.at}" if request.at else ""
        _log.critical(
            "WebSocket: %s %s for %.1f s, %s%s" if request.is_websocket else "in flight: %s %s for %.1f s, %s%s",
            request.method,
            request.target,
            request.age,
            request.worker or request.state,
            where,
        )
    for alike in tasks.grouped(task for request in requests for task in request.tasks):
        names = ", ".join(f"{task.name} ({task.serves})" for task in alike[:MAX_NAMES])
        if len(alike) > MAX_NAMES:
            names += f" and {len(alike) - MAX_NAMES} more"
        _say("task %s", names, tasks.text(alike[0], indent=""))
    for members, frames in stacks.grouped(taken):
        _say("stack of %s", ", ".join(stack.name for stack in members), stacks.text(frames, indent=""))
    if not flush(FLUSH_TIMEOUT):
        faulthandler.dump_traceback(last_words(), all_threads=True)


def _say(text: str, names: str, stack: str) -> None:
    record = _log.makeRecord(_log.name, logging.CRITICAL, __file__, 0, text, (names,), None)
    record.stack_info = stack
    _log.handle(record)


def _say_late(request: Any, timeout: float, what: str, stack: str | None) -> None:
    target = request.target.partition("?")[0]
    text = (_TOO_LONG + "; %s", request.method, target, timeout, what)
    record = _log.makeRecord(_log.name, logging.ERROR, __file__, 0, text[0], text[1:], None)
    record.stack_info = stack
    _log.handle(record)


class Late:
    """When called, logs each request that has taken longer than request_timeout, once, with its worker's stack."""

    def __init__(self, front: Any, timeout: float) -> None:
        self._front, self._timeout = front, timeout
        self._seen = 0
        self._known: dict[int, float] = {}  # for each thread, the age of its request when it was logged

    def __call__(self) -> None:
        total = self._front.stats().request_timeouts
        if total == self._seen:
            return
        new, self._seen = total - self._seen, total
        late = {request.thread: request for request in self._front.requests() if request.late}
        found = [request for thread, request in late.items() if request.age > 0 and not self._is_known(request)]
        self._known = {thread: request.age for thread, request in late.items()}
        taken = {stack.native_id: stack for stack in stacks.capture()} if found else {}
        for request in found:
            stack = taken.get(request.thread)
            at = stacks.text(stack.frames, indent="") if stack is not None else None
            _say_late(request, self._timeout, "its worker thread is still busy", at)
        if new > len(found):
            _log.error(
                "%d requests took longer than %g s (request_timeout); their worker threads have finished since",
                new - len(found),
                self._timeout,
            )

    def _is_known(self, request: Any) -> bool:
        """Whether the request has been logged.  A younger request of the same thread is a new one."""
        return bool(self._known.get(request.thread, float("inf")) <= request.age)


class LateTasks:
    """The same for an event loop, which calls cancels() before it cancels the task of such a request.

    When called, logs how many had come to their end before that, as the event loop was blocked.
    """

    def __init__(self, front: Any, timeout: float) -> None:
        self._front, self._timeout = front, timeout
        self._told = 0

    def cancels(self, request: Any, task: asyncio.Task[Any]) -> None:
        self._told += 1
        _say_late(request, self._timeout, "its task is cancelled", tasks.text(tasks.of(task), indent=""))

    def __call__(self) -> None:
        stats = self._front.stats()
        if stats.late:  # these will be cancelled
            return
        ended = stats.request_timeouts - self._told
        if ended > 0:
            self._told += ended
            _log.error(
                "%d requests took longer than %g s (request_timeout); their tasks have ended since",
                ended,
                self._timeout,
            )
