"""The pool and its check against a real PostgreSQL, hurt in every way there is.  Red and green times over HTTP are
in test_fault_matrix.py."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest

from pkg.database import check as database_check
from pkg.database import lending, refusals
from pkg.database.connection import Connection, Unavailable
from pkg.database.database import Database
from pkg.errors import ConfigurationError, DatabaseUnavailable
from pkg.health.checks import Degraded
from tests.support.client import wait_for
from tests.support.faults.postgres import PASSWORD, Postgres
from tests.support.faults.proxy import Mode, Proxy

# What a check may take beside its own limit: thread switches on a busy machine.
SLACK = 0.5
CHECK = database_check.CHECK_TIMEOUT + SLACK
MAX_CONNECTIONS = 24


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    settings: dict[str, str | int] = {"max_connections": MAX_CONNECTIONS, "log_connections": "on"}
    with Postgres(settings=settings) as server:
        yield server


@pytest.fixture
def server(postgres: Postgres) -> Iterator[Postgres]:
    """The server, running and whole before each test."""
    postgres.resume()
    if not postgres.pids:
        postgres.start()
    postgres.allow()
    postgres.set_password(PASSWORD)
    yield postgres


def threads() -> list[str]:
    return sorted(t.name for t in threading.enumerate())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """No thread and no descriptor stays behind."""
    before = threads(), descriptors()
    yield
    wait_for(lambda: threads() == before[0], 10, f"{threads()} to be {before[0]}")
    wait_for(lambda: descriptors() <= before[1], 10, f"{descriptors()} descriptors to be {before[1]}")


@contextlib.contextmanager
def opened(url: str = "", **options: Any) -> Iterator[Database]:
    # A connect_timeout of 2 s is libpq's shortest.
    db = Database(url=url, **{"min_size": 3, "max_size": 6, "connect_timeout": 2.0, **options})
    db.open()
    try:
        yield db
    finally:
        db.close(2.0)


def warmed(db: Database) -> Database:
    """With all its `min_size` connections there, and the server asked for its limits, as the second check does."""
    wait_for(lambda: db.stats()["pool_available"] >= db.stats()["pool_min"], 10, "a full pool")
    assert db.check() is None
    assert db.check() is None
    return db


def value(db: Database, query: str = "select 1", timeout: float | None = None) -> Any:
    with db.connection(timeout) as conn:
        row = conn.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]


def fails(db: Database) -> str:
    """One check that must fail, in time; its reason."""
    begun = time.monotonic()
    with pytest.raises(DatabaseUnavailable) as raised:
        db.check()
    assert time.monotonic() - begun < CHECK
    return str(raised.value)


def passes(db: Database) -> Degraded | None:
    begun = time.monotonic()
    verdict = db.check()
    assert time.monotonic() - begun < CHECK
    return verdict


def soon(call: Callable[[], Any]) -> Any:
    """What call() gives once the database can be used again: on a busy machine a check's second may be too short."""
    end = time.monotonic() + 20
    while True:
        try:
            return call()
        except DatabaseUnavailable:
            if time.monotonic() > end:
                raise


# ---------------------------------------------------------------------- every fault, its end, and what follows


