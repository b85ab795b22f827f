"""What a served application finds in its process, for code that is not served: tests, scripts, task queues."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pkg import api
from pkg.errors import NotRunningError
from pkg.health.checks import Checker
from pkg.service import databases
from pkg.settings.declared import known_variables, load

if TYPE_CHECKING:
    from pkg.database.database import Database
    from pkg.settings.declared import Settings

__all__ = ["running"]

_log = logging.getLogger("pkg.service")


class _Parts:
    hooks = None  # there is no application whose start and end this would be

    def __init__(self) -> None:
        self.checker = Checker(publish=_ignore, renew=_ignore)
        self.databases: Mapping[str, Database] = {}

    def start(self, settings: Settings) -> None:
        self.checker.start()
        self.databases = databases.open_all(settings.databases, self.checker)
        for make in api.early_checks:
            self.checker.add(make())
        self.checker.startup_done()

    def close(self) -> None:
        try:
            self.checker.stop()
        finally:
            databases.close_all(self.databases, 5.0)

    @property
    def is_draining(self) -> bool:
        return False

    def in_child(self) -> None:
        self.checker.in_child()


def _ignore(*_: object) -> None:
    """Nobody asks for the pages of the checks."""


@contextlib.contextmanager
def running(**environment: str) -> Iterator[None]:
    """Gives code that is not served what an application finds in the service, for a `with` block: `connection()` and
    its pool, checks, which run, and `set_ready()`.  Afterwards neither threads nor connections are left; only a
    check that hangs ends later, in its daemon thread.

        with pkg.running(DATABASE_URL="postgresql://..."):
            assert app.test_client().get("/").status_code == 200

    Functions of `on_start` and `on_stop` do not run: they belong to the process that serves.

    `environment`: settings under the names of their environment variables, which win over those of the process.  It
    does not wait for the database: `connection()` does, for up to PKG_POOL_TIMEOUT seconds.

    Raises ConfigurationError for a setting that is wrong, TypeError for one that does not exist or is not text,
    StartupError without a driver for the database, and NotRunningError if the process has a service already, or is in
    such a block.
    """
    for name, text in environment.items():
        if not isinstance(text, str):
            raise TypeError(f"running() got {name} as {type(text).__name__}, not as text")
    every = {**os.environ, **environment}
    unknown = environment.keys() - known_variables(every)
    if unknown:
        raise TypeError(f"running() got a setting that does not exist: {', '.join(sorted(unknown))}")
    settings = load(every)
    for warning in settings.warnings:
        _log.warning("%s", warning)
    parts = _Parts()
    if api.is_entered():
        raise NotRunningError("this process has a service already, whose pool `pkg.connection()` uses")
    api.enter(parts)  # before anything takes time, so that another thread cannot enter as well
    try:
        parts.start(settings)
        yield
    finally:
        api.leave()
        parts.close()
