"""pkg.database.connection: a cursor that saves a round trip, and otherwise does what psycopg's does."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import pq, rows

from pkg.database.connection import Connection, Cursor
from pkg.database.watchdog import shut
from tests.support.client import wait_for
from tests.support.faults.postgres import Postgres

ACTIVE = pq.TransactionStatus.ACTIVE
INERROR = pq.TransactionStatus.INERROR
INTRANS = pq.TransactionStatus.INTRANS
IDLE = pq.TransactionStatus.IDLE


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def conn(server: Postgres) -> Iterator[Connection]:
    with Connection.connect(server.url) as conn:
        yield conn


def exchanges(conn: psycopg.Connection[Any], action: Callable[[], object]) -> list[str]:
    """What the client sent during the action, a text for each round trip: the types of its messages."""
    with tempfile.TemporaryFile("w+") as trace:
        conn.pgconn.trace(trace.fileno())
        conn.pgconn.set_trace_flags(pq.Trace.SUPPRESS_TIMESTAMPS)
        try:
            action()
        finally:
            conn.pgconn.untrace()
        trace.seek(0)
        lines = [line.split("\t") for line in trace if line[:2] in ("F\t", "B\t")]
    found: list[str] = []
    direction = "B"
    for line in lines:
        if line[0] == "F":
            if direction == "B":
                found.append("")
            found[-1] += f"{line[2]} "
        direction = line[0]
    return [text.strip() for text in found]


def test_begin_travels_with_the_first_statement(conn: Connection) -> None:
    def transaction() -> None:
        assert conn.execute("SELECT %s::int + 1", [1]).fetchone() == (2,)
        assert conn.info.transaction_status == INTRANS
        conn.execute("SELECT %s::int + 2", [1])
        conn.commit()

    ours = exchanges(conn, transaction)
    assert len(ours) == 3, ours  # the statements, and COMMIT
    assert ours[0].split() == ["Parse", "Bind", "Describe", "Execute"] * 2 + ["Sync"]
    with psycopg.connect(conn.info.dsn, password=conn.info.password) as theirs:
        conn = theirs  # type: ignore[assignment]
        assert len(exchanges(theirs, transaction)) == 4


def test_begin_travels_with_a_statement_that_is_prepared_by_now(conn: Connection) -> None:
    def transaction() -> None:
        assert conn.execute("SELECT 42").fetchone() == (42,)
        conn.commit()

    lengths = [len(exchanges(conn, transaction)) for _ in range(8)]
    assert lengths == [3, 3, 3, 3, 3, 4, 2, 2]  # the fifth repetition prepares it
    assert exchanges(conn, transaction)[0].split()[-4:] == ["Bind", "Describe", "Execute", "Sync"]


def test_the_transaction_is_one(conn: Connection) -> None:
    conn.execute("CREATE TEMPORARY TABLE t (n int)")
    conn.commit()
    for _ in range(8):
        conn.execute("INSERT INTO t VALUES (%s)", [1])
        conn.execute("INSERT INTO t VALUES (%s)", [2])
        conn.rollback()
    assert conn.execute("SELECT count(*) FROM t").fetchone() == (0,)


def test_what_a_transaction_is_to_be_goes_with_begin(conn: Connection) -> None:
    conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    conn.read_only = True
    query = "SELECT current_setting('transaction_isolation'), current_setting(%s)"
    assert conn.execute(query, ["transaction_read_only"]).fetchone() == ("serializable", "on")
    assert conn.pgconn.pipeline_status == pq.PipelineStatus.OFF


# ---------------------------------------------------------------------------------------------------------- failures


def failure(action: Callable[[], object]) -> tuple[type[BaseException], str | None]:
    with pytest.raises(psycopg.Error) as info:
        action()
    return type(info.value), info.value.sqlstate


@pytest.mark.parametrize("prepared", [False, True])
def test_a_statement_that_fails_leaves_a_failed_transaction(conn: Connection, prepared: bool) -> None:
    for _ in range(7 * prepared):
        conn.execute("SELECT 1 / %s::int", [1])
        conn.commit()
    assert failure(lambda: conn.execute("SELECT 1 / %s::int", [0])) == (psycopg.errors.DivisionByZero, "22012")
    assert conn.info.transaction_status == INERROR
    assert failure(lambda: conn.execute("SELECT %s::int", [1]))[0] is psycopg.errors.InFailedSqlTransaction
    conn.rollback()
    assert conn.execute("SELECT %s::int", [1]).fetchone() == (1,)


def test_a_statement_that_cannot_be_sent(conn: Connection) -> None:
    many = list(range(65536))
    query = "SELECT " + "+".join(["%s"] * len(many))
    assert failure(lambda: conn.execute(query, many)) == (psycopg.OperationalError, None)
    assert conn.info.transaction_status == INTRANS
    conn.commit()
    assert conn.execute("SELECT %s::int", [1]).fetchone() == (1,)


def test_parameters_that_cannot_be_sent_begin_nothing(conn: Connection) -> None:
    assert failure(lambda: conn.execute("SELECT %s, %s", [1])) == (psycopg.ProgrammingError, None)
    assert conn.info.transaction_status == IDLE
    assert exchanges(conn, lambda: conn.cursor().copy("COPY (SELECT 1) TO STDOUT").__enter__())[0] == "Query"
    assert conn.info.transaction_status != IDLE


def test_a_transaction_that_cannot_begin(server: Postgres) -> None:
    """A hot standby refuses to begin a serializable transaction (PostgreSQL 26.4.5, "Caveats")."""
    with server.standby() as standby, Connection.connect(standby.url) as conn:
        conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        assert failure(lambda: conn.execute("SELECT %s::int", [1])) == (psycopg.errors.FeatureNotSupported, "0A000")
        assert conn.info.transaction_status == IDLE
        conn.isolation_level = None
        assert conn.execute("SELECT %s::int", [1]).fetchone() == (1,)


def test_a_session_ended_before_says_why(server: Postgres, conn: Connection) -> None:
    with psycopg.connect(server.url) as theirs:
        server.terminate()
        wait_for(lambda: server.backends() == 0, 10, "the sessions to end")
        expected = failure(lambda: theirs.execute("SELECT %s::int", [1]))
    assert expected == (psycopg.errors.AdminShutdown, "57P01")
    assert failure(lambda: conn.execute("SELECT %s::int", [1])) == expected
    assert conn.closed
    assert failure(lambda: conn.execute("SELECT %s::int", [1]))[0] is psycopg.OperationalError


@contextlib.contextmanager
def meanwhile(server: Postgres, action: Callable[[], object]) -> Iterator[None]:
    """Does the action when a query sleeps in the server."""

    def act() -> None:
        asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        wait_for(lambda: server.sql(asleep) == 1, 10, "a query to sleep")
        action()

    thread = threading.Thread(target=act)
    thread.start()
    yield
    thread.join()


def test_a_session_ended_during_the_statement_says_why(server: Postgres, conn: Connection) -> None:
    with meanwhile(server, server.terminate):
        assert failure(lambda: conn.execute("SELECT pg_sleep(%s)", [60])) == (psycopg.errors.AdminShutdown, "57P01")
    assert conn.closed


def test_a_connection_cut_off_during_the_statement(server: Postgres, conn: Connection) -> None:
    pid = conn.pgconn.backend_pid
    with meanwhile(server, lambda: os.kill(pid, signal.SIGKILL)):
        assert failure(lambda: conn.execute("SELECT pg_sleep(%s)", [60])) == (psycopg.OperationalError, None)
    assert conn.closed
    wait_for(server._accepts, 20, "the server to have recovered")


def test_a_cancelled_statement(server: Postgres, conn: Connection) -> None:
    with meanwhile(server, conn.cancel):
        assert failure(lambda: conn.execute("SELECT pg_sleep(%s)", [60])) == (psycopg.errors.QueryCanceled, "57014")
    assert conn.info.transaction_status == INERROR
    conn.rollback()
    assert conn.execute("SELECT %s::int", [1]).fetchone() == (1,)


def test_an_interrupted_statement(server: Postgres, conn: Connection) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with meanwhile(server, lambda: os.kill(os.getpid(), signal.SIGINT)), pytest.raises(KeyboardInterrupt):
            conn.execute("SELECT pg_sleep(%s)", [60])
    finally:
        signal.signal(signal.SIGINT, before)
    assert conn.info.transaction_status == INERROR
    conn.rollback()
    assert conn.execute("SELECT %s::int", [1]).fetchone() == (1,)


@pytest.mark.parametrize("size", [1000, 200_000, 20_000_000])
@pytest.mark.parametrize("how", ["terminated", "shut"])
def test_a_large_statement_on_a_lost_connection(server: Postgres, conn: Connection, how: str, size: int) -> None:
    """Sending it fails; what the server has said before is still to be read."""
    if how == "terminated":
        server.terminate()
        wait_for(lambda: server.backends() == 0, 10, "the sessions to end")
        expected: Any = (psycopg.errors.AdminShutdown, "57P01")
    else:
        shut(conn.fileno())
        expected = (psycopg.OperationalError, None)
    with pytest.raises(psycopg.Error) as info:
        conn.execute("SELECT length(%s)", ["x" * size])
    assert (type(info.value), info.value.sqlstate) == expected
    assert "connection" in str(info.value) and "pipeline" not in str(info.value)
    assert conn.closed


@pytest.mark.parametrize("query", ["COPY (SELECT 1) TO STDOUT (NULL '%s')", "COPY t FROM STDIN /* %s */"])
def test_a_copy_with_a_parameter(conn: Connection, query: str) -> None:
    """In a string or a comment it goes unnoticed, and libpq reports the COPY for as long as it is asked."""
    conn.execute("CREATE TEMPORARY TABLE t (a int)")
    conn.commit()
    assert failure(lambda: conn.execute(query, [5])) == (psycopg.ProgrammingError, None)
    assert conn.info.transaction_status == ACTIVE
    conn.close()


@pytest.mark.parametrize(
    ("owner", "name"), [(Connection, "_get_tx_start_command"), (Cursor, "_execute_send"), (Cursor, "_answers_gen")]
)
def test_what_is_interrupted_in_the_middle_is_not_used_again(
    conn: Connection, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, interrupt)
        conn.execute("SELECT %s::int", [1])
    assert conn.closed


def test_large_statements_and_answers(conn: Connection) -> None:
    """More than fits into the sockets' buffers, both ways at once."""
    text = "x" * 30_000_000
    assert conn.execute("SELECT %s || %s", [text, "y"]).fetchone() == (text + "y",)


