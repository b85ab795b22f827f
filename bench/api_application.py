"""What HttpArena's profile API-4 asks of a server, as a raw ASGI application (http-arena.com, "API-4").

    /baseline11?a=1&b=2            the sum
    /json                          50 items with a total each, made for each request
    /async-db?min=10&max=50        items of that price from PostgreSQL, at most 50

Under our server connections are the service's own (`pkg.aconnection`), elsewhere of psycopg_pool's AsyncConnectionPool,
as many of them.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl

from bench.aconnections import connection, pool

SETUP = """
create table items (id integer primary key, name text not null, category text not null, price integer not null,
                    quantity integer not null, active boolean not null);
insert into items select i, 'Item ' || i, 'category ' || i % 7, i % 100, i % 13, i % 3 > 0
from generate_series(1, 100000) as i;
grant select on items to public;
create index on items (price);
analyze items;
"""
SELECT = "SELECT id, name, category, price, quantity, active FROM items WHERE price BETWEEN %s AND %s LIMIT %s"

ITEMS = [
    {"id": i, "name": f"Item {i}", "category": f"category {i % 7}", "price": i * 3, "quantity": i % 13, "active": True}
    for i in range(1, 51)
]


async def _query(low: int, high: int, most: int) -> list[dict[str, Any]]:
    async with connection() as lent:
        cursor = await lent.execute(SELECT, (low, high, most))
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]


async def asgi(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[..., Any]) -> None:
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    given = dict(parse_qsl(scope["query_string"].decode()))
    media_type = b"application/json"
    if scope["path"] == "/baseline11":
        media_type, body = b"text/plain", b"%d" % sum(map(int, given.values()))
    elif scope["path"] == "/json":
        items = [{**item, "total": item["price"] * item["quantity"]} for item in ITEMS]  # type: ignore[operator]
        body = json.dumps({"items": items, "count": len(items)}).encode()
    elif scope["path"] == "/async-db":
        found = await _query(int(given["min"]), int(given["max"]), int(given.get("limit", 50)))
        body = json.dumps({"items": found, "count": len(found)}).encode()
    else:
        body = b"ok"
    headers = [(b"content-type", media_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _lifespan(receive: Callable[[], Awaitable[Any]], send: Callable[..., Any]) -> None:
    await receive()
    async with pool():
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})
