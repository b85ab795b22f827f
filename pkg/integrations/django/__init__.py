"""A database backend of Django whose connections come from the pool: `"ENGINE": "pkg.integrations.django"`.

`base` is the backend, `middleware` answers 503 in an outage, and `readiness` has a check of Django's own connections.
"""

from __future__ import annotations

import os
from typing import Any

__all__ = ["database"]


def database(name: str = "", *, deadline: float | None = None) -> dict[str, Any]:
    """An entry of DATABASES for the backend, from DATABASE_URL, or from DATABASE_URL_<NAME> for a `name`; also from a
    file that DATABASE_URL_FILE or DATABASE_URL_<NAME>_FILE names.

    Under manage.py, where no service runs, Django connects by it.  Without a URL the entry names no database, as for
    commands that need none.  `deadline`: seconds after which a connection that a request still uses is shut down.

    Raises ConfigurationError if the URL is not understood; no message contains a part of it.
    """
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    from pkg.errors import ConfigurationError
    from pkg.settings.database_url import parse_database_url
    from pkg.settings.secrets import read_secret

    variable = f"DATABASE_URL_{name.upper()}" if name else "DATABASE_URL"
    try:
        url, file = os.environ.get(variable, ""), os.environ.get(f"{variable}_FILE", "")
        if file and not url:
            url = read_secret(file)
        given = conninfo_to_dict(parse_database_url(url)) if url else {}
    except (ValueError, OSError) as error:
        raise ConfigurationError(f"{variable}: {error}") from None
    except psycopg.Error:
        raise ConfigurationError(f"{variable}: libpq does not accept the URL or one of its parameters") from None
    user = given.pop("user", None) or ""
    return {
        "ENGINE": __name__,
        "NAME": given.pop("dbname", None) or os.environ.get("PGDATABASE") or user,
        "USER": user,
        "PASSWORD": given.pop("password", None) or "",
        "HOST": given.pop("host", None) or "",
        "PORT": given.pop("port", None) or "",
        "OPTIONS": {**given, "database": name, "deadline": deadline},
    }