# ------------------------------------------------------------------------------------------------- as psycopg does it

Any_ = psycopg.Connection[Any]


def _fetch(cursor: psycopg.Cursor[Any]) -> list[Any]:
    return [cursor.statusmessage, cursor.rowcount, *(cursor.fetchall() if cursor.description else [])]


def _several(conn: Any_) -> list[Any]:
    cursor = conn.execute("SELECT 1; SELECT 2")
    found = _fetch(cursor)
    assert cursor.nextset()
    return found + _fetch(cursor)


def _copy(conn: Any_) -> list[Any]:
    with conn.cursor() as cursor:
        with cursor.copy("COPY t (a) FROM STDIN") as copy:
            copy.write_row([random_number()])
        with cursor.copy("COPY (SELECT count(*) FROM t) TO STDOUT") as copy:
            return list(copy.rows())


def _named(conn: Any_) -> list[Any]:
    with conn.cursor("named") as cursor:
        return cursor.execute("SELECT generate_series(1, %s)", [3]).fetchall()


def _block(conn: Any_) -> list[Any]:
    with conn.transaction():
        conn.execute("INSERT INTO t (a) VALUES (%s)", [random_number()])
        return _fetch(conn.execute("SELECT count(*) FROM t"))


def _undone_block(conn: Any_) -> None:
    with conn.transaction(force_rollback=True):
        conn.execute("INSERT INTO t (a) VALUES (%s)", [1000])