@dataclass
class Scene:
    server: Postgres
    proxy: Proxy
    hogs: list[psycopg.Connection[Any]] = field(default_factory=list)

    def take_all_connections(self) -> None:
        """Until the server has none left for the pool, which loses those it has and competes for new ones."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            query = "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity where application_name = 'pkg'"
            self.server.sql(query)
            with contextlib.suppress(psycopg.OperationalError):
                while True:
                    self.hogs.append(psycopg.connect(self.server.url, application_name="hog"))
            if not self.server.sql("select count(*) from pg_stat_activity where application_name = 'pkg'"):
                return
        raise AssertionError("the pool keeps a connection")

    def free_connections(self) -> None:
        for hog in self.hogs:
            hog.close()
        self.hogs.clear()
        wait_for(lambda: self.server.backends() <= 6, 10, "free connections")

    def mode(self, mode: Mode) -> None:
        self.proxy.mode = mode

    def cut(self) -> None:
        self.proxy.mode = Mode.RESET
        self.proxy.mode = Mode.REFUSE

    def change_password(self) -> None:
        self.server.set_password("another-secret")
        self.server.terminate()

    def refuse(self) -> None:
        self.server.refuse()
        self.server.terminate()

    def set_read_only(self, on: bool) -> None:
        self.server.sql(f"alter system set default_transaction_read_only = {'on' if on else 'off'}")
        self.server.sql("select pg_reload_conf()")


class Fault(NamedTuple):
    name: str
    hurt: Callable[[Scene], object]
    heal: Callable[[Scene], object]
    reason: str  # in the check's words
    role: str = "any"


FAULTS = [
    Fault("stop", lambda s: s.server.stop(), lambda s: s.server.start(), "refused|closed|reset"),
    Fault("kill -9", lambda s: s.server.kill(), lambda s: s.server.start(), "refused|closed|reset"),
    Fault("SIGSTOP", lambda s: s.server.pause(), lambda s: s.server.resume(), "no response"),
    Fault("refused", Scene.refuse, lambda s: s.server.allow(), "not currently accepting connections"),
    Fault("password", Scene.change_password, lambda s: s.server.set_password(PASSWORD), "authentication failed"),
    Fault(
        "max_connections", Scene.take_all_connections, Scene.free_connections, "too many clients|remaining connection"
    ),
    Fault("read-only", lambda s: s.set_read_only(True), lambda s: s.set_read_only(False), "read-only", "primary"),
    Fault("black hole", lambda s: s.mode(Mode.BLACK_HOLE), lambda s: s.mode(Mode.PASS), "no response"),
    Fault("reset", lambda s: s.mode(Mode.RESET), lambda s: s.mode(Mode.PASS), "closed|reset"),
    Fault("FIN", lambda s: s.mode(Mode.END), lambda s: s.mode(Mode.PASS), "closed|reset"),
    Fault("no listener", Scene.cut, lambda s: s.mode(Mode.PASS), "Connection refused"),
]


@pytest.fixture
def scene(server: Postgres) -> Iterator[Scene]:
    with Proxy(server.port) as proxy:
        scene = Scene(server, proxy)
        yield scene
        for hog in scene.hogs:
            hog.close()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_is_seen_at_once_and_so_is_its_end(
    scene: Scene, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lending, "KNOWN_DOWN_TIMEOUT", 0.3)
    with opened(scene.server.url_of(PASSWORD, scene.proxy.port), role=fault.role) as db:
        warmed(db)
        fault.hurt(scene)
        if fault.name == "read-only":  # the server tells its clients when they ask next
            wait_for(lambda: scene.server.sql("show default_transaction_read_only") == "on")
        # On a busy machine an attempt may have had no time to fail by itself.
        reasons = [fails(db), fails(db)]
        while not any(text in reason for text in fault.reason.split("|") for reason in reasons):
            assert len(reasons) < 6, reasons
            reasons.append(fails(db))

        # Who asks for a connection now is told soon, and why.
        begun = time.monotonic()
        with pytest.raises(DatabaseUnavailable, match="no connection within"), db.connection():
            pass
        assert time.monotonic() - begun < lending.KNOWN_DOWN_TIMEOUT + SLACK

        fault.heal(scene)
        if fault.name == "read-only":
            wait_for(lambda: scene.server.sql("show default_transaction_read_only") == "off")
        # A connection of the check's own that began before may be in its way for one check.
        with contextlib.suppress(DatabaseUnavailable):
            db.check()
        passes(db)
        begun = time.monotonic()
        assert value(db, timeout=2.0) == 1
        wait_for(lambda: db.stats()["pool_available"] >= 3, 2, "a pool that is full again")
        assert time.monotonic() - begun < 1.0 + SLACK
        assert passes(db) is None


def test_a_long_connect_timeout_does_not_delay_the_end_of_an_outage(scene: Scene) -> None:
    """Attempts whose peer is gone without a word must not stand in the way of new ones."""
    with opened(scene.server.url_of(PASSWORD, scene.proxy.port) + "?connect_timeout=40", connect_timeout=30) as db:
        warmed(db)
        scene.proxy.mode = Mode.END
        scene.proxy.mode = Mode.HANG_NEW
        for _ in range(10):
            fails(db)
        lost, scene.proxy._held = scene.proxy._held, []
        scene.proxy.mode = Mode.PASS
        begun = time.monotonic()
        soon(db.check)
        assert time.monotonic() - begun < 2.0
        for end in lost:
            end.close()


def test_a_database_that_is_down_at_start(server: Postgres) -> None:
    server.stop()
    with opened(server.url) as db:
        for _ in range(3):
            assert "refused" in fails(db)
        for _ in range(3):
            with pytest.raises(Unavailable):
                value(db, timeout=0.05)
        assert db.stats()["requests_waiting"] == 0  # psycopg_pool counts, and keeps, those who have left
        server.start()
        passes(db)
        assert value(db, timeout=1.0) == 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL], ids=lambda how: how.name)
def test_a_restart_between_two_requests_is_not_noticed_by_them(server: Postgres, how: signal.Signals) -> None:
    """A fast stop ends sessions with a FATAL message, an immediate one with a warning (57P01), a death with none."""
    with opened(server.url, min_size=6) as db:
        warmed(db)
        server.kill() if how is signal.SIGKILL else server.stop(how)
        server.start()
        for _ in range(10):
            assert value(db, timeout=1.0) == 1


def test_the_crash_of_somebody_elses_session_is_not_noticed(server: Postgres) -> None:
    """The server then ends all others with a warning (57P02), and is back after a moment."""
    with opened(server.url, min_size=6) as db:
        warmed(db)
        with psycopg.connect(server.url_of(PASSWORD)) as crashes, psycopg.connect(server.url_of(PASSWORD)) as bystander:
            os.kill(crashes.info.backend_pid, signal.SIGKILL)
            with pytest.raises(psycopg.OperationalError):
                for _ in range(1000):
                    bystander.execute("select pg_sleep(0.01)")
        wait_for(lambda: answers(server))
        for _ in range(10):
            assert value(db, timeout=1.0) == 1


def answers(server: Postgres) -> bool:
    try:
        server.sql("select 1")
    except psycopg.OperationalError:
        return False
    return True


def test_a_restart_between_two_checks_is_no_failure(server: Postgres) -> None:
    with opened(server.url) as db:
        warmed(db)
        server.restart()
        assert passes(db) is None


# ---------------------------------------------------------------------- stale connections


def test_dead_connections_do_not_delay_a_borrower(server: Postgres) -> None:
    """psycopg_pool's own `check=` sleeps 1, 2, 4, 8, 16 s between them; with six it gives up after 30 s."""
    with opened(server.url, min_size=8, max_size=8) as db:
        warmed(db)
        assert server.terminate() == 8
        begun = time.monotonic()
        for _ in range(16):
            assert value(db, timeout=1.0) == 1
        assert time.monotonic() - begun < SLACK


