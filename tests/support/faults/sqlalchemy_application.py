"""The application of the fault matrix through SQLAlchemy, on connections of `pkg.connect`.

/query          one query, with two seconds for all of it
/sleep?SECONDS  a query that takes so long, without a limit
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

import pkg
from pkg.integrations.sqlalchemy_pool import ServicePool

hasty = create_engine("postgresql+psycopg://", creator=lambda: pkg.connect(deadline=2), poolclass=ServicePool)
patient = create_engine("postgresql+psycopg://", creator=pkg.connect, poolclass=ServicePool)


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    try:
        if environ["PATH_INFO"] == "/sleep":
            with patient.connect() as connection:
                connection.execute(text("select pg_sleep(:seconds)"), {"seconds": float(environ["QUERY_STRING"])})
        else:
            with hasty.connect() as connection:
                connection.execute(text("select 1"))
    except DBAPIError as error:
        if isinstance(error.orig, pkg.DatabaseUnavailable):
            raise error.orig from error
        raise
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]
