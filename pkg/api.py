"""The functions that a served application may call; `pkg` exports them.

They only find the part of the running service that does the work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from pkg.errors import NotRunningError

if TYPE_CHECKING:
    from typing import Protocol

    import psycopg

    from pkg.health.checks import Check, Checker

    class Database(Protocol):
        def connection(self, timeout: float | None = None) -> AbstractContextManager[psycopg.Connection[Any]]: ...
        def connect(
            self, timeout: float | None = None, *, deadline: float | None = None
        ) -> psycopg.Connection[Any]: ...
        def aconnection(
            self, timeout: float | None = None
        ) -> AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]: ...
        async def aconnect(
            self, timeout: float | None = None, *, deadline: float | None = None
        ) -> psycopg.AsyncConnection[Any]: ...

    class Hooks(Protocol):
        def add_start(self, function: Callable[[], object]) -> None: ...
        def add_stop(self, function: Callable[[], object]) -> None: ...

    class Parts(Protocol):
        """What a running service has; None for what is not there, or not yet.

        `databases`: by name, "" for the one of DATABASE_URL.  `hooks`: None where no application is served.
        """

        @property
        def databases(self) -> Mapping[str, Database]: ...
        @property
        def checker(self) -> Checker | None: ...
        @property
        def hooks(self) -> Hooks | None: ...
        @property
        def is_draining(self) -> bool: ...
        def in_child(self) -> None:
            """Called in a process that the application has forked."""


__all__ = [
    "aconnect",
    "aconnection",
    "check",
    "connect",
    "connection",
    "draining",
    "fail_liveness",
    "on_start",
    "on_stop",
    "set_ready",
]

Function = TypeVar("Function", bound=Callable[[], object])

_current: Parts | None = None
_is_child = _is_watching = False
# Those registered by modules that were imported before the service existed.  Each service makes its own, without
# results from the time of another one.
early_checks: list[Callable[[], Check]] = []
early_starts: list[Callable[[], object]] = []
early_stops: list[Callable[[], object]] = []


def enter(parts: Parts) -> None:
    """From now on these are the parts that the functions find."""
    global _current, _is_watching
    _current = parts
    if not _is_watching:
        _is_watching = True
        os.register_at_fork(after_in_child=_leave_to_parent)


def leave() -> None:
    global _current
    _current = None


def _leave_to_parent() -> None:
    """Runs in a forked child, which has no service: it belongs to the parent."""
    global _is_child
    if _current is not None:
        _is_child = True
        _current.in_child()
        leave()


def is_entered() -> bool:
    return _current is not None


def current() -> Parts:
    """The parts of the running service.  Raises NotRunningError if there is none in this process."""
    if _current is None:
        if _is_child:
            raise NotRunningError("the service runs in the parent process, not in this forked child")
        raise NotRunningError(
            "no service is running in this process; start it with `python -m pkg`, or use `with pkg.running():`"
        )
    return _current


def database_of(database: str | float | None, timeout: float | None) -> tuple[Database, float | None]:
    """The database of this name, and the timeout, for a function with these two parameters, of which both may be left
    out: the first one may be the timeout.

    Raises NotRunningError if there is no such database in this process.
    """
    name = ""
    if isinstance(database, str):
        name = database
    elif timeout is None:
        timeout = database
    elif database is not None:
        raise TypeError(f"the name of the database is {database!r}, not text")
    databases = current().databases
    found = databases.get(name)
    if found is None:
        raise NotRunningError(_why_none(name, databases))
    return found, timeout


def _why_none(database: str, databases: Mapping[str, Database]) -> str:
    """Why there is no database of this name."""
    if not database:
        text = "the service has no pool: DATABASE_URL is not set, or PKG_POOL is off"
        return f"{text}; those with a name are: {', '.join(databases)}" if databases else text
    there = ", ".join(repr(name) if name else "the one of DATABASE_URL, without a name" for name in databases)
    return f"the service has no database {database!r}; it has: {there or 'none'}"


def connection(
    database: str | float | None = "", timeout: float | None = None
) -> AbstractContextManager[psycopg.Connection[Any]]:
    """A connection from a pool, for a `with` block, which commits at its end or rolls back if it raised.

    `database`: the name of the database, as `replica` for the one of DATABASE_URL_REPLICA; without it, the one of
    DATABASE_URL.  `timeout`, which may come first: seconds for the whole block, including the wait for a connection and
    the commit.

    Raises DatabaseUnavailable if no connection becomes free in time or the timeout passes, and NotRunningError if there
    is no such pool in this process.
    """
    # As every request passes here, the usual call takes one look-up; a number is the name of no database.
    found = _current.databases.get(database) if _current is not None else None  # type: ignore[arg-type]
    if found is None:
        found, timeout = database_of(database, timeout)
    return found.connection(timeout)


def connect(
    database: str | float | None = "", timeout: float | None = None, *, deadline: float | None = None
) -> psycopg.Connection[Any]:
    """A psycopg connection from a pool; its close() rolls back what is open and gives it back.

    It is for libraries that open and close connections themselves, such as SQLAlchemy:
    `create_engine("postgresql+psycopg://", creator=pkg.connect, poolclass=NullPool)`.

    `database`: as for `connection`.  `timeout`, which may come first: maximum time in seconds to wait for a connection.
    `deadline`: seconds until it must have been closed; then it is shut down, and the query that runs on it ends with an
    OperationalError.  The time that a request has left bounds both.  Raises as `connection` does.
    """
    found = _current.databases.get(database) if _current is not None else None  # type: ignore[arg-type]
    if found is None:
        found, timeout = database_of(database, timeout)
    return found.connect(timeout, deadline=deadline)


def aconnection(
    database: str | float | None = "", timeout: float | None = None
) -> AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]:
    """As `connection`, for an `async with` block: psycopg's AsyncConnection from the same pool.

    Nothing blocks the event loop, and the deadline ends a statement also while something else blocks it.  If the task
    is cancelled while a statement runs, the statement is cancelled on the server, and the connection is closed.
    """
    found = _current.databases.get(database) if _current is not None else None  # type: ignore[arg-type]
    if found is None:
        found, timeout = database_of(database, timeout)
    return found.aconnection(timeout)


async def aconnect(
    database: str | float | None = "", timeout: float | None = None, *, deadline: float | None = None
) -> psycopg.AsyncConnection[Any]:
    """As `connect`: psycopg's AsyncConnection from the same pool, whose `await close()` gives it back.

    For SQLAlchemy: `create_async_engine("postgresql+psycopg://", async_creator=pkg.aconnect, poolclass=NullPool)`.
    """
    found, timeout = database_of(database, timeout)
    return await found.aconnect(timeout, deadline=deadline)


def check(
    name: str, *, interval: float = 5.0, timeout: float = 1.0, required: bool = True
) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """Makes the decorated function a readiness check, which fails by raising an exception or by returning False.

    It runs in a thread of its own.  A coroutine function runs on the event loop of an ASGI application, from the end of
    its startup on, and otherwise in an event loop of its own.

    `interval`: seconds between two runs.  `timeout`: seconds after which a run has failed.  `required`: whether a
    failure makes the service unready; otherwise it is only degraded.  Raises ValueError for a name or a number out of
    range.
    """

    def register(probe: Callable[[], object]) -> Callable[[], object]:
        from pkg.health.checks import Check

        def make() -> Check:
            return Check(name, probe, interval=interval, timeout=timeout, required=required)

        made = make()
        if _current is not None and _current.checker is not None:
            _current.checker.add(made)
        else:
            early_checks.append(make)
        return probe

    return register


def on_start(function: Function) -> Function:
    """Has the service run `function` once in the process that serves, after the import of the application and before
    its first request; for threads, clients and exporters that must not begin in another process.  A decorator, or a
    plain call.

    Such functions run in the order of registration, in the main thread, and before ASGI's lifespan; the pool is open.
    A coroutine function runs on the event loop of an ASGI application; elsewhere it is refused at the start.  If one
    fails, the process ends with exit code 3.

    In `pkg.running()` and in `pkg.Server` it is not run.  Raises RuntimeError if the application has started, and
    TypeError for what cannot be called.
    """
    _check_callable(function)
    hooks = _current.hooks if _current is not None else None
    (early_starts.append if hooks is None else hooks.add_start)(function)
    return function


def on_stop(function: Function) -> Function:
    """Has the service run `function` once when the last request has ended and ASGI's lifespan is shut down, while the
    pool is still open.  A decorator, or a plain call, also while the application serves.

    Such functions run in the reverse order of registration, each in a thread; a coroutine function runs as that of
    `on_start` does.  What fails is logged, and so is what takes longer than its share of the rest of `drain_timeout`.
    They also run after a start function has failed.

    In `pkg.running()` and in `pkg.Server` it is not run.  Raises RuntimeError if the application has stopped, and
    TypeError for what cannot be called.
    """
    _check_callable(function)
    hooks = _current.hooks if _current is not None else None
    (early_stops.append if hooks is None else hooks.add_stop)(function)
    return function


def _check_callable(function: object) -> None:
    if not callable(function):
        raise TypeError(f"{function!r} is no function")


def set_ready(ready: bool, reason: str = "") -> None:
    """Sets the state of the check `application`: False makes the readiness page fail, True lets it pass again."""
    checker = current().checker
    assert checker is not None
    checker.set_ready(ready, reason)


def draining() -> bool:
    """Whether the service has been told to stop; a stream without an end should end soon then.

    Raises NotRunningError where no service runs.
    """
    return current().is_draining


def fail_liveness(reason: str) -> None:
    """Reports that this process cannot recover: /healthz returns 503 from now on, for good."""
    checker = current().checker
    assert checker is not None
    checker.fail_liveness(reason)