def test_connections_that_a_check_removes_are_counted_as_lost(server: Postgres) -> None:
    """As it does when a statement has shown that the server responds, before it believes that."""
    others = "pg_terminate_backend(pid, 5000)) from pg_stat_activity where usename = current_user"
    with opened(server.url) as db:
        warmed(db)
        assert value(db, f"select count({others} and pid <> pg_backend_pid()") == 2
        assert passes(db) is None
        stats = db.stats()
        assert (stats["connections_lost"], stats["returns_bad"]) == (2, 0)


def test_connections_that_a_firewall_forgot_are_flushed_by_the_check(scene: Scene) -> None:
    """Nothing tells such a connection from an idle one but a question that nobody answers."""
    with opened(scene.server.url_of(PASSWORD, scene.proxy.port), min_size=6) as db:
        warmed(db)
        scene.proxy.mode = Mode.FORGET
        assert passes(db) is None  # a new connection answers, so the database is not down
        assert db.stats()["flushes"] == 1
        begun = time.monotonic()
        for _ in range(12):
            assert value(db, timeout=1.0) == 1
        assert time.monotonic() - begun < SLACK
        assert passes(db) is None
        assert db.stats()["flushes"] == 1


def test_a_borrower_reads_what_the_server_said_and_goes_on(server: Postgres) -> None:
    """A changed setting is reported to idle clients too: readable, and no reason to give a connection up."""
    with opened(server.url, min_size=1, max_size=1) as db:
        before = value(warmed(db), "select pg_backend_pid()")
        with psycopg.connect(server.url_of(PASSWORD)) as other:
            other.execute("select 1")
        server.sql("alter system set timezone = 'Asia/Tokyo'")
        server.sql("select pg_reload_conf()")
        try:
            wait_for(lambda: value(db, "show timezone") == "Asia/Tokyo")
            assert value(db, "select pg_backend_pid()") == before
        finally:
            server.sql("alter system reset timezone")
            server.sql("select pg_reload_conf()")


# ---------------------------------------------------------------------- what the check costs, and what it believes


def transacts(conn: psycopg.Connection[Any]) -> None:
    with conn.transaction():
        conn.execute("select 1")


def commits(conn: psycopg.Connection[Any]) -> None:
    conn.execute("select 1")
    conn.commit()


def autocommits(conn: psycopg.Connection[Any]) -> None:
    conn.autocommit = True
    conn.execute("select 1")


