"""The application of the fault tests with a pool of SQLAlchemy's own: WSGI, or ASGI for the drivers of asyncio.

ENGINE_DRIVER names the dialect, ENGINE_OPTIONS has the engine's options in JSON, and ENGINE_ROLE is that of the check.

/query           one query
/sleep?SECONDS   a query that takes so long
/block?SECONDS   keeps the thread, or the event loop, busy for so long
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from sqlalchemy import create_engine, make_url, text

from pkg.integrations.sqlalchemy import check_engine

DRIVER = os.environ.get("ENGINE_DRIVER", "psycopg")
OPTIONS = json.loads(os.environ.get("ENGINE_OPTIONS", "{}"))
ROLE = os.environ.get("ENGINE_ROLE", "any")
URL = make_url(os.environ["DATABASE_URL"]).set(drivername=f"postgresql+{DRIVER.removesuffix('_asyncio')}")
HEADERS = [("Content-Type", "text/plain"), ("Content-Length", "2")]


def statement(path: str, query: str) -> Any:
    return text(f"select pg_sleep({float(query)})" if path == "/sleep" else "select 42")


if DRIVER in ("asyncpg", "psycopg_asyncio"):
    from sqlalchemy.ext.asyncio import create_async_engine

    asynchronous = create_async_engine(URL, **OPTIONS)
    check_engine(asynchronous, role=ROLE)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        path, query, status = scope["path"], scope["query_string"].decode(), 200
        if path == "/block":
            time.sleep(float(query))
        else:
            try:
                async with asynchronous.connect() as connection:
                    await connection.execute(statement(path, query))
            except Exception:
                status = 503
        await send(
            {"type": "http.response.start", "status": status,
             "headers": [(name.lower().encode(), value.encode()) for name, value in HEADERS]}
        )  # fmt: skip
        await send({"type": "http.response.body", "body": b"ok"})

else:
    engine = create_engine(URL, **OPTIONS)
    check_engine(engine, role=ROLE)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        path, query, status = environ["PATH_INFO"], environ["QUERY_STRING"], "200 OK"
        if path == "/block":
            time.sleep(float(query))
        else:
            try:
                with engine.connect() as connection:
                    connection.execute(statement(path, query))
            except Exception:
                status = "503 Service Unavailable"
        start_response(status, HEADERS)
        return [b"ok"]
