"""A real PgBouncer between the pool and the server, which gives each transaction another session."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pkg.database.database import Database
from pkg.errors import DatabaseUnavailable
from tests.support.client import wait_for
from tests.support.faults.pgbouncer import PGBOUNCER, bouncing
from tests.support.faults.postgres import Postgres
from tests.support.processes import Process, ask, running

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="not installed: pgbouncer (a package of Debian's)")

SESSIONS = 3  # with the server, for all clients


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def url(server: Postgres) -> Iterator[str]:
    """Of a PgBouncer before the server."""
    with bouncing(server, SESSIONS) as url:
        yield url


@contextlib.contextmanager
def opened(url: str) -> Iterator[Database]:
    db = Database(url=url, min_size=2 * SESSIONS, max_size=2 * SESSIONS, connect_timeout=2.0, prepare=False)
    db.open()
    try:
        wait_for(lambda: db.stats()["pool_available"] == 2 * SESSIONS, 10, "a full pool")
        yield db
    finally:
        db.close(2.0)


def test_transactions_that_change_sessions(url: str) -> None:
    """Statements are not prepared, so none is missing in another session; a transaction stays in one."""
    failures: list[BaseException] = []
    sessions: set[int] = set()

    def work(db: Database, seed: int) -> None:
        numbers = random.Random(seed)
        try:
            for _ in range(60):
                n = numbers.randrange(4)
                try:
                    with db.connection() as conn:
                        seen = [conn.execute("SELECT %s::int, pg_backend_pid()", [n]).fetchone()]
                        seen.append(conn.execute("SELECT 12 / %s::int, pg_backend_pid()", [n]).fetchone())
                    assert seen[0] is not None and seen[1] is not None
                    assert (seen[0][0], seen[1][0]) == (n, 12 // n)
                    assert seen[0][1] == seen[1][1]
                    sessions.add(seen[0][1])
                except psycopg.errors.DivisionByZero:
                    assert n == 0
        except BaseException as error:
            failures.append(error)

    with opened(url) as db:
        threads = [threading.Thread(target=work, args=(db, seed)) for seed in range(2 * SESSIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        with db.connection() as conn:
            conn.prepare_threshold = 0
        with db.connection() as conn:
            assert conn.prepare_threshold is None
        assert len(sessions) > 1
        assert db.check() is None


def test_the_check_sees_the_server_behind_it(server: Postgres, url: str) -> None:
    """PgBouncer takes connections and queries while the server is away, and lets them wait for 120 s."""
    with opened(url) as db:
        assert db.check() is None
        for end, begin in ((server.pause, server.resume), (server.stop, server.start)):
            end()
            try:
                wait_for(lambda: not is_good(db), 5, "the check to fail")
            finally:
                begin()
            wait_for(lambda: is_good(db), 20, "the check to succeed")
        with db.connection() as conn:
            assert conn.execute("SELECT %s::int", [1]).fetchone() == (1,)


def is_good(db: Database) -> bool:
    try:
        return db.check() is None
    except DatabaseUnavailable:
        return False


# ---------------------------------------------------------------------- through the process

SOURCE = """
import pkg

def app(environ, start_response):
    with pkg.connection(timeout=1) as conn:
        conn.execute("select pg_sleep(%s), 'of the service'", [float(environ["QUERY_STRING"] or 0)])
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""

IN_AN_EVENT_LOOP = """
import pkg

async def app(scope, receive, send):
    assert scope["type"] == "http"
    async with pkg.aconnection({limit}) as conn:
        await conn.execute("select pg_sleep(%s), 'of the service'", [float(scope["query_string"] or 0)])
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}})
    await send({{"type": "http.response.body", "body": b"ok"}})
"""


def sleeping(server: Postgres) -> int:
    """How many queries of the service run on the server."""
    query = "select count(*) from pg_stat_activity where usename = 'app' and state = 'active'"
    return int(server.sql(query))


@pytest.mark.parametrize(
    ("source", "settings", "status"),
    [
        (SOURCE, {}, 503),
        (IN_AN_EVENT_LOOP.format(limit="timeout=1"), {}, 503),
        (IN_AN_EVENT_LOOP.format(limit=""), {"PKG_REQUEST_TIMEOUT": "1s"}, 504),
    ],
    ids=["a thread's deadline", "a task's deadline", "a task that is cancelled"],
)
def test_a_late_query_ends_on_the_server(
    server: Postgres, url: str, tmp_path: Path, source: str, settings: dict[str, str], status: int
) -> None:
    """PgBouncer knows the secret of each of its clients, as long as that is connected, and passes the cancel on."""
    environ = {"DATABASE_URL": url, "PKG_PREPARE_STATEMENTS": "false", "PKG_ADMIN": "off"}
    with running(tmp_path, source, **environ, **settings) as process:
        wait_for(lambda: is_ready(process), 10, "readiness")
        threads = [threading.Thread(target=ask, args=(process.address, "/?60")) for _ in range(SESSIONS)]
        for thread in threads:
            thread.start()
        wait_for(lambda: sleeping(server) == SESSIONS, 5, "the queries to run")
        for thread in threads:
            thread.join(15)
        wait_for(lambda: sleeping(server) == 0, 5, "the queries to end")
        assert ask(process.address, "/?60")[0] == status
        assert ask(process.address, "/")[0] == 200
        assert process.stop() == 0


def is_ready(process: Process) -> bool:
    return ask(process.address, "/readyz")[0] == 200


@pytest.mark.parametrize("is_standby_first", [True, False], ids=["promoted", "demoted"])
def test_readiness_is_what_a_write_would_find(server: Postgres, tmp_path: Path, is_standby_first: bool) -> None:
    """PgBouncer greets its clients with what its own first login was told, for ever."""
    with server.standby() as other:
        if not is_standby_first:
            other.promote()
        with bouncing(other, SESSIONS) as url:
            environ = {"DATABASE_URL": url, "PKG_PREPARE_STATEMENTS": "false", "PKG_DATABASE_ROLE": "primary"}
            environ |= {"PKG_DATABASE_CHECK_INTERVAL": "300ms", "PKG_ADMIN": "off"}
            with running(tmp_path, SOURCE, **environ) as process:
                if is_standby_first:
                    process.await_message("the server is read-only")
                    assert not is_ready(process)
                    other.promote()
                    wait_for(lambda: is_ready(process), 15, "green after the promotion")
                    assert ask(process.address, "/")[0] == 200
                else:
                    wait_for(lambda: is_ready(process), 15, "green")
                    demoted(other)
                    process.await_message("the server is read-only")
                    wait_for(lambda: not is_ready(process), 15, "red after the demotion")
                assert reported(url) == ("on" if is_standby_first else "off"), "what PgBouncer says is old"


def demoted(server: Postgres) -> None:
    """Restarts as a standby on its own address, as a node does that has lost an election."""
    server.stop()
    signal = server.data / "standby.signal"
    signal.touch()
    signal.chmod(0o644)
    server.start()


def reported(url: str) -> str:
    with psycopg.connect(url) as conn:
        return (conn.pgconn.parameter_status(b"in_hot_standby") or b"").decode()