@pytest.mark.parametrize("use", [lambda conn: conn.execute("select 1"), transacts, commits, autocommits])
def test_a_connection_that_came_back_is_proof_without_a_query(
    scene: Scene, use: Callable[[psycopg.Connection[Any]], object]
) -> None:
    with opened(scene.server.url_of(PASSWORD, scene.proxy.port)) as db:
        warmed(db)
        for _ in range(20):
            with db.connection() as conn:
                use(conn)
            carried, queries = scene.proxy.carried, db.stats()["check_queries"]
            assert passes(db) is None
            assert (scene.proxy.carried, db.stats()["check_queries"]) == (carried, queries)


def test_proof_counts_once(server: Postgres) -> None:
    with opened(server.url) as db:
        warmed(db)
        value(db)
        assert passes(db) is None
        server.pause()
        fails(db)


@pytest.mark.parametrize("use", [lambda conn: None, psycopg.Connection.commit, psycopg.Connection.rollback])
def test_a_connection_that_asked_nothing_proves_nothing(
    server: Postgres, use: Callable[[psycopg.Connection[Any]], object]
) -> None:
    with opened(server.url) as db:
        warmed(db)
        server.pause()
        with db.connection() as conn:
            use(conn)
        fails(db)


def test_one_check_is_one_query(server: Postgres) -> None:
    with opened(server.url) as db:
        warmed(db)
        before = db.stats()
        for _ in range(10):
            passes(db)
        after = db.stats()
        assert after["check_queries"] - before["check_queries"] == 10
        assert after["check_connections"] == before["check_connections"]
        assert after["pool_size"] == before["pool_size"] == 3  # and the pool does not grow by it


def test_a_pool_used_up_by_slow_queries_is_degraded_and_never_down(server: Postgres) -> None:
    stop = threading.Event()
    broken: list[BaseException] = []

    def work() -> None:
        while not stop.is_set():
            try:
                value(db, f"select 1 from pg_sleep({random.uniform(0.2, 0.8)})")
            except BaseException as error:
                broken.append(error)

    with opened(server.url, max_size=4, pool_timeout=30.0) as db:
        warmed(db)
        workers = [threading.Thread(target=work) for _ in range(10)]
        for worker in workers:
            worker.start()
        try:
            wait_for(lambda: db.stats()["requests_waiting"] >= 5)
            verdicts = []
            end = time.monotonic() + 2.5
            while time.monotonic() < end:
                verdicts.append(passes(db))
                time.sleep(0.1)
        finally:
            stop.set()
            for worker in workers:
                worker.join(20)
        assert not broken
        reasons = {v.reason.partition(":")[0] for v in verdicts if v is not None}
        assert reasons == {"saturated"}, verdicts


def test_a_pool_whose_connections_never_return_is_judged_by_one_of_the_checks_own(server: Postgres) -> None:
    with opened(server.url, min_size=2, max_size=2) as db, contextlib.ExitStack() as stack:
        warmed(db)
        for _ in range(2):
            stack.enter_context(db.connection())
        verdict = passes(db)
        assert verdict is not None and "all 2 connections are in use" in verdict.reason
        log = (server.folder / "log").read_text(errors="replace")
        assert "application_name=pkg readiness check" in log
        server.pause()
        fails(db)
        fails(db)
        server.resume()
        assert isinstance(passes(db), Degraded)


def test_a_server_that_has_no_connection_more_for_a_full_pool_is_not_down(scene: Scene) -> None:
    with opened(scene.server.url, min_size=2, max_size=2) as db, contextlib.ExitStack() as stack:
        warmed(db)
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                scene.hogs.append(psycopg.connect(scene.server.url))
        value(db)
        conns = [stack.enter_context(db.connection()) for _ in range(2)]
        assert passes(db) is None  # one has just come back
        verdict = passes(db)
        assert verdict is not None and "FATAL" in verdict.reason
        conns[0].execute("select 1")


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("FATAL:  sorry, too many clients already", True),
        (
            "VAZHNO:  ostavshiesya sloty` podklyuchenij zarezervirovany`",
            True,
        ),  # lc_messages = ru_RU.UTF-8, PostgreSQL 15
        ("Connection refused", False),
        ("server closed the connection unexpectedly", False),
        ("timeout expired", False),
    ],
)
def test_whose_word_it_was(text: str, servers: bool) -> None:
    assert refusals.is_servers(f'connection to server at "127.0.0.1", port 40365 failed: {text}') is servers


