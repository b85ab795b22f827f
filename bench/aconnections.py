"""Connections of an ASGI application to PostgreSQL: under our server the service's own, elsewhere of psycopg_pool."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

OURS = os.environ.get("BENCH_SERVER") == "pkg"
MOST, PATIENCE = 10, 5.0  # connections of each process, as ours has by default; seconds

_pools: list[Any] = []


@contextlib.asynccontextmanager
async def pool() -> AsyncIterator[None]:
    """For the application's lifespan, as psycopg's pages show it; ours has one already."""
    if OURS:
        yield
        return
    from psycopg_pool import AsyncConnectionPool

    async with AsyncConnectionPool(os.environ["DATABASE_URL"], min_size=2, max_size=MOST, open=False) as opened:
        _pools.append(opened)
        yield


@contextlib.asynccontextmanager
async def connection() -> AsyncIterator[Any]:
    if OURS:
        import pkg

        async with pkg.aconnection() as lent:
            yield lent
    else:
        async with _pools[0].connection(timeout=PATIENCE) as lent:
            yield lent
