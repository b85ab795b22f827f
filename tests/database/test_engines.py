"""Readiness from SQLAlchemy's own pools (pkg.integrations.sqlalchemy): services of every driver on one server.

                   psycopg  psycopg2  asyncpg  psycopg's asyncio     through each fault at the same time
role=primary       psycopg            asyncpg                        when the server becomes read-only
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest

pytest.importorskip("sqlalchemy")
from sqlalchemy import create_engine, text

from pkg.integrations.sqlalchemy import check_engine
from tests.support.client import get, wait_for
from tests.support.faults.host import Host
from tests.support.faults.outage import RED, each, load, outage
from tests.support.faults.postgres import PASSWORD, Postgres
from tests.support.faults.proxy import Mode, Proxy

DRIVERS = ("psycopg", "psycopg2", "asyncpg", "psycopg_asyncio")
OPTIONS = {"pool_size": 2, "max_overflow": 0, "pool_timeout": 2}


def host_of(server: Postgres, driver: str, role: str = "any", url: str = "", **options: object) -> Host:
    return Host(
        url or server.url, app="tests.support.faults.engine_application:app",
        PKG_POOL="off", ENGINE_DRIVER=driver, ENGINE_OPTIONS=json.dumps(OPTIONS | options), ENGINE_ROLE=role,
        PKG_THREADS="6",
    )  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres(settings={"log_statement": "all", "max_connections": 40}) as server:
        yield server


@pytest.fixture(scope="module")
def hosts(server: Postgres) -> Iterator[list[Host]]:
    with contextlib.ExitStack() as stack:
        # At once, as most of their start is the import of SQLAlchemy.
        hosts = [host_of(server, driver) for driver in DRIVERS]
        for host in hosts:
            stack.enter_context(host)
            host.wait_ready(200, 20)
        yield hosts


def pings(server: Postgres) -> int:
    """Queries so far that are not the application's, nor around one."""
    lines = (server.folder / "log").read_text(errors="replace").lower().splitlines()
    return sum(
        ("statement: " in line or " execute " in line)
        and not any(word in line for word in ("select 42", "begin", "rollback", "statement: set"))
        for line in lines
    )


def test_statements_of_the_application_replace_queries(server: Postgres, hosts: list[Host]) -> None:
    with load(hosts):
        for host in hosts:
            wait_for(lambda host=host: get(("127.0.0.1", host.port), "/query").status == 200, 10)
        before, end = pings(server), time.monotonic() + 2.5
        wait_for(lambda: time.monotonic() > end, 10)
        assert pings(server) - before <= len(hosts) / 2, "each would have made one or two"
    before = pings(server)
    wait_for(lambda: pings(server) >= before + len(hosts), 10, "queries without other evidence")


@pytest.mark.long
def test_a_server_that_stops(server: Postgres, hosts: list[Host]) -> None:
    with load(hosts):
        outage(hosts, server.stop, server.start)


def test_a_server_that_hangs(server: Postgres, hosts: list[Host]) -> None:
    """With idle connections, which hang, and whose questions must not pile up."""
    outage(hosts, server.pause, server.resume)
    for host in hosts:
        assert get(("127.0.0.1", host.port), "/query").status == 200


