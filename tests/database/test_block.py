"""What a block of `pkg.connection()` leaves behind: nothing on its connection, and true numbers about it."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.string import StrDumper

from pkg.database.database import Database
from tests.support.client import get, wait_for
from tests.support.faults.postgres import Postgres
from tests.support.ports import free_port
from tests.support.processes import ask, in_one_process, running


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def db(server: Postgres) -> Iterator[Database]:
    """With one connection, so that the next borrower has the last one's."""
    db = Database(url=server.url, min_size=1, max_size=1, connect_timeout=2.0)
    db.open()
    try:
        wait_for(lambda: db.stats()["pool_available"] == 1, 10, "a connection")
        yield db
    finally:
        db.close(2.0)


def pid(db: Database) -> int:
    with db.connection() as conn:
        return conn.info.backend_pid


# Whatever psycopg's Connection lets its user set, without what a session keeps by SQL.
SETTINGS: dict[str, Callable[[Any], object]] = {
    "autocommit": lambda conn: setattr(conn, "autocommit", True),
    "isolation_level": lambda conn: setattr(conn, "isolation_level", psycopg.IsolationLevel.SERIALIZABLE),
    "read_only": lambda conn: setattr(conn, "read_only", True),
    "deferrable": lambda conn: setattr(conn, "deferrable", True),
    "row_factory": lambda conn: setattr(conn, "row_factory", psycopg.rows.dict_row),
    "cursor_factory": lambda conn: setattr(conn, "cursor_factory", psycopg.RawCursor),
    "server_cursor_factory": lambda conn: setattr(conn, "server_cursor_factory", psycopg.RawServerCursor),
    "prepare_threshold": lambda conn: setattr(conn, "prepare_threshold", 0),
    "prepared_max": lambda conn: setattr(conn, "prepared_max", 3),
    "notice handler": lambda conn: conn.add_notice_handler(print),
    "no notice handler": lambda conn: conn._notice_handlers.clear(),
    "notify handler": lambda conn: conn.add_notify_handler(print),
    "dumper": lambda conn: conn.adapters.register_dumper(int, StrDumper),
    "loader": lambda conn: conn.adapters.register_loader("int4", psycopg.types.string.TextLoader),
    "type": lambda conn: conn.adapters.types.add(psycopg.types.TypeInfo("mood", 99999, 99998)),
    "other adapters": lambda conn: conn.adapters.__init__(psycopg.adapt.AdaptersMap(changed())),
}


def changed() -> psycopg.adapt.AdaptersMap:
    adapters = psycopg.adapt.AdaptersMap(psycopg.adapters)
    adapters.register_dumper(int, StrDumper)
    return adapters


def state(conn: Any) -> dict[str, object]:
    names = (
        "autocommit", "isolation_level", "read_only", "deferrable", "row_factory", "cursor_factory",
        "server_cursor_factory", "prepare_threshold", "prepared_max",
    )  # fmt: skip
    return {
        **{name: getattr(conn, name) for name in names},
        "handlers": (list(conn._notice_handlers), list(conn._notify_handlers)),
        "int": conn.adapters.get_dumper(int, psycopg.adapt.PyFormat.AUTO),
        "int4": conn.adapters.get_loader(23, psycopg.pq.Format.TEXT),
        "mood": conn.adapters.types.get("mood"),
    }


@pytest.mark.parametrize("change", SETTINGS.values(), ids=SETTINGS)
def test_what_is_set_ends_with_the_block(db: Database, change: Callable[[Any], object]) -> None:
    with db.connection() as conn:
        conn.execute("select %s::int", [1])
        number, before = conn.info.backend_pid, state(conn)
    with db.connection() as conn:
        change(conn)
        assert state(conn) != before
    with db.connection() as conn:
        assert (conn.info.backend_pid, state(conn)) == (number, before)
        assert conn.execute("select %s::int + 1", [1]).fetchone() == (2,)


