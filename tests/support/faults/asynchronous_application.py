"""The application of the fault matrix in an event loop, on connections of `pkg.aconnection`.

/query          one query, with two seconds for all of it
/sleep?SECONDS  a query that takes so long, without a limit
"""

from __future__ import annotations

from typing import Any

import pkg


async def app(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    if scope["path"] == "/sleep":
        async with pkg.aconnection() as conn:
            await conn.execute("select pg_sleep(%s)", (float(scope["query_string"]),))
    else:
        async with pkg.aconnection(timeout=2) as conn:
            await conn.execute("select 1")
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})
