"""Several databases in one service: each has a pool, a check and settings of its own, and an outage of one is no outage
of another."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import pkg
from pkg import api
from pkg.database.database import LAST_CANCELS
from tests.support.client import get, wait_for
from tests.support.faults.postgres import PASSWORD, Postgres
from tests.support.faults.proxy import Mode, Proxy
from tests.support.ports import free_port
from tests.support.processes import Process, ask, running

APPLICATION = """
import os
import pkg

def answer(start_response, text):
    start_response("200 OK", [("Content-Length", str(len(text.encode())))])
    return [text.encode()]

def app(environ, start_response):
    what, _, name = environ["PATH_INFO"][1:].partition("/")
    if what == "port":
        with pkg.connection(name, timeout=2) as conn:
            return answer(start_response, str(conn.execute("select inet_server_port()").fetchone()[0]))
    if what == "sleep":
        with pkg.connection(name) as conn:
            conn.execute("select pg_sleep(60)")
    if what == "fork":
        read, write = os.pipe()
        if os.fork() == 0:
            for each in ("", "replica"):
                try:
                    with pkg.connection(each) as conn:
                        os.write(write, b"connected ")
                except pkg.NotRunningError:
                    os.write(write, b"refused ")
            os._exit(0)
        os.close(write)
        os.wait()
        return answer(start_response, os.read(read, 100).decode())
    try:
        pkg.connection(name)
    except pkg.NotRunningError as error:
        return answer(start_response, str(error))
