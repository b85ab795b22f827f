"""A pool that may want more connections than the server, the role or the database has: one warning, and a finding."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pkg.database.connection import Connection
from pkg.database.slots import shortage
from tests.support.client import wait_for
from tests.support.faults.pgbouncer import PGBOUNCER, bouncing
from tests.support.faults.postgres import Postgres
from tests.support.ports import free_port
from tests.support.processes import Process, ask, running

SETTINGS = {"max_connections": 20, "superuser_reserved_connections": 3, "reserved_connections": 2}
APPS = {
    "wsgi": "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'ok']\n",
    "asgi": """
import pkg
async def app(scope, receive, send):
    assert scope["type"] == "http"
    async with pkg.aconnection(timeout=5) as connection:
        await connection.execute("select 1")
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"ok"})
""",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres(settings=SETTINGS) as server:
        yield server


@contextlib.contextmanager
def limited(server: Postgres, kind: str, name: str, limit: int) -> Iterator[None]:
    server.sql(f'alter {kind} "{name}" connection limit {limit}')
    try:
        yield
    finally:
        server.sql(f'alter {kind} "{name}" connection limit -1')


def told(url: str, max_size: int) -> str:
    with Connection.connect(url) as conn:
        text = shortage(conn, max_size)
        assert not conn.autocommit
    return text


def test_the_smallest_limit_counts(server: Postgres) -> None:
    with Connection.connect(server.url) as conn:
        database = conn.info.dbname
    assert told(server.url, 15) == ""
    assert told(server.url, 16) == (
        "pool_max_size is 16, but the server has 15, as 5 of 20 are reserved: "
        "lower pool_max_size to 15 or less, or raise max_connections"
    )
    with limited(server, "role", "app", 5), limited(server, "database", database, 7):
        assert told(server.url, 5) == ""
        assert told(server.url, 6) == (
            'pool_max_size is 6, but the role "app" may have 5: lower pool_max_size to 5 or less, or raise the limit '
            '(alter role "app" connection limit 6)'
        )
    with limited(server, "database", database, 7):
        assert f'the database "{database}" may have 7' in told(server.url, 8)
        assert told(server.admin_url, 20) == ""  # nothing is reserved from superusers
        assert "the server has 20:" in told(server.admin_url, 21)


def warnings(process: Process) -> list[str]:
    return [line["message"] for line in process.lines() if "pool_max_size is" in line["message"]]


@pytest.mark.parametrize("interface", APPS)
def test_the_service_warns_once(interface: str, server: Postgres, tmp_path: Path) -> None:
    environ = {"DATABASE_URL": server.url, "DATABASE_URL_MORE": server.url, "PKG_POOL_MAX_SIZE_MORE": "3"}
    admin = "127.0.0.1", free_port()
    environ |= {
        "PKG_ADMIN": f"{admin[0]}:{admin[1]}",
        "PKG_DATABASE_CHECK_INTERVAL": "0.1s",
        "PKG_POOL_MIN_SIZE": "1",
        "PKG_POOL_MAX_SIZE": "4",
    }
    with limited(server, "role", "app", 3), running(tmp_path, APPS[interface], **environ) as process:
        wait_for(lambda: ask(process.address, "/readyz")[0] == 200, 15)
        wait_for(lambda: warnings(process), 15)
        assert ask(process.address, "/")[0] == 200
        time.sleep(0.5)  # further checks
        assert len(warnings(process)) == 1
        assert warnings(process)[0].startswith('pool_max_size is 4, but the role "app" may have 3: lower')
        status = json.loads(ask(admin, "/statusz", Accept="application/json")[2])
        assert warnings(process)[0] in [finding["text"] for finding in status["findings"]]
        assert process.stop() == 0


def test_all_workers_count(server: Postgres, tmp_path: Path) -> None:
    environ = {"DATABASE_URL": server.url, "PKG_POOL_MIN_SIZE": "1", "PKG_POOL_MAX_SIZE": "8", "PKG_ADMIN": "off"}
    environ["PKG_DATABASE_CHECK_INTERVAL"] = "0.1s"
    with running(tmp_path, APPS["wsgi"], WEB_CONCURRENCY="2", **environ) as process:
        wait_for(lambda: warnings(process), 15)
        assert warnings(process)[0].startswith(
            "pool_max_size is 8 in each of 2 workers, 16 together, but the server has 15"
        )
        assert "lower pool_max_size to 7 or less" in warnings(process)[0]
        assert process.stop() == 0


@pytest.mark.skipif(PGBOUNCER is None, reason="not installed: pgbouncer (a package of Debian's)")
def test_nothing_is_said_of_a_server_behind_a_pooler(server: Postgres) -> None:
    with bouncing(server, 2) as url:
        assert told(url, 1000) == ""
