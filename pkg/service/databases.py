"""The databases of the settings: their pools and their checks, opened one after the other and closed side by side.

It knows nothing of how a pool works.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pkg.errors import StartupError
from pkg.settings.declared import Settings

if TYPE_CHECKING:
    from pkg.database.database import Database
    from pkg.health.checks import Checker

__all__ = ["check_name", "close_all", "open_all", "verify"]

_log = logging.getLogger("pkg.service")
_variable = Settings.database_url.variable  # by name


def check_name(name: str) -> str:
    """What the check of a database is called."""
    return f"database-{name}" if name else "database"


def verify(settings: Mapping[str, Settings]) -> None:
    """Raises ConfigurationError for a URL that libpq does not accept.  Without a driver nothing is verified."""
    try:
        from pkg.database.source import Source
    except ImportError:
        return
    for name, own in settings.items():
        Source(own.database_url, own.database_url_file, own.connect_timeout, _variable(name)).verify()


def open_all(
    settings: Mapping[str, Settings], checker: Checker, oldest: Callable[[], float] | None = None
) -> dict[str, Database]:
    """The pools of the databases, by name, connecting, and checked from now on.  `settings`: those of each, by name.
    `oldest` is described at `Database.open`.

    Raises StartupError if there is no driver, and ConfigurationError if libpq does not accept a URL.  What had been
    started then is closed again.
    """
    opened: dict[str, Database] = {}
    try:
        for name, own in settings.items():
            opened[name] = _open(name, own, checker, oldest)
    except BaseException:  # there may be no thread for all of it, and the pool would wait for its threads at the exit
        close_all(opened, 0.2)
        raise
    if opened.keys() - {""}:
        pools = ", ".join(f"{_variable(name)} up to {own.pool_max_size}" for name, own in settings.items())
        most = sum(own.pool_max_size for own in settings.values())
        _log.info("connection pools: %s; %d connections at most", pools, most)
    return opened


def _open(name: str, settings: Settings, checker: Checker, oldest: Callable[[], float] | None) -> Database:
    try:
        from pkg.database.database import Database
        from pkg.database.pool import POOL_NAME
    except ImportError as error:
        from pkg.diagnostics.installation import why_no_driver

        raise StartupError(f"{_variable(name)} is set, but {why_no_driver(error)}") from error
    from pkg.health.checks import Check

    database = Database(
        settings.database_url,
        name=name or POOL_NAME,
        url_file=settings.database_url_file,
        role=settings.database_role,
        min_size=settings.pool_min_size,
        max_size=settings.pool_max_size,
        pool_timeout=settings.pool_timeout,
        connect_timeout=settings.connect_timeout,
        prepare=settings.prepare_statements,
        variable=_variable(name),
        processes=max(1, settings.workers),
    )
    try:
        database.open(oldest)
        checker.add(
            Check(
                check_name(name),
                database.check,
                interval=settings.database_check_interval,
                required=settings.database_required,
            )
        )
    except BaseException:
        database.close(timeout=0.2)
        raise
    return database


def close_all(databases: Mapping[str, Database], timeout: float) -> None:
    """Closes every pool.  They close side by side, so that all together take as long as the slowest.

    `timeout`: seconds for the threads of each; cancelling its queries takes more, as `Database.close` says.
    """
    first, *others = databases.values() or (None,)
    threads = []
    for database in others:
        thread = threading.Thread(target=database.close, args=(timeout,), name="database-closes", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread can be started
            database.close(timeout)
        else:
            threads.append(thread)
    if first is not None:
        first.close(timeout)
    for thread in threads:
        thread.join()