"""


class Scene(NamedTuple):
    """`first` is DATABASE_URL, `second` the required DATABASE_URL_REPLICA; DATABASE_URL_REPORTS is not required, and
    reaches the second through the proxy."""

    process: Process
    admin: tuple[str, int]
    first: Postgres
    second: Postgres
    proxy: Proxy

    def page(self, target: str) -> str:
        return ask(self.admin, target)[2]

    def status(self, target: str) -> int:
        return get(self.process.address, target).status

    def checks(self) -> str:
        return get(self.process.address, "/readyz?verbose").body.decode()

    def metric(self, name: str, pool: str) -> float:
        label = f'db_client_connection_pool_name="{pool}"'
        found = re.findall(rf"^{name}{{{label}}} (\S+)$", self.page("/metrics"), re.MULTILINE)
        assert len(found) == 1, name
        return float(found[0])


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Postgres, Postgres]]:
    with Postgres() as first, Postgres() as second:
        yield first, second


@pytest.fixture(scope="module")
def scene(servers: tuple[Postgres, Postgres], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    first, second = servers
    admin = free_port()
    with (
        Proxy(second.port) as proxy,
        running(
            tmp_path_factory.mktemp("several"),
            APPLICATION,
            DATABASE_URL=first.url,
            DATABASE_URL_REPLICA=second.url,
            DATABASE_URL_REPORTS=second.url_of(PASSWORD, proxy.port),
            PKG_POOL_MAX_SIZE="4",
            PKG_POOL_MAX_SIZE_REPLICA="3",
            PKG_DATABASE_REQUIRED_REPORTS="no",
            PKG_DATABASE_CHECK_INTERVAL="500ms",
            PKG_ADMIN=f"127.0.0.1:{admin}",
        ) as process,
    ):
        wait_for(lambda: get(process.address, "/readyz").status == 200, 20, "readiness")
        yield Scene(process, ("127.0.0.1", admin), first, second, proxy)


def test_each_name_is_another_database(scene: Scene) -> None:
    for path, server in (("", scene.first), ("replica", scene.second), ("reports", scene.second)):
        assert get(scene.process.address, f"/port/{path}").body == str(server.port).encode()
    scene.process.await_message(
        "^connection pools: DATABASE_URL up to 4, DATABASE_URL_REPLICA up to 3, DATABASE_URL_REPORTS up to 4; "
        "11 connections at most$"
    )


def test_a_name_that_does_not_exist_is_answered_with_those_that_do(scene: Scene) -> None:
    text = get(scene.process.address, "/no/replca").body.decode()
    assert text == (
        "the service has no database 'replca'; it has: the one of DATABASE_URL, without a name, 'replica', 'reports'"
    )


def test_pages_and_metrics_name_them(scene: Scene) -> None:
    assert [scene.metric("db_client_connection_max", pool) for pool in ("main", "replica", "reports")] == [4, 3, 4]
    pools = json.loads(scene.page("/debug/pool?format=json"))
    assert {name: stats["pool_max"] for name, stats in pools.items()} == {"database": 4, "replica": 3, "reports": 4}
    text = scene.page("/debug/pool")
    assert re.findall(r"^\w+$", text, re.MULTILINE) == ["database", "replica", "reports"]
    page = json.loads(scene.page("/statusz?format=json"))
    assert page["pool"]["pool_max"] == 4 and page["pools"].keys() == pools.keys()
    text = scene.page("/statusz")
    assert re.findall(r"^Database pool.*", text, re.MULTILINE) == [
        "Database pool",
        "Database pool replica",
        "Database pool reports",
    ]
    for shown in (text, scene.page("/statusz?format=json"), scene.page("/statusz?format=html")):
        assert PASSWORD not in shown
    assert re.findall(r"\[\+\](database\S*) ok", scene.checks()) == ["database", "database-replica", "database-reports"]


def test_a_forked_child_has_none_of_them(scene: Scene) -> None:
    assert get(scene.process.address, "/fork/").body == b"refused refused "
    assert scene.status("/port/") == scene.status("/port/replica") == 200


def test_an_outage_of_one_is_its_own(scene: Scene) -> None:
    scene.proxy.mode = Mode.RESET
    wait_for(lambda: "[~]database-reports" in scene.checks(), 20, "the check of reports to fail")
    assert scene.status("/readyz") == 200, "it is not required"
    assert [scene.status(f"/port/{name}") for name in ("", "replica", "reports")] == [200, 200, 503]
    assert scene.metric("db_client_connection_timeouts_total", "reports") >= 1
    assert scene.metric("db_client_connection_timeouts_total", "main") == 0
    assert "check database-reports fails" in scene.page("/statusz")
    scene.process.await_message("GET /port/reports: reports: no connection within .*; the last check failed")
    scene.process.await_message("error connecting in 'reports'")
    scene.proxy.mode = Mode.PASS
    wait_for(lambda: "[+]database-reports ok" in scene.checks(), 20, "the check of reports to pass")
    scene.process.await_message("^reports: the database responds again after")


def test_an_outage_of_one_that_is_required_takes_the_service_out(scene: Scene) -> None:
    scene.second.stop()
    try:
        wait_for(lambda: scene.status("/readyz") == 503, 20, "readiness to fail")
        assert [scene.status(f"/readyz/{check}") for check in ("database", "database-replica")] == [200, 503]
        assert [scene.status(f"/port/{name}") for name in ("", "replica")] == [200, 503]
    finally:
        scene.second.start()
    wait_for(lambda: scene.status("/readyz") == 200, 20, "readiness")
    assert scene.status("/port/replica") == 200


def test_those_that_hang_are_closed_side_by_side(servers: tuple[Postgres, Postgres]) -> None:
    server, _ = servers
    names = [f"n{number}" for number in range(8)]
    ended: list[str] = []

    def hang(name: str) -> None:
        with pytest.raises(pkg.DatabaseUnavailable), pkg.connection(name) as conn:
            conn.execute("select pg_sleep(60)")
        ended.append(name)

    with Proxy(server.port) as proxy:
        url = server.url_of(PASSWORD, proxy.port)
        threads = [threading.Thread(target=hang, args=(name,)) for name in names]
        sizes = {"PKG_POOL_MIN_SIZE": "1", "PKG_POOL_MAX_SIZE": "1"}
        with pkg.running(**sizes, **{f"DATABASE_URL_{name.upper()}": url for name in names}):
            for thread in threads:
                thread.start()
            query = "select count(*) from pg_stat_activity where query = 'select pg_sleep(60)'"
            wait_for(lambda: server.sql(query) == len(names), 20, "all to wait for the server")
            proxy.mode = Mode.BLACK_HOLE
            begun = time.monotonic()
        took = time.monotonic() - begun
    for thread in threads:
        thread.join(10)
    assert sorted(ended) == names
    # One takes at least the half second that its cancel request gets.
    assert took < len(names) * LAST_CANCELS
    server.terminate()


def test_running_knows_the_names(servers: tuple[Postgres, Postgres]) -> None:
    first, second = servers
    with pkg.running(DATABASE_URL=first.url, DATABASE_URL_OTHER=second.url, PKG_POOL_MIN_SIZE_OTHER="1"):
        with pkg.connection(5) as here, pkg.connection("other", 5) as there:
            assert (here.info.port, there.info.port) == (first.port, second.port)
        with contextlib.closing(pkg.connect("other", 5)) as there:
            assert there.info.port == second.port
        with pytest.raises(pkg.NotRunningError, match=r"no database 'mine'; it has: .*, 'other'"):
            pkg.connection("mine")
        with pytest.raises(TypeError, match="the name of the database is 5"):
            pkg.connection(5, timeout=3)
        checker = api.current().checker
        assert checker is not None
        names = [state.name for state in checker.report().readiness]
        assert names[-2:] == ["database", "database-other"]
    with pkg.running(DATABASE_URL="", DATABASE_URL_OTHER=second.url), pytest.raises(pkg.NotRunningError) as raised:
        pkg.connection()
    assert str(raised.value).endswith("DATABASE_URL is not set, or PKG_POOL is off; those with a name are: other")
    with pytest.raises(TypeError, match="does not exist: PKG_POOL_MIN_SIZE_OTHER"):
        pkg.running(PKG_POOL_MIN_SIZE_OTHER="1").__enter__()


def test_a_url_that_libpq_refuses_leaves_nothing(servers: tuple[Postgres, Postgres]) -> None:
    first, _ = servers
    url, wrong = first.url + "?application_name=closed", first.url + "?sslmod=require"
    with pytest.raises(pkg.ConfigurationError) as raised, pkg.running(DATABASE_URL=url, DATABASE_URL_B=wrong):
        pass
    assert str(raised.value) == (
        "DATABASE_URL_B: libpq has no parameter 'sslmod'; if only the application uses the URL, set PKG_POOL_B=off"
    )
    query = "select count(*) from pg_stat_activity where application_name = 'closed'"
    wait_for(lambda: first.sql(query) == 0, 10, "the connections of the other to end")


# ---------------------------------------------------------------------- without settings


def test_a_pool_of_ones_own(servers: tuple[Postgres, Postgres]) -> None:
    first, _ = servers
    with pkg.Database(first.url, name="own", max_size=2) as own:
        with own.connection(timeout=5) as conn:
            assert conn.info.port == first.port
        assert own.check() is None
        with pytest.raises(ValueError, match="a pool named 'own' is open already"):
            pkg.Database(first.url, name="own").open()
        with pkg.running(DATABASE_URL=first.url):  # which has a pool of another name
            pkg.check("own", interval=1)(own.check)
            with pkg.connection(5) as here, own.connection(5) as there:
                assert here.info.backend_pid != there.info.backend_pid
            with pytest.raises(ValueError, match="a pool named 'database' is open already"):
                pkg.Database(first.url).open()
    with pytest.raises(pkg.DatabaseUnavailable), own.connection():
        pass
    with pkg.Database(first.url, name="own"):  # the name is free again
        pass
    with pytest.raises(pkg.ConfigurationError, match=r"^url: libpq has no parameter 'sslmod'$"):
        pkg.Database(first.url + "?sslmod=require", name="own").open()


def test_a_forked_child_may_open_a_pool_of_the_same_name(servers: tuple[Postgres, Postgres], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("""
import os, sys, pkg
with pkg.Database(sys.argv[1], name="own") as own:
    if (child := os.fork()) == 0:
        try:
            with own.connection():
                pass
        except pkg.NotRunningError:
            with pkg.Database(sys.argv[1], name="own") as other, other.connection(timeout=10) as conn:
                print(conn.execute("select 'connected'").fetchone()[0], flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    with own.connection(timeout=10) as conn:
        print(conn.execute("select 'as well'").fetchone()[0])
""")
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "script.py", servers[0].url]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "connected\nas well\n", "")