def _pipeline(conn: Any_) -> list[Any]:
    with conn.pipeline():
        first = conn.execute("SELECT %s::int", [1])
        second = conn.execute("SELECT count(*) FROM t")
        return _fetch(first) + _fetch(second)


def _many(conn: Any_) -> int:
    cursor = conn.cursor()
    cursor.executemany("INSERT INTO t (a) VALUES (%s)", [[random_number()], [random_number()]])
    return cursor.rowcount


def _again(conn: Any_) -> list[Any]:
    """One cursor for several statements."""
    cursor = conn.cursor(row_factory=rows.dict_row)
    found = [_fetch(cursor.execute("SELECT %s::int AS n", [n])) for n in (1, 2)]
    return [*found, _fetch(cursor.execute("SELECT 'a' AS a"))]


def _closed(conn: Any_) -> None:
    cursor = conn.cursor()
    cursor.close()
    cursor.execute("SELECT %s", [1])


def _client_side(conn: Any_) -> list[Any]:
    return psycopg.ClientCursor(conn).execute("SELECT %s", [1]).fetchall()


def _autocommit(conn: Any_) -> None:
    conn.autocommit = not conn.autocommit


def _isolation(conn: Any_) -> None:
    conn.isolation_level = None if conn.isolation_level else psycopg.IsolationLevel.REPEATABLE_READ