def test_a_blocked_event_loop_is_not_the_databases_fault(hosts: list[Host]) -> None:
    asynchronous = hosts[2:]
    begun = time.monotonic()
    threads = [
        threading.Thread(target=get, args=(("127.0.0.1", host.port), "/block?3"), daemon=True) for host in asynchronous
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for host in asynchronous:
        host.wait_ready(200, 5)
        assert {p.status for p in host.probes if p.path == "/readyz" and p.at > begun} == {200}
        assert get(("127.0.0.1", host.port), "/query").status == 200


@pytest.mark.long
def test_a_saturated_pool_is_degraded(hosts: list[Host]) -> None:
    begun = time.monotonic()
    with load(hosts, "/sleep?3", threads=4):
        for host in hosts:
            wait_for(lambda host=host: host.logged("readiness check database degraded"), 15, "degraded")
            assert "saturated: all 2 connections are in use" in host.logged("readiness check database degraded")
    for host in hosts:
        assert {p.status for p in host.probes if p.path == "/readyz" and p.at > begun} == {200}


@pytest.mark.long
def test_a_server_that_hangs_under_load(server: Postgres, hosts: list[Host]) -> None:
    with load(hosts):
        outage(hosts, server.pause, server.resume)


@pytest.mark.long
def test_sessions_that_are_ended(server: Postgres, hosts: list[Host]) -> None:
    begun = time.monotonic()
    with load(hosts):
        server.terminate()
        time.sleep(RED)
    for host in hosts:
        assert {p.status for p in host.probes if p.path == "/readyz" and p.at > begun} == {200}


@pytest.mark.long
def test_a_server_that_is_full(server: Postgres, hosts: list[Host]) -> None:
    """It fails while none of the pool's connections exists, and is degraded while they do."""
    url = server.url.replace("/postgres", "/template1")

    def fill() -> None:
        server.refuse()  # so that the slots that become free are ours
        server.terminate()
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                taken.callback(psycopg.connect(url).close)
        server.allow()

    with contextlib.ExitStack() as taken:
        outage(hosts, fill, taken.close)
        for host in hosts:
            assert "connection slots" in (failed := host.logged("database failed") or "") or "too many" in failed
        begun = time.monotonic()
        with load(hosts, "/sleep?3", threads=2), contextlib.suppress(psycopg.OperationalError):
            wait_for(lambda: server.backends() == 2 * len(hosts), 10, "full pools")
            while True:
                taken.callback(psycopg.connect(url).close)
        with load(hosts, "/sleep?3", threads=2):
            for host in hosts:
                wait_for(lambda host=host: host.logged("refuses another"), 15)
    for host in hosts:
        assert {p.status for p in host.probes if p.path == "/readyz" and p.at > begun} == {200}


@pytest.mark.long
@pytest.mark.parametrize("pre_ping", [False, True])
def test_a_route_that_is_lost(server: Postgres, pre_ping: bool) -> None:
    """Nothing ends the attempts to connect and the questions but the check."""
    with Proxy(server.port) as proxy, contextlib.ExitStack() as stack:
        url = server.url_of(PASSWORD, proxy.port)
        hosts = [host_of(server, driver, url=url, pool_pre_ping=pre_ping) for driver in DRIVERS]
        for host in hosts:
            stack.enter_context(host)
            host.wait_ready(200, 20)
            assert get(("127.0.0.1", host.port), "/query").status == 200
        descriptors, threads = [host.descriptors for host in hosts], [host.threads for host in hosts]
        most = [0] * len(hosts)

        def end() -> None:
            most[:] = [host.threads for host in hosts]
            proxy.mode = Mode.PASS

        outage(hosts, lambda: setattr(proxy, "mode", Mode.BLACK_HOLE), end, lasts=12.0)
        assert all(n - before <= 8 for n, before in zip(most, threads, strict=True)), "attempts that pile up"
        # A thread of its own event loop may have come with its descriptors, and one connection more.
        wait_for(lambda: all(h.descriptors <= n + 3 for h, n in zip(hosts, descriptors, strict=True)), 10)


@pytest.mark.long
def test_a_server_that_is_read_only(server: Postgres) -> None:
    with contextlib.ExitStack() as stack:
        hosts = [stack.enter_context(host_of(server, driver, "primary")) for driver in ("psycopg", "asyncpg")]
        each(hosts, 200)

        def read_only(value: str) -> None:
            server.sql(f"alter system set default_transaction_read_only = {value}")
            server.sql("select pg_reload_conf()")

        with load(hosts):
            outage(hosts, lambda: read_only("on"), lambda: read_only("off"))
        for host in hosts:
            assert "read-only" in (host.logged("database failed") or "")


def test_what_is_wrong_is_told_at_once(server: Postgres) -> None:
    engine = create_engine(server.url.replace("postgresql:", "postgresql+psycopg:"))
    with pytest.raises(ValueError, match="role must be any or primary"):
        check_engine(engine, role="standby")
    with pytest.raises(ValueError, match="interval must be"):
        check_engine(engine, interval=0)
    with engine.connect() as connection:
        assert connection.scalar(text("select 1")) == 1
    engine.dispose()
