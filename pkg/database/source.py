"""Turns the database URL of the settings into the connection string for libpq.

It connects to nothing, and its messages contain no part of the URL.
"""

from __future__ import annotations

import re

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pkg.errors import ConfigurationError
from pkg.settings.database_url import parse_database_url
from pkg.settings.secrets import read_secret

__all__ = ["Source"]

# Parameters for libpq unless the URL sets them.  The kernel gives up on a dead peer after 10 s in both cases: with data
# in flight (tcp_user_timeout, milliseconds) and without (keepalives).
_DEFAULTS = {
    "fallback_application_name": "pkg",
    "tcp_user_timeout": "10000",
    "keepalives": "1",
    "keepalives_idle": "4",
    "keepalives_interval": "2",
    "keepalives_count": "3",
}

_NOT_UNDERSTOOD = (
    "libpq does not accept the URL or one of its parameters"  # libpq's own message could quote the password
)


class Source:
    """A URL, or a file with a URL that is read each time, so that a new password needs no restart.

    `connect_timeout`: seconds, unless the URL sets it.  `variable`: the environment variable of the URL, for messages.
    """

    def __init__(self, url: str, url_file: str, connect_timeout: float, variable: str = "") -> None:
        self._url = url
        self._url_file = url_file
        self._connect_timeout = connect_timeout
        self._off = f"PKG_POOL{variable.removeprefix('DATABASE_URL')}=off" if variable else ""
        self._named = (variable, f"{variable}_FILE") if variable else ("url", "url_file")

    def verify(self) -> None:
        """Raises ConfigurationError if libpq does not accept the URL.  A file is not checked, as it may change."""
        if not self._url_file:
            try:
                self._complete(self._url)
            except (psycopg.Error, ValueError):
                raise ConfigurationError(f"{self._named[0]}: {self._reason(self._url)}") from None

    def conninfo(self) -> str:
        """The current connection string.  Raises psycopg.OperationalError if the file or its URL is invalid."""
        url = self._url
        if self._url_file:
            try:
                url = parse_database_url(read_secret(self._url_file))
            except ValueError as error:
                raise psycopg.OperationalError(f"{self._named[1]}: {error}") from None
        try:
            return self._complete(url)
        except (psycopg.Error, ValueError):
            raise psycopg.OperationalError(self._reason(url)) from None

    def _complete(self, url: str) -> str:
        given = conninfo_to_dict(url)
        wanted = {**_DEFAULTS, "connect_timeout": str(round(self._connect_timeout))}
        if "application_name" in given:
            del wanted["fallback_application_name"]
        return make_conninfo(url, **{name: value for name, value in wanted.items() if name not in given})

    def _reason(self, url: str) -> str:
        """Why libpq does not accept the URL, without a part of a password."""
        authority, _, query = url.partition("?")
        # If the @ is after the ?, or missing, the query may be the rest of a password with an unencoded ?.
        if "@" in authority and "@" not in query:
            known = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()} | {"ssl"}
            for pair in query.split("&") if query else ():
                name = pair.partition("=")[0]
                if name not in known and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,40}", name):
                    advice = f"; if only the application uses the URL, set {self._off}" if self._off else ""
                    return f"libpq has no parameter {name!r}{advice}"
        return _NOT_UNDERSTOOD
