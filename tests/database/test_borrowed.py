"""`pkg.connect`: a connection whose close() gives it back, as ORMs use it."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import psycopg
import pytest
from psycopg.types import TypeInfo
from psycopg.types.json import set_json_loads

from pkg.database.connection import IDLE
from pkg.database.database import Database
from pkg.errors import DatabaseUnavailable, NotRunningError
from tests.database.test_block import SETTINGS, state
from tests.support.client import wait_for
from tests.support.faults.postgres import Postgres


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@contextlib.contextmanager
def database_of(server: Postgres, size: int = 1) -> Iterator[Database]:
    """With one connection, whoever borrows gets the session of the one before."""
    database = Database(url=server.url, min_size=size, max_size=size, pool_timeout=5)
    database.open()
    try:
        yield database
    finally:
        database.close()


@pytest.fixture
def database(server: Postgres) -> Iterator[Database]:
    with database_of(server) as database:
        yield database


def test_close_gives_it_back_once(database: Database) -> None:
    first = database.connect()
    pid = first.info.backend_pid
    assert first.execute("select %s", (7,)).fetchone() == (7,)
    assert database.stats()["connections_used"] == 1
    first.close()
    first.close()
    assert first.closed and not first.broken
    assert database.stats()["connections_used"] == 0
    with database.connect() as second:
        assert second.info.backend_pid == pid


def test_autocommit_can_be_set_where_psycopg_lets_it_be_set(database: Database) -> None:
    first = database.connect()
    first.autocommit = True
    first.execute("select 1")
    assert first.info.transaction_status == IDLE
    first.autocommit = False
    first.execute("select 1")
    with pytest.raises(psycopg.ProgrammingError, match="can't change 'autocommit' now"):
        first.autocommit = True
    first.ends_unheard = True
    first.rollback()
    first.autocommit = True
    assert first.autocommit and first.info.transaction_status == IDLE
    first.close()
    with pytest.raises(psycopg.OperationalError, match="closed"):
        first.autocommit = True


def test_what_is_kept_after_close_cannot_reach_the_next_borrower(database: Database) -> None:
    first = database.connect()
    cursor = first.cursor()
    cursor.execute("create temporary table kept (n int)")
    first.commit()
    first.close()
    with database.connect() as second:
        second.execute("insert into kept values (1)")
        for use in (
            first.rollback,
            first.commit,
            lambda: first.execute("select 1"),
            lambda: cursor.execute("select 1"),
        ):
            with pytest.raises(psycopg.OperationalError, match="closed"):
                use()
        assert second.execute("select count(*) from kept").fetchone() == (1,)


def test_nothing_is_committed_unless_the_borrower_does(database: Database) -> None:
    with contextlib.closing(database.connect()) as conn:
        conn.execute("create table uncommitted (n int)")
    with contextlib.closing(database.connect()) as conn:
        assert conn.execute("select to_regclass('uncommitted')").fetchone() == (None,)
    with database.connect() as conn:  # psycopg's own block commits
        conn.execute("create table committed (n int)")
    with database.connection() as block:
        assert block.execute("select to_regclass('committed')").fetchone() == ("committed",)


def test_nothing_of_one_borrower_is_left_to_the_next(database: Database) -> None:
    heard: list[str] = []
    for _ in range(50):
        conn = database.connect()
        conn.add_notice_handler(lambda said: heard.append(said.message_primary or ""))
        conn.add_notify_handler(lambda _: None)
        set_json_loads(lambda _: "mine", conn)
        conn.autocommit = True
        conn.row_factory = psycopg.rows.dict_row
        conn.prepare_threshold = None
        assert conn.execute("select '{}'::json as it").fetchone() == {"it": "mine"}
        conn.close()
    with database.connection() as block:
        assert block.execute("select '{}'::json").fetchone() == ({},)
        block.execute("do $$ begin raise notice 'later'; end $$")
        assert not block.autocommit
        assert block.prepare_threshold == 5
        assert len(block._notice_handlers) == 1
    assert heard == []


def test_statements_are_prepared_once_for_all_borrowers(database: Database) -> None:
    for _ in range(10):
        with contextlib.closing(database.connect()) as conn:
            conn.execute("select %s::int + 1", (1,))
            conn.commit()  # psycopg forgets all prepared statements at a rollback
    with contextlib.closing(database.connect()) as conn:
        assert conn.execute("select count(*) from pg_prepared_statements", prepare=False).fetchone() == (1,)


@pytest.mark.parametrize(
    ("leave", "is_replaced"), [("transaction", True), ("tpc", True), ("pipeline", True), ("query", True)]
)
def test_a_connection_that_is_left_in_the_middle(server: Postgres, leave: str, is_replaced: bool) -> None:
    with database_of(server) as database:
        conn = database.connect()
        pid, left = conn.info.backend_pid, contextlib.ExitStack()
        if leave == "transaction":
            left.enter_context(conn.transaction())
            conn.execute("select 1")
        elif leave == "pipeline":
            left.enter_context(conn.pipeline())
        elif leave == "query":
            conn.pgconn.send_query(b"select pg_sleep(60)")
        else:
            conn.tpc_begin("an id")
            conn.execute("select 1")
        conn.close()
        with database.connect() as other:
            assert (other.info.backend_pid != pid) is is_replaced
            assert other.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
            assert other.execute("select 1").fetchone() == (1,)
        with contextlib.suppress(psycopg.Error):
            left.close()


def test_psycopg_takes_it_for_its_own(database: Database) -> None:
    with database.connect() as conn:
        assert isinstance(conn, psycopg.Connection)
        info = TypeInfo.fetch(conn, "text")
        assert info is not None and info.oid == 25
        with conn.pipeline():
            cursor = conn.execute("select 1")
        assert cursor.fetchone() == (1,)
        with conn.cursor("named") as named:
            assert len(named.execute("select generate_series(1, 300)").fetchall()) == 300
        with conn.cursor().copy("copy (select 5) to stdout") as copy:
            assert b"".join(copy) == b"5\n"


def test_one_that_is_forgotten_comes_back(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    conn = database.connect()
    conn.execute("create table forgotten (n int)")
    with caplog.at_level(logging.WARNING, "pkg.database"):
        del conn
        gc.collect()
        with database.connect() as other:
            assert other.execute("select to_regclass('forgotten')").fetchone() == (None,)
        for _ in range(3):
            database.connect()  # the next one, from the same place
            gc.collect()
    said = [record.getMessage() for record in caplog.records if "not closed" in record.getMessage()]
    assert [text.rpartition(" in ")[2] for text in said] == ["test_one_that_is_forgotten_comes_back"] * 2
    assert all("test_borrowed.py:" in text for text in said)
    database.check()
    assert database.stats()["connections_used"] == 0


def test_a_deadline_ends_a_query_and_the_server_forgets_it(server: Postgres, database: Database) -> None:
    conn = database.connect(deadline=0.3)
    pid = conn.info.backend_pid
    with pytest.raises(DatabaseUnavailable) as caught:
        conn.execute("select pg_sleep(60)")
    assert isinstance(caught.value, psycopg.OperationalError)
    with pytest.raises(psycopg.OperationalError, match=r"closed|deadline has passed"):
        conn.execute("select 1")
    conn.close()
    session = f"select count(*) from pg_stat_activity where pid = {pid}"
    wait_for(lambda: server.sql(session) == 0, 10, "the end of the query")
    with database.connect() as other:
        assert other.execute("select 1").fetchone() == (1,)


def test_the_word_of_the_server_may_come_before_the_end(server: Postgres, database: Database) -> None:
    """That it has cancelled the statement, on a connection whose deadline has passed."""
    conn = database.connect()
    pid = conn.info.backend_pid

    def cancel() -> None:
        conn.expire()
        assert server.sql(f"select pg_cancel_backend({pid})")

    timer = threading.Timer(0.3, cancel)
    timer.start()
    with pytest.raises(DatabaseUnavailable, match="canceling statement"):
        conn.execute("select pg_sleep(60)")
    timer.join()
    conn.close()


def test_a_lost_connection_is_unavailable_and_is_replaced(server: Postgres, database: Database) -> None:
    with contextlib.closing(database.connect()) as conn:
        conn.execute("select 1")
        server.terminate()
        with pytest.raises(DatabaseUnavailable) as caught:
            conn.execute("select 1")
        assert conn.broken
        assert isinstance(caught.value, psycopg.OperationalError) and caught.value.sqlstate == "57P01"
    with contextlib.closing(database.connect()) as other:
        assert other.execute("select 1").fetchone() == (1,)


@pytest.mark.parametrize("end", ["rollback", "commit"])
@pytest.mark.parametrize("unheard", [False, True])
def test_an_end_on_a_lost_connection_is_unavailable(
    server: Postgres, database: Database, end: str, unheard: bool
) -> None:
    with contextlib.closing(database.connect()) as conn:
        conn.ends_unheard = unheard
        conn.execute("select 1")
        server.terminate()
        wait_for(lambda: server.backends() == 0, 10, "the end of the session")
        with pytest.raises(DatabaseUnavailable, match="the connection was lost"):
            getattr(conn, end)()
            assert unheard and end == "rollback"
            conn.execute("select 1")  # reads the response to the rollback before
    with contextlib.closing(database.connect()) as other:
        assert other.execute("select 1").fetchone() == (1,)


def test_the_wait_for_one_is_bounded(database: Database) -> None:
    with (
        contextlib.closing(database.connect()),
        pytest.raises(DatabaseUnavailable, match=r"no connection within 0\.1 s"),
    ):
        database.connect(0.1)
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive"):
            database.connect(wrong)
        with pytest.raises(ValueError, match="positive"):
            database.connect(deadline=wrong)


def test_closing_the_pool_frees_a_borrower(server: Postgres) -> None:
    with database_of(server) as database:
        conn = database.connect()
        failed: list[BaseException] = []

        def work() -> None:
            try:
                conn.execute("select pg_sleep(60)")
            except psycopg.OperationalError as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        busy = f"select count(*) from pg_stat_activity where pid = {conn.info.backend_pid} and state = 'active'"
        wait_for(lambda: server.sql(busy) == 1, 10, "the query")
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(failed[0], DatabaseUnavailable)
    conn.close()


def test_two_threads_close_it_once(database: Database) -> None:
    for _ in range(50):
        conn = database.connect()
        conn.execute("select 1")
        threads = [threading.Thread(target=conn.close) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert database.stats()["connections_used"] == 0
    with contextlib.closing(database.connect()) as other:
        assert other.execute("select 1").fetchone() == (1,)


@pytest.mark.parametrize("change", SETTINGS.values(), ids=SETTINGS)
def test_what_is_set_ends_with_close(database: Database, change: Callable[[Any], object]) -> None:
    with database.connect() as first:
        before = state(first)
    conn = database.connect()
    change(conn)
    assert state(conn) != before
    conn.close()
    with contextlib.suppress(psycopg.Error):
        change(conn)  # once more, when another one may have the session
    with database.connect() as other:
        assert state(other) == before
    with database.connection() as block:
        assert block.prepare_threshold == 5


def test_its_block_ends_it_even_if_the_commit_fails(server: Postgres, database: Database) -> None:
    with database.connect() as conn:
        conn.execute("create table late (n int unique deferrable initially deferred)")
    with pytest.raises(psycopg.errors.UniqueViolation), database.connect() as conn:
        conn.execute("insert into late values (1), (1)")
    assert conn.closed
    with pytest.raises(KeyError), database.connect() as conn:
        conn.execute("insert into late values (2)")
        raise KeyError
    with pytest.raises(DatabaseUnavailable), database.connect() as conn:  # what was swallowed is told at the end
        conn.execute("insert into late values (3)")
        server.terminate()
        with contextlib.suppress(psycopg.Error):
            conn.execute("select 1")
    assert database.stats()["connections_used"] == 0
    with database.connect() as conn:
        assert conn.execute("select n from late").fetchall() == []


def test_close_waits_for_a_statement_of_another_thread(database: Database) -> None:
    conn = database.connect()
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(conn.execute("select pg_sleep(0.5), 3").fetchone()))
    thread.start()
    wait_for(lambda: conn.lock.locked() or bool(answers), 10, "the statement")
    conn.close()
    thread.join()
    assert answers == [("", 3)]
    with database.connect() as other:
        assert other.execute("select 1").fetchone() == (1,)


def test_autocommit_shows_that_the_server_responds(database: Database) -> None:
    with database.connect() as conn:
        conn.autocommit = True
        conn.execute("select 1")
    before = database.stats()["check_queries"]
    database.check()
    assert database.stats()["check_queries"] == before


def test_a_forked_child_leaves_it_alone(database: Database) -> None:
    conn, other = database.connect(), None
    conn.execute("select 1")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            other = database.connect()
        except NotRunningError:
            conn.close()
            code = 0 if conn.closed else 2
        os._exit(code)
    assert other is None
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert conn.execute("select 3").fetchone() == (3,)
    conn.close()


def test_a_connection_that_is_kept_is_named(
    database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pkg.database.lending.LEAK_AGE", 0.0)

    def kept() -> str:
        return database._lending.kept(monotonic())

    for take in (
        lambda: contextlib.closing(database.connect()),
        database.connection,
        lambda: contextlib.closing(contextlib.ExitStack()),
    ):
        with take() as taken:
            if isinstance(taken, contextlib.ExitStack):
                taken.enter_context(database.connection())
            for _ in range(2):
                text = kept()
                assert text.startswith("a connection is kept that no request uses, taken at ")
                assert "test_borrowed.py:" in text and "test_a_connection_that_is_kept_is_named" in text
            assert database._lending.kept(monotonic() - 60) == ""  # a request in flight may have it
            assert len(database.taken()) == 1
        assert kept() == ""
        assert database.taken() == []
    assert sum("is kept" in record.getMessage() for record in caplog.records) == 3


def test_adapters_of_a_library_are_kept_for_its_next_loan_only(database: Database) -> None:
    template = psycopg.adapt.AdaptersMap(psycopg.adapters)
    template.register_loader("int4", psycopg.types.string.TextLoader)
    seen = []
    for _ in range(2):
        with database.connect() as conn:
            conn.adapt_like(template)
            seen.append(conn.adapters)
            assert conn.execute("select 7").fetchone() == ("7",)
        with database.connection() as block:
            assert block.execute("select 7").fetchone() == (7,)
    assert seen[0] is seen[1]
    with database.connect() as conn:
        conn.adapt_like(template)
        conn.adapters.register_loader("int4", psycopg.types.numeric.IntLoader)
        assert conn.execute("select 7").fetchone() == (7,)
    with database.connect() as conn:
        conn.adapt_like(template)
        assert conn.execute("select 7").fetchone() == ("7",)