def test_notifications_end_with_the_block(db: Database) -> None:
    with db.connection() as conn:
        conn.execute("listen news")
    with db.connection() as conn:
        conn.execute("notify news, 'of the last borrower'")
    with db.connection() as conn:
        conn.execute("unlisten *")
        conn.commit()
        assert list(conn.notifies(timeout=0.0)) == []


LEFT: dict[str, Callable[[Any], object]] = {
    "a pipeline": lambda conn: conn.pgconn.enter_pipeline_mode(),
    "a two-phase transaction": lambda conn: setattr(conn, "_tpc", (conn.xid(1, "a", "b"), True)),
}


@pytest.mark.parametrize("leave", LEFT.values(), ids=LEFT)
def test_what_cannot_be_undone_costs_the_connection(db: Database, leave: Callable[[Any], object]) -> None:
    number = pid(db)
    kept = []
    with contextlib.suppress(psycopg.Error), db.connection() as conn:
        kept.append(leave(conn))
    with db.connection(5.0) as conn:
        assert conn.info.backend_pid != number
        assert conn.execute("select 1").fetchone() == (1,)


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_close_inside_a_block(db: Database, timeout: float | None) -> None:
    """The connection is discarded; what was not committed is lost, as psycopg says."""
    number = pid(db)
    with db.connection(timeout) as conn:
        conn.execute("select 1")
        conn.close()
    with pytest.raises(KeyError), db.connection(timeout) as conn:
        conn.close()
        raise KeyError
    wait_for(lambda: db.stats()["pool_available"] == 1, 10, "another connection")
    assert pid(db) != number


