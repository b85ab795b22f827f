"""Django's PostgreSQL backend on the pool: what Django calls opening and closing takes a connection and gives it back.

Where no service runs, as under manage.py, and for a database that has no pool, it connects as Django's own does.

OPTIONS may have `database`, the name of the pool's database, which is the alias, or "" for the alias `default`; and
`deadline`, in seconds, after which a connection that has not been closed is shut down.
"""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS
from django.db.backends.postgresql import base
from django.db.backends.postgresql.psycopg_any import IsolationLevel

import pkg
from pkg.database.borrowed import BorrowedConnection

__all__ = ["DatabaseWrapper"]

_READ_COMMITTED = IsolationLevel.READ_COMMITTED  # before Python 3.12 each look-up is a call


class DatabaseWrapper(base.DatabaseWrapper):  # type: ignore[misc]
    # Of Django's own pool, which would be a second one.
    pool = None

    _is_borrowed = False
    _has_portals = False  # cursors WITH HOLD, of which a stream that its client has left keeps one open

    _settings: dict[str, Any] | None = None  # from which _parameters were made
    _parameters: dict[str, Any]

    def get_connection_params(self) -> dict[str, Any]:
        """As Django's.  It is called in each request, so they are made again only if something else is set."""
        now = self.settings_dict
        if now != self._settings:
            parameters = super().get_connection_params()
            for name in ("database", "deadline"):
                parameters.pop(name, None)
            self._settings, self._parameters = {**now, "OPTIONS": {**now["OPTIONS"]}}, parameters
        return {**self._parameters, "context": base.get_adapters_template(settings.USE_TZ, self.timezone)}

    def get_new_connection(self, conn_params: dict[str, Any]) -> psycopg.Connection[Any]:
        options = self.settings_dict["OPTIONS"]
        name = options.get("database", "" if self.alias == DEFAULT_DB_ALIAS else self.alias)
        self._is_borrowed = self._has_portals = False
        try:
            connection = pkg.connect(name, deadline=options.get("deadline"))
        except pkg.NotRunningError:
            return super().get_new_connection(conn_params)  # type: ignore[no-any-return]
        wanted = conn_params.get("dbname")
        if wanted is not None and connection.pgconn.db != wanted.encode():
            connection.close()  # as for the test runner's database, or `postgres` from which it is made
            return super().get_new_connection(conn_params)  # type: ignore[no-any-return]
        try:
            level = options.get("isolation_level")
            self.isolation_level = _READ_COMMITTED if level is None else IsolationLevel(level)
            if level is not None:
                connection.isolation_level = self.isolation_level
            connection.cursor_factory = conn_params["cursor_factory"]
            connection.prepare_threshold = conn_params["prepare_threshold"]
            assert isinstance(connection, BorrowedConnection)
            connection.adapt_like(conn_params["context"])
        except BaseException:
            connection.close()
            raise
        self._is_borrowed = True
        return connection

    def _configure_timezone(self, connection: psycopg.Connection[Any]) -> bool:
        zone = self.timezone_name
        if zone and connection.pgconn.parameter_status(b"TimeZone") == zone.encode():
            return False  # the usual one, without the objects that Django makes to ask
        return super()._configure_timezone(connection)  # type: ignore[no-any-return]

    def chunked_cursor(self) -> Any:
        cursor = super().chunked_cursor()
        self._has_portals |= self.connection.autocommit  # it is WITH HOLD then
        return cursor

    def close_if_unusable_or_obsolete(self) -> None:
        """At the end of each request.  Whatever CONN_MAX_AGE is, a thread that keeps its connection would starve
        others, as the pool has fewer than there are threads."""
        if self._is_borrowed:
            self.close()
        else:
            super().close_if_unusable_or_obsolete()

    def _close(self) -> None:
        connection = self.connection
        if self._is_borrowed and connection is not None:
            self._is_borrowed = False
            role = self.settings_dict["OPTIONS"].get("assume_role")
            if role or self._has_portals:
                with contextlib.suppress(psycopg.Error):
                    self._leave_nothing(connection, role)
            connection.close()  # it raises no error that would have to be Django's
        else:
            super()._close()

    def _leave_nothing(self, connection: psycopg.Connection[Any], role: str | None) -> None:
        """Ends what Django has left in the session, as the next borrower may be another one."""
        connection.rollback()
        connection.autocommit = True
        if self._has_portals:
            connection.execute("close all")
        if role:
            connection.execute("reset role")
