"""A real PgBouncer between the pool and the server, which gives each transaction another session."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pkg.database import Database
from pkg.errors import DatabaseUnavailable
from tests.client import wait_for
from tests.faults.postgres import Postgres
from tests.load import is_reachable
from tests.processes import free_port

PGBOUNCER = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="not installed: pgbouncer (a package of Debian's)")

SESSIONS = 3  # with the server, for all clients


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def url(server: Postgres) -> Iterator[str]:
    """Of a PgBouncer before the server."""
    assert PGBOUNCER is not None
    port = free_port()
    options = conninfo_to_dict(server.url)
    database = f"host=127.0.0.1 port={server.port} user={options['user']} password={options['password']}"
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as name:
        folder = Path(name)
        config = folder / "config"
        config.write_text(
            f"[databases]\n{options['dbname']} = {database}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = transaction\ndefault_pool_size = {SESSIONS}\nserver_login_retry = 1\n"
        )
        folder.chmod(0o755)
        command = [PGBOUNCER, *(["-u", "nobody"] if os.geteuid() == 0 else []), str(config)]
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_for(lambda: is_reachable(("127.0.0.1", port)), 15, "PgBouncer")
            yield make_conninfo(server.url, port=port)
        finally:
            process.kill()
            process.wait()


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
