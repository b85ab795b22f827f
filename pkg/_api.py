"""What an application may call while it is served; `pkg` exports these names.

It only finds the running service and its part: what a call does is that part's own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pkg.errors import NotRunningError

if TYPE_CHECKING:
    import psycopg

    from pkg.health import Check
    from pkg.service import Service

__all__ = ["check", "connection", "fail_liveness", "set_ready"]

_current: Service | None = None
_is_child = _is_watching = False
early_checks: list[Check] = []  # of modules that were imported before there was a service


def enter(service: Service) -> None:
    global _current, _is_watching
    _current = service
    if not _is_watching:
        _is_watching = True
        os.register_at_fork(after_in_child=_leave_to_parent)


def leave() -> None:
    global _current
    _current = None


def _leave_to_parent() -> None:
    """In a child: the service is the parent's."""
    global _is_child
    if _current is not None:
        _is_child = True
        _current.in_child()
        leave()


def current() -> Service:
    """The running service.  NotRunningError: there is none in this process."""
    if _current is None:
        if _is_child:
            raise NotRunningError("the service runs in the parent process, not in this forked child")
        raise NotRunningError("no service is running in this process; start it with `python -m pkg`")
    return _current


def connection(timeout: float | None = None) -> AbstractContextManager[psycopg.Connection[Any]]:
    """A connection of the pool, for the body of a `with`."""
    database = current().database
    if database is None:
        raise NotRunningError("the service has no pool: DATABASE_URL is not set, or PKG_POOL is off")
    return database.connection(timeout=timeout)


def check(
    name: str, *, interval: float = 5.0, timeout: float = 1.0, required: bool = True
) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """Makes the decorated function a readiness check; it fails by raising, or by returning False."""

    def register(probe: Callable[[], object]) -> Callable[[], object]:
        from pkg.health import Check

        made = Check(name, probe, interval=interval, timeout=timeout, required=required)
        if _current is not None and _current.checker is not None:
            _current.checker.add(made)
        else:
            early_checks.append(made)
        return probe

    return register


def set_ready(ready: bool, reason: str = "") -> None:
    """Readiness as the application sees it: the check `application`."""
    checker = current().checker
    assert checker is not None
    checker.set_ready(ready, reason)


def fail_liveness(reason: str) -> None:
    """Says that this process cannot recover by itself: /healthz is 503 from now on."""
    checker = current().checker
    assert checker is not None
    checker.fail_liveness(reason)
