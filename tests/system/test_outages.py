"""Long outages, and what a thousand probes a second cost the database: through real HTTP, against a real PostgreSQL.

Short faults of every kind are in test_fault_matrix.py.  The lengths here are those after which psycopg_pool alone would
next try at 63, 127 and 255 s (its back-off doubles from one second).
"""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.support.client import get, wait_for
from tests.support.faults.host import Host
from tests.support.faults.postgres import PASSWORD, Postgres
from tests.support.faults.proxy import Mode, Proxy
from tests.support.ports import free_port
from tests.support.processes import POOLS

RED, GREEN = 5.0, 3.0  # seconds, as in the matrix
POOL = 4


@dataclass
class Outage:
    red: float
    green: float
    first: float  # seconds from the end until a request had its answer, asked again and again
    refilled: float  # until the pool had as many connections as before
    threads: tuple[int, int]
    descriptors: tuple[int, int]
    waiting: int  # callers that wait for a connection, by /metrics, when it has been away long
    alive: bool
    statuses: set[int]


def endure(
    seconds: float, begin: Callable[[Postgres, Proxy], object], end: Callable[[Postgres, Proxy], object]
) -> Outage:
    """One service with its own server and steady requests, for an outage so long."""
    with Postgres() as server, Proxy(server.port) as proxy:
        url = server.url_of(PASSWORD, proxy.port)
        admin = free_port()
        each = str(POOL // POOLS)
        settings = {"PKG_POOL_MIN_SIZE": each, "PKG_POOL_MAX_SIZE": each, "PKG_THREADS": "4"}
        with Host(url, **settings, PKG_ADMIN=f"127.0.0.1:{admin}") as host:
            address = "127.0.0.1", host.port
            host.wait_ready(200, 10)
            with host.load("/query", threads=2) as load:
                wait_for(lambda: load.statuses[200] > 20, 10)
            wait_for(lambda: server.backends() == POOL, 10, "a full pool")
            threads, descriptors = host.threads, host.descriptors
            with host.load("/query", threads=2, pause=0.1) as load:
                begun = time.monotonic()
                begin(server, proxy)
                red = host.wait_ready(503, 15) - begun
                time.sleep(begun + seconds - time.monotonic())
                waiting = pending(admin)
                ended = time.monotonic()
                end(server, proxy)
                wait_for(lambda: get(address, "/query").status == 200, 15, "an answer")
                first = time.monotonic() - ended
                wait_for(lambda: server.backends() >= POOL, 15, "a full pool")
                refilled = time.monotonic() - ended
                green = host.wait_ready(200, 15) - ended
            wait_for(lambda: host.threads <= threads and host.descriptors <= descriptors, 10, "what there was before")
            return Outage(
                red=red, green=green, first=first, refilled=refilled,
                threads=(threads, host.threads), descriptors=(descriptors, host.descriptors),
                waiting=waiting,
                alive=all(p.status == 200 for p in host.probes if p.path == "/healthz"),
                statuses=set(load.statuses),
            )  # fmt: skip


def pending(admin: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=10) as response:
        metrics = response.read().decode()
    line = next(line for line in metrics.splitlines() if line.startswith("db_client_connection_pending_requests{"))
    return int(line.rpartition(" ")[2])


def stop(server: Postgres, proxy: Proxy) -> None:
    server.stop()


def start(server: Postgres, proxy: Proxy) -> None:
    server.start()


def swallow(server: Postgres, proxy: Proxy) -> None:
    proxy.mode = Mode.BLACK_HOLE


def carry(server: Postgres, proxy: Proxy) -> None:
    proxy.mode = Mode.PASS


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param((35.0, 65.0), marks=pytest.mark.slow, id="a minute"),
        pytest.param((130.0,), marks=[pytest.mark.long, pytest.mark.timeout(240)], id="two minutes"),
    ],
)
def test_however_long_it_was_away_it_is_used_at_once(seconds: tuple[float, ...]) -> None:
    kinds = {f"{length:.0f} s stopped": (length, stop, start) for length in seconds}
    kinds[f"{seconds[-1]:.0f} s of black hole"] = (seconds[-1], swallow, carry)
    with ThreadPoolExecutor(len(kinds)) as executor:
        futures = {name: executor.submit(endure, *kind) for name, kind in kinds.items()}
        outages = {name: future.result() for name, future in futures.items()}
    for name, outage in outages.items():
        print(name, outage)
    for name, outage in outages.items():
        assert outage.alive, name
        assert outage.red <= RED, name
        assert outage.green <= GREEN, name
        assert outage.first <= GREEN, name
        assert outage.refilled <= GREEN, name
        assert outage.statuses <= {200, 503}, name
        assert outage.waiting <= 2, name  # as many as there are clients


def test_a_thousand_probes_a_second_cost_no_query() -> None:
    """The database sees the empty queries of each pool's check, one each two seconds, and nothing for the probes."""
    with (
        Postgres() as server,
        Proxy(server.port) as proxy,
        Host(server.url_of(PASSWORD, proxy.port), app="") as host,
    ):
        host.wait_ready(200, 10)
        wait_for(lambda: server.backends() == 2 * POOLS, 10, "a full pool")
        answers = [0, 0]  # all, not 200
        stop = threading.Event()

        def probe() -> None:
            """Bursts of 25 on one connection, forty a second."""
            burst = b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n" * 25
            with socket.create_connection(("127.0.0.1", host.port), 10) as connection:
                due = time.monotonic()
                while not stop.is_set():
                    connection.sendall(burst)
                    data = b""
                    while data.count(b"\r\n\r\nok") + data.count(b" 503 ") < 25:
                        data += connection.recv(65536)
                    answers[0] += 25
                    answers[1] += 25 - data.count(b"HTTP/1.1 200 ")
                    due += 0.025
                    time.sleep(max(0.0, due - time.monotonic()))

        thread = threading.Thread(target=probe)
        thread.start()
        begun, carried, accepted = time.monotonic(), proxy.carried, proxy.accepted
        wait_for(lambda: time.monotonic() - begun >= 6 and answers[0] >= 5000, 30, "5,000 probes")
        lasted = time.monotonic() - begun
        carried = proxy.carried - carried
        stop.set()
        thread.join(10)
        # An empty query is 6 bytes there (Query) and 11 back (EmptyQueryResponse, ReadyForQuery).  How many connections
        # the server has is asked once, in 700 bytes.
        assert carried <= POOLS * (17 * (lasted / 1.7 + 2) + 800), (
            f"{carried} bytes for {answers[0]} probes in {lasted:.1f} s"
        )
        assert carried >= 17, "the check itself"
        assert proxy.accepted == accepted
        assert answers[1] == 0