def test_a_name_of_its_own_is_kept(server: Postgres) -> None:
    with opened(server.url + "?application_name=shop", min_size=1, max_size=1) as db:
        warmed(db)
        with db.connection() as conn:
            assert conn.execute("show application_name").fetchone() == ("shop",)
            assert passes(db) is not None
        assert "application_name=shop readiness check" in (server.folder / "log").read_text(errors="replace")


def test_a_slow_network_is_not_a_dead_one(scene: Scene) -> None:
    """200 ms there and back: a new connection takes 1.4 s, longer than a check."""
    with opened(scene.server.url_of(PASSWORD, scene.proxy.port), min_size=1) as db:
        scene.proxy.delay = 0.1
        verdicts = []
        end = time.monotonic() + 4
        while time.monotonic() < end:
            try:
                verdicts.append(db.check() is None)
            except DatabaseUnavailable:
                verdicts.append(False)
            time.sleep(0.5)
        # Not two failures in a row once there was a connection.
        assert verdicts[-4:].count(False) <= 1, verdicts
        assert value(db) == 1


# ---------------------------------------------------------------------- primary and standby


def test_a_standby_is_no_primary_until_it_is_promoted(server: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pkg")
    standby = server.standby()
    with standby, opened(standby.url, name="any") as any_role, opened(standby.url, role="primary") as db:
        warmed(any_role)
        assert "read-only" in fails(db)
        assert "read-only" in fails(db)
        assert "read-only" in fails(db)
        assert len([r for r in caplog.records if r.name == "pkg.database"]) == 1, "said once"
        assert db.stats()["pool_available"] == 0
        with pytest.raises(DatabaseUnavailable, match="read-only"), db.connection():
            pass
        assert passes(any_role) is None
        standby.promote()
        assert passes(db) is None
        assert value(db, "select pg_is_in_recovery()", timeout=1.0) is False
        wait_for(lambda: db.stats()["pool_available"] >= 3)
        with db.connection(1.0) as conn:
            conn.execute("create temp table t (a int)")


def test_before_postgresql_14_the_server_is_asked(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """It did not report `in_hot_standby` by itself."""
    monkeypatch.setattr(Connection, "reports_read_only", lambda conn: None)
    standby = server.standby()
    with standby, opened(standby.url, role="primary") as db:
        assert "read-only" in fails(db)
        assert "read-only" in fails(db)
        standby.promote()
        assert passes(db) is None
        value(db)
        assert passes(db) is None


# ---------------------------------------------------------------------- deadlines


def runs_out(db: Database, seconds: float, query: str = "select pg_sleep(60)") -> None:
    """A query under a deadline, which must end it in time."""
    begun = time.monotonic()
    with pytest.raises(Unavailable, match=f"not finished within {seconds:g} s|no connection within"):
        value(db, query, timeout=seconds)
    assert seconds - 0.05 < time.monotonic() - begun < seconds + SLACK


def test_a_deadline_frees_the_thread_and_the_server(server: Postgres) -> None:
    with opened(server.url, min_size=1, max_size=1) as db:
        warmed(db)
        runs_out(db, 1.0)
        assert value(db, timeout=1.0) == 1
        query = "select count(*) from pg_stat_activity where usename = 'app' and query like '%pg_sleep(60)%'"
        wait_for(lambda: not server.sql(query), 5, "the server to give it up")
        assert db.stats()["deadlines_passed"] == 1


def test_a_deadline_ends_a_query_that_a_stopped_server_got(server: Postgres) -> None:
    with opened(server.url, max_size=3) as db:
        warmed(db)
        server.pause()
        runs_out(db, 1.0, "select 1")
        runs_out(db, 0.3, "select 1")


def test_a_deadline_ends_a_query_in_a_black_hole(scene: Scene) -> None:
    with opened(scene.server.url_of(PASSWORD, scene.proxy.port), max_size=3) as db:
        warmed(db)
        scene.proxy.mode = Mode.BLACK_HOLE
        runs_out(db, 1.0, "select 1")
        runs_out(db, 0.3, "select 1")
        scene.proxy.mode = Mode.PASS


def test_a_deadline_counts_the_wait_for_a_connection(server: Postgres) -> None:
    with opened(server.url, min_size=1, max_size=1) as db:
        warmed(db)
        with db.connection():
            begun = time.monotonic()
            with pytest.raises(Unavailable, match=r"no connection within 0.3 s; 1 of 1 are in use"), db.connection(0.3):
                pass
            assert time.monotonic() - begun < 0.3 + SLACK


def test_a_deadline_that_passes_between_queries_is_said_at_the_commit(server: Postgres) -> None:
    with opened(server.url) as db:
        warmed(db)
        with pytest.raises(Unavailable, match=r"not finished within 0.2 s"), db.connection(0.2) as conn:
            conn.execute("select 1")
            time.sleep(0.4)


def test_a_swallowed_error_does_not_hide_a_lost_transaction(server: Postgres) -> None:
    with opened(server.url) as db:
        warmed(db)
        with pytest.raises(Unavailable), db.connection(0.2) as conn, contextlib.suppress(psycopg.Error):
            conn.execute("select pg_sleep(60)")


def test_a_deadline_leaves_other_errors_alone(server: Postgres) -> None:
    with opened(server.url) as db:
        warmed(db)
        with pytest.raises(psycopg.errors.DivisionByZero):
            value(db, "select 1/0", timeout=5.0)
        with pytest.raises(KeyError), db.connection(0.1) as conn:
            with contextlib.suppress(psycopg.Error):
                conn.execute("select pg_sleep(60)")
            raise KeyError
        assert value(db) == 1


def test_a_lost_connection_is_unavailable_in_both_languages(server: Postgres) -> None:
    with opened(server.url) as db:
        warmed(db)
        for kind in (DatabaseUnavailable, psycopg.OperationalError):
            with pytest.raises(kind, match="the connection was lost"), db.connection() as conn:
                server.terminate()
                conn.execute("select 1")


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_a_deadline_is_a_positive_number(server: Postgres, timeout: float) -> None:
    with opened(server.url) as db, pytest.raises(ValueError, match="positive"):
        db.connection(timeout)


def test_a_deadline_may_be_as_far_away_as_one_likes(server: Postgres) -> None:
    with opened(server.url) as db:
        warmed(db)
        with db.connection(1e300) as conn:
            conn.execute("select 1")
            runs_out(db, 0.5)  # those of others still pass
        runs_out(db, 0.5)


def test_deadlines_pass_where_no_thread_can_be_started(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container has a limit for its threads, and the application may use them up for a while."""
    start, wanted = threading.Thread.start, set[str]()

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("database-"):
            wanted.add(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    with opened(server.url) as db:
        wait_for(lambda: db.stats()["pool_available"] == 3)
        with monkeypatch.context() as full:
            full.setattr(threading.Thread, "start", refuse)
            before = descriptors()
            with pytest.raises(RuntimeError, match="start new thread"):
                value(db, timeout=1.0)  # no deadline can be kept
            assert descriptors() == before
        warmed(db)
        with monkeypatch.context() as full:
            full.setattr(threading.Thread, "start", refuse)
            runs_out(db, 0.5, "select pg_sleep(9)")
        runs_out(db, 0.5, "select pg_sleep(9)")
        query = "select count(*) from pg_stat_activity where usename = 'app' and query like '%pg_sleep(9)%'"
        wait_for(lambda: not server.sql(query), 5, "the server to give them up")
        assert wanted == {"database-deadlines", "database-cancels"}


def test_a_lease_is_for_one_with(server: Postgres) -> None:
    with opened(server.url) as db:
        lease = db.connection()
        with lease, pytest.raises(RuntimeError, match="in use"), lease:
            pass


def test_commit_and_rollback(server: Postgres) -> None:
    server.sql("create table if not exists kept (a int); grant all on kept to app", database="postgres")
    with opened(server.url) as db:
        with db.connection(5.0) as conn:
            conn.execute("insert into kept values (1)")
        with pytest.raises(KeyError), db.connection(5.0) as conn:
            conn.execute("insert into kept values (2)")
            raise KeyError
        assert value(db, "select sum(a) from kept") == 1
        server.sql("drop table kept", database="postgres")


def test_what_one_borrower_sets_the_next_does_not_have(server: Postgres) -> None:
    """Above all autocommit: a transaction that raised would not be rolled back."""
    server.sql("create table if not exists kept (a int); grant all on kept to app", database="postgres")
    with opened(server.url, min_size=1, max_size=1) as db:
        with db.connection() as conn:
            conn.autocommit = True
            conn.row_factory = psycopg.rows.dict_row
            conn.execute("select 1")
        with pytest.raises(KeyError), db.connection() as conn:
            assert conn.execute("insert into kept values (2) returning a").fetchone() == (2,)
            raise KeyError
        assert value(db, "select count(*) from kept") == 0
        with db.connection() as conn:
            conn.read_only = conn.deferrable = True
            conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
            conn.execute("select 1")
        assert value(db, "show transaction_isolation") == "read committed"
        assert value(db, "insert into kept values (1) returning a") == 1
        with db.connection() as conn:
            conn.prepare_threshold = 0
        with db.connection() as conn:
            assert conn.prepare_threshold == 5
            conn.pgconn.enter_pipeline_mode()
        with db.connection() as conn:
            assert conn.execute("select 1; select 2").fetchone() == (1,)
        server.sql("drop table kept", database="postgres")


def test_deadlines_never_hit_a_connection_that_went_on(server: Postgres) -> None:
    """Eight threads whose deadlines pass about when their queries end: who was not late has its answer."""
    early: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(25):
            timeout = chance.uniform(0.004, 0.03)
            begun = time.monotonic()
            try:
                with db.connection(timeout) as conn:
                    conn.execute("select pg_sleep(%s)", (chance.uniform(0.0, 0.03),))
            except Unavailable as error:
                if time.monotonic() - begun < timeout:
                    early.append(error)
            # Without a deadline nothing may ever be cut.
            try:
                value(db)
            except psycopg.Error as error:
                early.append(error)

    with opened(server.url, min_size=8, max_size=8) as db:
        warmed(db)
        workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert early == []
        assert db.stats()["deadlines_passed"] > 0


def test_released_deadlines_do_not_pile_up(server: Postgres) -> None:
    with opened(server.url, min_size=1, max_size=1) as db:
        warmed(db)
        before = descriptors()
        watchdog = db._lending.watchdog
        with db.connection() as conn:
            assert isinstance(conn, Connection)
            for _ in range(5000):
                watchdog.release(watchdog.watch(conn, time.monotonic() + 30))
            assert len(watchdog._heap) < 200
            assert descriptors() == before


# ---------------------------------------------------------------------- secrets


def test_a_rotated_password_needs_no_restart(server: Postgres, tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(server.url + "\n")
    with opened(url_file=str(file)) as db:
        warmed(db)
        server.set_password("second-secret")
        server.terminate()
        assert "authentication failed" in fails(db)
        file.write_text(server.url_of("second-secret").replace("postgresql://", "postgresql+psycopg://"))
        passes(db)
        assert value(db, timeout=1.0) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        ("", "is empty"),
        ("first-secret", "does not begin with"),
        ("postgresql://h/?first=1", "libpq"),
        ("postgresql://app:first%FF@h/", "libpq does not accept"),
        ("postgresql://app:first%00@h/", "libpq does not accept"),
        ("postgresql://app:first@secret@h/", "percent-encode"),
    ],
)
def test_a_bad_file_is_a_failure_that_does_not_show_it(
    server: Postgres, tmp_path: Path, content: str | None, reason: str
) -> None:
    file = tmp_path / "url"
    file.write_text(server.url)
    with opened(url_file=str(file)) as db:
        warmed(db)
        server.terminate()
        file.unlink()
        if content is not None:
            file.write_text(content)
        with pytest.raises(DatabaseUnavailable) as raised:
            for _ in range(2):
                db.check()
        assert reason in str(raised.value)
        assert "first" not in str(raised.value)
        file.write_text(server.url)
        passes(db)


def test_no_password_in_any_log_or_error(server: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    said = []
    with opened(server.url_of("hunter2hunter2")) as db:
        for _ in range(3):
            said.append(fails(db))
        with pytest.raises(Unavailable) as raised:
            value(db)
        said += [
            str(raised.value),
            repr(raised.value),
            repr(raised.value.__cause__),
            repr(db),
            repr(db._pool),
            str(db.stats()),
        ]
    said += [record.getMessage() for record in caplog.records] + [str(r.exc_info) for r in caplog.records]
    assert any("authentication failed" in text for text in said)
    assert not any("hunter2" in text for text in said)


def test_a_wrong_parameter_is_a_configuration_error_without_the_url() -> None:
    db = Database(url="postgresql://app:hunter2@h/db?sslmod=require")
    with pytest.raises(ConfigurationError) as raised:
        db.open()
    assert raised.value.exit_code == 2
    assert "hunter2" not in str(raised.value) and raised.value.__cause__ is None


# ---------------------------------------------------------------------- the end


def test_close_frees_those_who_wait_and_those_who_work(scene: Scene) -> None:
    ended: list[BaseException] = []

    def work() -> None:
        try:
            value(db, "select pg_sleep(60)")
        except BaseException as error:
            ended.append(error)

    with opened(scene.server.url_of(PASSWORD, scene.proxy.port), min_size=2, max_size=2) as db:
        warmed(db)
        workers = [threading.Thread(target=work) for _ in range(5)]
        for worker in workers:
            worker.start()
        wait_for(lambda: db.stats()["requests_waiting"] == 3)
        scene.proxy.mode = Mode.BLACK_HOLE
        begun = time.monotonic()
        db.close(1.0)
        for worker in workers:
            worker.join(5)
        assert time.monotonic() - begun < 1.0 + 2 * SLACK
        assert [type(e) for e in ended] == [Unavailable] * 5
        scene.proxy.mode = Mode.PASS
    with pytest.raises(Unavailable, match="closed"), db.connection():
        pass
    scene.server.terminate()


def test_the_pool_says_little(server: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    """One line for a failed connection, not one for each worker, attempt and connection."""
    caplog.set_level(logging.INFO)
    with opened(server.url, min_size=6) as db:
        warmed(db)
        value(db)
        assert [r for r in caplog.records if r.name.startswith("psycopg")] == []
        server.stop()
        for _ in range(4):
            fails(db)
        with pytest.raises(Unavailable):
            value(db)
        assert len([r for r in caplog.records if r.name.startswith("psycopg")]) <= 1
        server.start()
        passes(db)
    assert [r.getMessage() for r in caplog.records if r.name == "pkg.database"] == [
        "the database responds again after 4 failed checks"
    ]


def test_attempts_that_time_out_leave_no_descriptor_to_the_garbage_collector(scene: Scene) -> None:
    gc.collect()
    gc.disable()
    try:
        with opened(scene.server.url_of(PASSWORD, scene.proxy.port)) as db:
            warmed(db)
            scene.proxy.mode = Mode.BLACK_HOLE
            before = descriptors()
            for _ in range(2):
                fails(db)
            wait_for(lambda: "database-check-connects" not in threads(), 10)
            assert descriptors() <= before
            scene.proxy.mode = Mode.PASS
    finally:
        gc.enable()


def test_a_lost_connection_is_not_left_to_the_garbage_collector(server: Postgres) -> None:
    gc.collect()
    gc.disable()
    try:
        with opened(server.url, min_size=1, max_size=1) as db:
            warmed(db)
            with pytest.raises(Unavailable), db.connection() as conn:
                lost = weakref.ref(conn)
                server.terminate()
                conn.execute("select 1")
            del conn
            wait_for(lambda: lost() is None)
    finally:
        gc.enable()


def flap(scene: Scene, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    monkeypatch.setattr(database_check, "BORROW_TIMEOUT", 0.005)
    with opened(scene.server.url_of(PASSWORD, scene.proxy.port)) as db:
        warmed(db)
        value(db, timeout=5.0)
        before = threads(), descriptors() - 2 * scene.proxy.open
        for _ in range(times):
            scene.proxy.mode = Mode.RESET
            fails(db)
            scene.proxy.mode = Mode.PASS
            soon(db.check)
            assert soon(lambda: value(db, timeout=2.0)) == 1
        wait_for(lambda: threads() == before[0], 10, f"{threads()} to be {before[0]}")
        wait_for(lambda: db.stats()["pool_available"] == db.stats()["pool_size"], 10)
        assert descriptors() - 2 * scene.proxy.open <= before[1] + db.stats()["pool_size"]
        assert db.stats()["pool_size"] <= 6
    wait_for(lambda: scene.proxy.open == 0, 10, "no connection left")


def test_fifty_flaps_leave_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    flap(scene, monkeypatch, 50)


@pytest.mark.slow
def test_a_thousand_flaps_leave_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    flap(scene, monkeypatch, 1000)


def test_a_thousand_borrowers_in_an_outage_do_not_storm_the_server(scene: Scene) -> None:
    """While the check says that the server is not there, the check alone tries."""
    with opened(scene.server.url_of(PASSWORD, scene.proxy.port), pool_timeout=0.05) as db:
        warmed(db)
        scene.proxy.mode = Mode.RESET
        fails(db)
        fails(db)
        accepted = scene.proxy.accepted
        refused = 0

        def work() -> None:
            nonlocal refused
            for _ in range(50):
                with contextlib.suppress(Unavailable), db.connection(0.02):
                    pass

        workers = [threading.Thread(target=work) for _ in range(20)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert scene.proxy.accepted == accepted
        scene.proxy.mode = Mode.PASS
        soon(db.check)
        assert soon(lambda: value(db, timeout=2.0)) == 1
