"""A query whose deadline passes ends on its server, and nobody else's does."""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import capabilities

from pkg.database import cancel as _cancel
from pkg.database.connection import Unavailable
from pkg.database.database import Database
from tests.support.client import wait_for
from tests.support.faults.pgbouncer import PGBOUNCER, bouncing
from tests.support.faults.postgres import Postgres
from tests.support.faults.proxy import Proxy
from tests.support.processes import ask, running

SLEEPING = "select count(*) from pg_stat_activity where usename = 'app' and state = 'active'"


class Balancer(Proxy):
    """Takes its servers in turn, a new connection at a time."""

    def __init__(self, *ports: int) -> None:
        self._ports = ports
        self._next = 0
        super().__init__(ports[0])

    @property
    def target(self) -> int:
        self._next += 1
        return self._ports[self._next % len(self._ports)]

    @target.setter
    def target(self, port: int) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@contextlib.contextmanager
def opened(url: str) -> Iterator[Database]:
    db = Database(url=url, min_size=1, max_size=1, connect_timeout=2.0)
    db.open()
    try:
        wait_for(lambda: db.stats()["pool_available"] == 1, 10, "a connection")
        yield db
    finally:
        db.close(2.0)


def runs_out(db: Database, query: str = "select pg_sleep(60), %s::int") -> None:
    begun = time.monotonic()
    with pytest.raises(Unavailable, match="not finished within"), db.connection(timeout=0.5) as conn:
        conn.execute(query.encode(), [1] if "%s" in query else None)
    assert time.monotonic() - begun < 5.0