def test_two_pools_keep_two_names(server: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    url = server.url.replace("first-secret", "wrong")
    pools = [Database(url=url, min_size=1, max_size=1, connect_timeout=2.0, name=name) for name in ("orders", "users")]
    for db in pools:
        db.open()
    try:
        for name in ("orders", "users"):
            wait_for(lambda name=name: f"'{name}'" in caplog.text, 10, name)
    finally:
        for db in pools:
            db.close(2.0)


def test_pools_of_the_applications_own_are_left_alone(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("psycopg.pool")
    log.warning("discarding closed connection: %s", "of another pool")
    log.warning("error connecting in %r: %s", "theirs", OSError("no route"))
    assert [record.getMessage() for record in caplog.records] == [
        "discarding closed connection: of another pool",
        "error connecting in 'theirs': no route",
    ]


def test_time_of_use(db: Database) -> None:
    before = db.stats()["usage_ms"]
    with db.connection() as conn:
        conn.execute("select pg_sleep(0.3)")
    assert 300 <= db.stats()["usage_ms"] - before < 5000


LOST = """
import pkg

OTHERS = \"\"\"
select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity
where usename = current_user and pid <> pg_backend_pid()
\"\"\"

def app(environ, start_response):
    with pkg.connection() as conn:
        conn.execute("select 1")
    if environ["PATH_INFO"] == "/others":
        with pkg.connection() as conn:
            conn.execute(OTHERS)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]

async def asgi(scope, receive, send):
    async with pkg.aconnection() as conn:
        await conn.execute("select 1")
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"ok"})
"""


@in_one_process
@pytest.mark.parametrize("finder", ["thread", "task", "check"])
def test_metrics_tell_connections_that_were_lost_in_the_pool(finder: str, server: Postgres, tmp_path: Path) -> None:
    """From those that came back broken, whoever finds them."""
    admin = ("127.0.0.1", free_port())
    environ = {"DATABASE_URL": server.url, "PKG_ADMIN": f"{admin[0]}:{admin[1]}"}
    environ |= {"PKG_POOL_MIN_SIZE": "3", "PKG_POOL_MAX_SIZE": "3"}
    environ |= {"PKG_INTERFACE": "asgi", "PKG_LIFESPAN": "off"} if finder == "task" else {}
    environ["PKG_DATABASE_CHECK_INTERVAL"] = "200ms" if finder == "check" else "60s"
    name = "application:asgi" if finder == "task" else "application:app"

    def counted(what: str) -> int:
        start = f'{what}{{db_client_connection_pool_name="main"}} '
        return int(ask(admin, "/metrics")[2].partition(f"\n{start}")[2].split()[0])

    with running(tmp_path, LOST, app=name, **environ) as process:
        idle = 'db_client_connections{db_client_connection_pool_name="main",db_client_connection_state="idle"} 3\n'
        wait_for(lambda: idle in ask(admin, "/metrics")[2], 10, "a full pool")
        wait_for(lambda: ask(process.address, "/readyz")[0] == 200, 10, "readiness")
        assert ask(process.address, "/")[0] == 200
        assert counted("db_client_connection_lost_total") == 0
        if finder == "check":
            assert ask(process.address, "/others")[0] == 200
            lost = 2
        else:
            lost = server.terminate()
            assert ask(process.address, "/")[0] == 200
        wait_for(lambda: counted("db_client_connection_lost_total") == lost > 0, 5, "all of them to be counted")
        assert counted("db_client_connection_returned_bad_total") == 0
        wait_for(lambda: idle in ask(admin, "/metrics")[2], 10, "others in their place")
        assert process.stop() == 0, process.errors()


LEAK = """
import pkg
leases = []

def app(environ, start_response):
    with pkg.connection() as conn:
        conn.execute("select pg_sleep(0.3)")
    if environ["PATH_INFO"] == "/leak":
        leases.append(pkg.connection())
        leases[-1].__enter__()
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def test_the_admin_pages_say_so(server: Postgres, tmp_path: Path) -> None:
    """The time of use, and a connection that nobody gave back."""
    admin = ("127.0.0.1", free_port())
    environ = {"DATABASE_URL": server.url, "PKG_ADMIN": f"{admin[0]}:{admin[1]}", "PKG_POOL_MIN_SIZE": "2"}
    with running(tmp_path, LEAK, **environ) as process:
        wait_for(lambda: ask(process.address, "/readyz")[0] == 200, 10, "readiness")
        assert ask(process.address, "/")[0] == 200
        page = ask(admin, "/metrics")[2]
        name = 'db_client_connection_use_time_seconds_sum{db_client_connection_pool_name="main"} '
        assert float(page.partition(name)[2].split()[0]) >= 0.3
        assert "leaked" not in ask(admin, "/statusz")[2]
        assert ask(process.address, "/leak")[0] == 200
        wait_for(
            lambda: "a connection is in use while no request is in flight; leaked" in status(admin), 5, "a finding"
        )
        assert re.search(r"taken +\d+ s, application\.py:\d+ in app", ask(admin, "/debug/pool")[2])
        kept = "a connection is kept that no request uses, taken at application.py:"
        wait_for(lambda: kept in status(admin), 15, "a degraded check")
        assert ask(process.address, "/readyz")[0] == 200
        process.await_message(r"a connection is kept that no request uses; it was taken at application\.py:\d+ in app")


def status(admin: tuple[str, int]) -> str:
    return ask(admin, "/statusz")[2]


RECORDS = """
import logging, pkg

made, factory = [], logging.getLogRecordFactory()

def counting(name, *args, **kwargs):
    made.append(name)
    return factory(name, *args, **kwargs)

logging.setLogRecordFactory(counting)

def app(environ, start_response):
    before = made.count("psycopg.pool")
    for _ in range(10):
        with pkg.connection() as conn:
            conn.execute("select 1")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(made.count("psycopg.pool") - before).encode()]
"""


def test_lending_makes_no_log_records(server: Postgres, tmp_path: Path) -> None:
    """psycopg_pool makes one for each borrower at INFO, which took as long as everything else together."""
    with running(tmp_path, RECORDS, DATABASE_URL=server.url) as process:
        assert get(process.address, "/").body == b"0"
