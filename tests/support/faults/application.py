"""The application of the fault matrix: each request runs a query.

/query          one query, with two seconds for all of it
/sleep?SECONDS  a query that takes so long, without a limit
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pkg


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/sleep":
        with pkg.connection() as conn:
            conn.execute("select pg_sleep(%s)", (float(environ["QUERY_STRING"]),))
    else:
        with pkg.connection(timeout=2) as conn:
            conn.execute("select 1")
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]