@pytest.mark.parametrize("query", ["select pg_sleep(60), %s::int", "select pg_sleep(60)"], ids=["piped", "simple"])
def test_a_balancer_with_two_servers(server: Postgres, query: str) -> None:
    """The request reaches the wrong server first, which has no session with that secret."""
    with Postgres() as other:
        proxy = Balancer(server.port, other.port)
        with proxy, opened(f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres") as db:
            with db.connection() as conn:
                row = conn.execute("select inet_server_port()").fetchone()
                assert row is not None
            ours = server if row[0] == server.port else other
            theirs = other if ours is server else server
            with psycopg.connect(theirs.url_of("", theirs.port).replace("app:", "postgres:")) as innocent:
                result: list[Any] = []
                thread = threading.Thread(
                    target=lambda: result.append(innocent.execute("select pg_sleep(2)").fetchone())
                )
                thread.start()
                proxy._next = proxy._ports.index(ours.port)  # the next one goes to the other
                runs_out(db, query)
                active = "select count(*) from pg_stat_activity where state = 'active' and query like '%pg_sleep(60)%'"
                active += " and pid <> pg_backend_pid()"
                wait_for(lambda: ours.sql(active) == 0, 5, "our query to end")
                thread.join()
                assert len(result) == 1


def test_close_cancels_what_runs(server: Postgres) -> None:
    failure: list[BaseException] = []

    def work(db: Database) -> None:
        try:
            with db.connection() as conn:
                conn.execute("select pg_sleep(60)")
        except Unavailable as error:
            failure.append(error)

    with opened(server.url) as db:
        thread = threading.Thread(target=work, args=(db,))
        thread.start()
        wait_for(lambda: server.sql(SLEEPING) == 1, 5, "the query to run")
    thread.join(5)
    assert len(failure) == 1
    wait_for(lambda: server.sql(SLEEPING) == 0, 5, "the query to end")


def test_nothing_is_sent_after_the_deadline(server: Postgres) -> None:
    """A body that goes on gets no statement out, though the connection is still open to the server."""
    server.sql("create table late (a int); grant all on late to app", database="postgres")
    with opened(server.url) as db:
        with pytest.raises(Unavailable, match="not finished within"), db.connection(timeout=0.3) as conn:
            conn.autocommit = True
            wait_for(lambda: db.stats()["deadlines_passed"] == 1, 5, "the deadline")
            with contextlib.suppress(psycopg.OperationalError):
                conn.execute("insert into late values (1)")
        with db.connection() as conn:
            assert conn.execute("select count(*) from late").fetchone() == (0,)
    server.sql("drop table late", database="postgres")


@pytest.fixture(scope="module")
def tls_url(server: Postgres) -> Iterator[str]:
    """Of a PgBouncer, which takes no cancel request any more once a client has taken its leave."""
    with bouncing(server, 3, tls=True) as url:
        yield url


needs_pgbouncer = pytest.mark.skipif(PGBOUNCER is None, reason="not installed: pgbouncer (a package of Debian's)")


@needs_pgbouncer
def test_a_secret_is_not_sent_in_plain_text_where_tls_is_demanded(
    server: Postgres, tls_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libpq 17 cancels over TLS; an older one cannot, and then the log says so, once."""
    monkeypatch.setattr(_cancel, "_said", False)
    with opened(tls_url + "?sslmode=require") as db:
        for _ in range(2):
            wait_for(lambda: db.stats()["pool_available"] == 1, 10, "a connection")
            runs_out(db, "select pg_sleep(60)")
        lines = [record.getMessage() for record in caplog.records if "are not cancelled" in record.getMessage()]
        if capabilities.has_cancel_safe():
            wait_for(lambda: server.sql(SLEEPING) == 0, 5, "the queries to end")
            assert lines == []
        else:
            assert server.sql(SLEEPING) == 2
            (line,) = lines
            assert "sslmode=require" in line
            server.terminate()


@needs_pgbouncer
def test_tls_that_is_not_demanded(server: Postgres, tls_url: str) -> None:
    with opened(tls_url + "?sslmode=prefer") as db:
        with db.connection() as conn:
            assert conn.pgconn.ssl_in_use
        runs_out(db, "select pg_sleep(60)")
        wait_for(lambda: server.sql(SLEEPING) == 0, 5, "the query to end")


# What a client begins with (PostgreSQL: protocol-message-formats, SSLRequest and CancelRequest).
SSL_REQUEST = struct.pack("!II", 8, 80877103)
CANCEL_REQUEST = struct.pack("!II", 16, 80877102)

SOURCE = """
import pkg

def app(environ, start_response):
    with pkg.connection(timeout=1) as conn:
        conn.execute("select pg_sleep(%s), 'of the service'", [float(environ["QUERY_STRING"])])
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


@needs_pgbouncer
@pytest.mark.parametrize("mode", ["require", "prefer"])
def test_what_the_process_sends_in_plain_text(server: Postgres, tls_url: str, tmp_path: Path, mode: str) -> None:
    """Its secret only where libpq, before 17, can do no other and nobody demands TLS."""
    is_encrypted = capabilities.has_cancel_safe()
    with Proxy(int(tls_url.rpartition(":")[2].partition("/")[0])) as proxy:
        url = f"{server.url_of('first-secret', proxy.port)}?sslmode={mode}"
        environ = {"DATABASE_URL": url, "PKG_PREPARE_STATEMENTS": "false", "PKG_ADMIN": "off"}
        environ |= {"PKG_POOL_MIN_SIZE": "1", "PKG_POOL_MAX_SIZE": "1"}
        with running(tmp_path, SOURCE, **environ) as process:
            wait_for(lambda: ask(process.address, "/readyz")[0] == 200, 10, "readiness")
            assert ask(process.address, "/?60")[0] == 503
            if is_encrypted or mode == "prefer":
                wait_for(lambda: server.sql(SLEEPING) == 0, 5, "the query to end")
            else:
                process.await_message("are not cancelled on the server .*sslmode=require")
                assert server.terminate() == 1
            plain = [beginning for beginning in proxy.beginnings if not beginning.startswith(SSL_REQUEST)]
            assert [beginning[:8] for beginning in plain] == [CANCEL_REQUEST] * (mode == "prefer" and not is_encrypted)
            assert process.stop() == 0