def _few_prepared(conn: Any_) -> list[Any]:
    conn.prepared_max = random_number() // 20
    return _fetch(conn.execute("SELECT %s::int", [1]))


_numbers = random.Random(0)


def random_number() -> int:
    return _numbers.randrange(40)


ACTIONS: list[Callable[[Any_], Any]] = [
    lambda conn: _fetch(conn.execute("SELECT 1 AS one")),
    lambda conn: _fetch(conn.execute("SELECT count(*) FROM t")),
    lambda conn: _fetch(conn.execute("SELECT * FROM t WHERE a < %s ORDER BY a", [20])),
    lambda conn: _fetch(conn.execute("SELECT %(n)s::int AS n", {"n": random_number()}, binary=True)),
    lambda conn: _fetch(conn.execute("SELECT %s::text", ["text"], prepare=True)),
    lambda conn: _fetch(conn.execute("SELECT %s::text", ["text"], prepare=False)),
    lambda conn: _fetch(conn.execute("SHOW transaction_isolation")),
    lambda conn: _fetch(conn.execute("INSERT INTO t (a) VALUES (%s) RETURNING a", [random_number()])),
    lambda conn: _fetch(conn.execute("INSERT INTO t (a) VALUES (%s)", [random_number()])),
    lambda conn: _fetch(conn.execute("DELETE FROM t WHERE a > %s", [random_number()])),
    lambda conn: conn.execute("SELECT 1 / %s::int", [0]),
    lambda conn: conn.execute("SELEKT"),
    lambda conn: conn.execute("SELECT %s FROM nowhere", [1]),
    lambda conn: conn.execute("COPY t TO STDOUT"),
    lambda conn: conn.execute("COPY t TO STDOUT", prepare=True),
    lambda conn: _fetch(conn.execute(f"ALTER TABLE t ADD COLUMN c{random_number()} int")),  # type: ignore[arg-type]
    lambda conn: _fetch(conn.execute("SELECT * FROM t ORDER BY a LIMIT 1")),
    lambda conn: _fetch(conn.execute("")),
    lambda conn: _fetch(conn.execute("COMMIT")),
    lambda conn: _fetch(conn.execute("ROLLBACK")),
    lambda conn: _fetch(conn.execute("DEALLOCATE ALL")),
    lambda conn: [next(conn.cursor().stream("SELECT generate_series(1, %s)", [3]))],
    _several,
    _copy,
    _named,
    _block,
    _undone_block,
    _pipeline,
    _many,
    _again,
    _closed,
    _client_side,
    _autocommit,
    _isolation,
    _few_prepared,
    lambda conn: conn.commit(),
    lambda conn: conn.commit(),
    lambda conn: conn.rollback(),
]


def outcome(action: Callable[[Any_], Any], conn: Any_) -> Any:
    try:
        found = action(conn)
    except psycopg.Error as error:
        found = type(error), error.sqlstate
    prepared = conn._prepared
    state = conn.info.transaction_status, conn.info.pipeline_status, conn.closed
    return found, state, dict(prepared._counts), list(prepared._names), list(prepared._to_flush)


@pytest.mark.parametrize("seed", range(40))
def test_it_is_as_psycopg_in_all_else(server: Postgres, seed: int) -> None:
    """The same actions in the same order, on a table each; an action is often repeated, so that it is prepared."""
    choice = random.Random(seed)
    with contextlib.ExitStack() as stack:
        conns: list[Any_] = []
        for kind in (psycopg.Connection, Connection):
            conn = stack.enter_context(kind.connect(server.url))
            conn.execute("CREATE TEMPORARY TABLE t (a int UNIQUE)")
            conn.commit()
            conns.append(conn)
        actions: list[Callable[[Any_], Any]] = []
        while len(actions) < 120:
            few = choice.sample(ACTIONS, 3)
            actions += choice.choices([*few, ACTIONS[-1], ACTIONS[-2]], k=24)
        for number, action in enumerate(actions):
            found = []
            for conn in conns:
                _numbers.seed(seed * 1000 + number)
                found.append(outcome(action, conn))
            assert found[0] == found[1], f"action {number}, number {ACTIONS.index(action)} of the list"
            if conns[0].info.transaction_status == ACTIVE:  # psycopg does not recover from a COPY by execute()
                break
        for conn in conns:
            conn.close()
