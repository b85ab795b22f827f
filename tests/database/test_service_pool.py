"""An engine of SQLAlchemy on the service's connections, whose rollbacks are read by the next borrower.

The recipes with it, in the service, are in test_orm_recipes.py and in the fault matrix.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest

from pkg.database.database import Database
from pkg.errors import DatabaseUnavailable
from tests.database.test_borrowed import database_of
from tests.support.client import wait_for
from tests.support.faults.postgres import Postgres
from tests.support.processes import ask, running

pytest.importorskip("sqlalchemy")

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.orm import Session

from pkg.integrations.sqlalchemy_pool import ServicePool

PID = text("select pg_backend_pid() where 1 = :one")
ONE = {"one": 1}


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def database(server: Postgres) -> Iterator[Database]:
    with database_of(server) as database:
        yield database


def engine_of(database: Database, **options: str) -> Engine:
    return create_engine("postgresql+psycopg://", creator=database.connect, poolclass=ServicePool, **options)


@pytest.fixture
def engine(database: Database) -> Engine:
    return engine_of(database)


def pid_of(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(PID, ONE).scalar_one())


async def pid_in_task(database: Database, timeout: float = 5.0) -> int:
    async with database.aconnection(timeout=timeout) as connection:
        row = await (await connection.execute("select pg_backend_pid()")).fetchone()
        assert row is not None
        return int(row[0])


def pid_in_block(database: Database, timeout: float = 5.0) -> int:
    with database.connection(timeout=timeout) as connection:
        row = connection.execute("select pg_backend_pid()").fetchone()
        assert row is not None
        return int(row[0])


def pid_of_a_task(database: Database, timeout: float = 5.0) -> int:
    return asyncio.run(pid_in_task(database, timeout))


NEXT = pytest.mark.parametrize("borrow", [pid_in_block, pid_of_a_task])


@NEXT
def test_the_next_borrower_gets_the_same_session(
    engine: Engine, database: Database, borrow: Callable[[Database], int]
) -> None:
    pid = pid_of(engine)
    for _ in range(20):
        assert borrow(database) == pid
        assert pid_of(engine) == pid
        with Session(engine) as session:
            assert session.scalar(PID, ONE) == pid
    stats = database.stats()
    assert (stats["connections_used"], stats["connections_num"]) == (0, 1)


def test_what_was_not_committed_is_rolled_back(server: Postgres, engine: Engine, database: Database) -> None:
    with engine.connect() as connection:
        connection.execute(text("create table undone (n int)"))
    wait_for(lambda: server.sql("select count(*) from pg_locks where locktype = 'relation' and mode = "
                                "'AccessExclusiveLock'") == 0, 5, "the locks to be released")  # fmt: skip
    with engine.begin() as connection:
        assert connection.scalar(text("select to_regclass('undone')")) is None
        connection.execute(text("create table done (n int)"))
    with database.connection() as block:
        assert block.execute("select to_regclass('done')").fetchone() == ("done",)


def test_a_connection_that_is_used_after_its_rollback(engine: Engine) -> None:
    with engine.connect() as connection:
        for _ in range(3):
            assert connection.execute(PID, ONE).scalar_one()
            connection.rollback()
            connection.rollback()
        connection.execution_options(isolation_level="AUTOCOMMIT")
        assert connection.execute(PID, ONE).scalar_one()
    raw = engine.raw_connection()
    try:
        raw.cursor().execute("select 1")
        raw.rollback()
        raw.commit()
        raw.cursor().execute("select 1")
    finally:
        raw.close()


def test_what_needs_an_idle_session_waits_for_it(server: Postgres) -> None:
    with database_of(server) as database:
        engine = engine_of(database, isolation_level="REPEATABLE READ")
        pid = pid_of(engine)
        for _ in range(3):
            with engine.connect() as connection:
                for _ in range(7):  # it is prepared then, and the rollback makes the server forget it
                    assert connection.execute(PID, ONE).scalar_one() == pid
        assert pid_in_block(database) == pid
        plain = engine_of(database)
        for _ in range(3):
            with plain.connect() as connection:
                for _ in range(7):
                    assert connection.execute(PID, ONE).scalar_one() == pid


@NEXT
def test_a_server_that_hangs_is_noticed_in_time(
    server: Postgres, engine: Engine, database: Database, borrow: Callable[[Database, float], int]
) -> None:
    with engine.connect() as connection:
        pid = connection.execute(PID, ONE).scalar_one()
        server.pause()
    try:
        begin = monotonic()
        with pytest.raises(DatabaseUnavailable):
            borrow(database, 0.3)
        assert 0.2 < monotonic() - begin < 2
    finally:
        server.resume()
    wait_for(lambda: borrow(database, 5.0) != pid, 10, "another connection")


@NEXT
def test_a_session_that_ends_after_the_rollback_is_not_lent(
    server: Postgres, engine: Engine, database: Database, borrow: Callable[[Database], int]
) -> None:
    pid = pid_of(engine)
    server.terminate()
    wait_for(lambda: server.backends() == 0 or borrow(database) != pid, 10, "the end of the session")
    assert borrow(database) != pid
    assert pid_of(engine) != pid


def test_a_session_that_was_rolled_back_shows_that_the_server_responds(engine: Engine, database: Database) -> None:
    database.check()
    before = database.stats()["check_queries"]
    assert pid_of(engine)
    database.check()
    assert database.stats()["check_queries"] == before


def test_each_loan_is_a_new_connection_to_listeners(engine: Engine, database: Database) -> None:
    seen: list[tuple[str, object, dict[str, int]]] = []
    event.listen(engine, "connect", lambda connection, entry: seen.append(("connect", connection, dict(entry.info))))
    event.listen(engine, "close", lambda connection, entry: seen.append(("close", connection, dict(entry.info))))
    for n in range(3):
        with engine.connect() as connection:
            connection.info["n"] = n
            assert connection.execute(PID, ONE).scalar_one()
    assert [(what, info) for what, _, info in seen] == [
        (what, info) for n in range(3) for what, info in (("connect", {}), ("close", {"n": n}))
    ]
    assert len({id(connection) for _, connection, _ in seen}) == 3
    assert [seen[n][1] is seen[n + 1][1] for n in (0, 2, 4)] == [True, True, True]


def test_a_listener_that_fails_keeps_no_connection(engine: Engine, database: Database) -> None:
    assert pid_of(engine)
    fails = True

    @event.listens_for(engine, "connect")
    def connected(*_: object) -> None:
        if fails:
            raise LookupError("not today")

    for _ in range(3):
        with pytest.raises(LookupError, match="not today"):
            pid_of(engine)
    assert database.stats()["connections_used"] == 0
    fails = False
    assert pid_of(engine) == pid_in_block(database)


def test_a_connection_that_is_detached_or_invalid(engine: Engine, database: Database) -> None:
    for _ in range(3):
        detached = engine.raw_connection()
        detached.detach()
        with pytest.raises(DatabaseUnavailable):
            database.connect(0.05)
        detached.close()
        with engine.connect() as connection:
            connection.invalidate()
        assert pid_of(engine)
    assert database.stats()["connections_used"] == 0


LOSES_ITS_SESSION = """
import os, psycopg, time
from sqlalchemy import create_engine, text
import pkg
from pkg.integrations.sqlalchemy_pool import ServicePool
engine = create_engine("postgresql+psycopg://", creator=pkg.connect, poolclass=ServicePool)
def app(environ, start_response):
    with engine.connect() as connection, psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as other:
        pid = connection.execute(text("select pg_backend_pid()")).scalar_one()
        def kill():
            other.execute("select pg_terminate_backend(%s)", (pid,))
            while other.execute("select 1 from pg_stat_activity where pid = %s", (pid,)).fetchone():
                time.sleep(0.01)
        steps = [kill, connection.rollback]
        for step in steps if environ["PATH_INFO"] == "/before" else reversed(steps):
            step()
        connection.execute(text("select 1"))
    start_response("200 OK", [])
    return [b"ok"]
"""


@pytest.mark.parametrize("target", ["/before", "/after"])
def test_a_session_that_is_lost_around_a_rollback_is_503(server: Postgres, tmp_path: Path, target: str) -> None:
    with running(tmp_path, LOSES_ITS_SESSION, DATABASE_URL=server.url, PKG_ADMIN="off") as process:
        assert [ask(process.address, target)[0] for _ in range(2)] == [503, 503]
        assert "Traceback" not in process.errors()
