"""Section 12: latency at a constant rate, counted from the scheduled time, the same for all servers.

The rates are shares of what the slowest of them is capable of.  Servers take turns, started anew for each round and
alone, as one that waits for requests with a busy loop would slow the others down; shown are the medians of their
rounds.  Beside steady traffic there are events in the middle of a round: a worker dies, all are replaced, the database
stops for a second.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench.database import postgres
from bench.environment import ROOT
from bench.openloop import DRAIN
from bench.peers import ASGI_PEERS, REPLACING_PEERS, STEADY_PEERS, THREADS, Peer, with_threads
from bench.servers import LOAD_CORES, Running, on_cores, process_tree
from bench.session import Session

SECONDS, CAPACITY_SECONDS, WARM_SECONDS = 3, 2, 0.3
SHARES = (0.5, 0.8)  # of the capacity of the slowest
PERCENTILES = (50.0, 99.0, 99.9)
OUTAGE = 1.0  # seconds

SHORT = {"/short": 1.0}
LONG = {"/short": 95.0, "/long": 5.0}
SLEEP = {"/short": 92.0, "/sleep": 8.0}
QUERY = {"/short": 80.0, "/query": 20.0}


@dataclass
class Case:
    """`event(server, database)`: what happens in the middle."""

    title: str
    mix: dict[str, float]
    peers: tuple[Peer, ...]
    shares: tuple[float, ...] = SHARES
    event: Callable[[Running, Any], None] | None = None
    needs_database: bool = False
    rates: dict[float, float] = field(default_factory=dict)  # by share


def _kill_a_worker(server: Running, database: Any) -> None:
    """The youngest process."""
    *_, last = process_tree(server.process.pid)
    os.kill(last, signal.SIGKILL)


def _reload(server: Running, database: Any) -> None:
    os.kill(server.process.pid, signal.SIGHUP)


def _outage(server: Running, database: Any) -> None:
    database.pause()
    threading.Timer(OUTAGE, database.resume).start()


QUICK, QUICK_ASGI = "pkg gunicorn granian", "pkg uvicorn granian"


def cases(quick: bool) -> list[Case]:
    if quick:
        wsgi = tuple(peer for peer in STEADY_PEERS if peer.name in QUICK.split())
        asgi = tuple(peer for peer in ASGI_PEERS if peer.name in QUICK_ASGI.split())
        return [Case("short and long", LONG, wsgi, (0.8,)), Case("ASGI, short and long", LONG, asgi, (0.8,))]
    threaded = with_threads(THREADS)  # the others would sleep, and wait for the database, for all requests
    return [
        Case("short", SHORT, STEADY_PEERS),
        Case("short and long", LONG, STEADY_PEERS),
        Case("short and long, 4 threads", LONG, with_threads(4), (0.8,)),
        Case("short and long, 16 threads", LONG, with_threads(16), (0.8,)),
        Case("short and sleeping", SLEEP, threaded),
        Case("ASGI, short and long", LONG, ASGI_PEERS),
        Case("a worker of two dies", SHORT, REPLACING_PEERS, (0.5,), _kill_a_worker),
        Case("two workers are reloaded", SHORT, REPLACING_PEERS, (0.5,), _reload),
        Case("the database stops for 1 s", QUERY, threaded, (0.5,), _outage, needs_database=True),
    ]


def run(session: Session) -> list[dict[str, Any]]:
    """Rows of {"case", "share", "rate", "server", "path", "ms": {"p50": ..., ...}, "failed"}."""
    out: list[dict[str, Any]] = []
    for case in cases(session.quick):
        with contextlib.ExitStack() as stack:
            database = stack.enter_context(postgres(session)) if case.needs_database else None
            if case.needs_database and database is None:
                continue
            try:
                out += _measure(session, case, database)
            except (OSError, subprocess.CalledProcessError) as error:  # the others are not lost with it
                session.missing[f"steady, {case.title}"] = f"{type(error).__name__}: {error}"
    return out


def _measure(session: Session, case: Case, database: Any) -> list[dict[str, Any]]:
    names = {peer.name for peer in session.peers}
    peers = [peer for peer in case.peers if peer.name in names]
    extra = {"DATABASE_URL": database.url} if database is not None else None
    capacity = {}
    for peer in peers:
        session.say(f"capacity, {case.title}: {peer.title}")
        if (server := session.start(peer, extra)) is not None:
            with server:
                _warm_up(server, case)
                capacity[peer.name] = ask(server, 0.0, CAPACITY_SECONDS, case.mix)["rate"]
    out = []
    for share in case.shares if capacity else ():
        rate = round(min(capacity.values()) * share)
        found: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in peers}
        rounds = 1 if session.quick else 10
        for number, peer in itertools.product(range(rounds), peers):
            session.say(f"{case.title}, {rate}/s, round {number + 1} of {rounds}: {peer.title}")
            if (server := session.start(peer, extra)) is not None:
                with server:
                    _warm_up(server, case)
                    found[peer.name].append(_ask_with_event(server, rate, case, database))
        for name in capacity:
            results = found[name]
            out += [
                {"case": case.title, "share": share, "rate": rate, "server": name, "path": path,
                 "capacity": round(capacity[name]), "failed": sum(result["failed"] for result in results),
                 "ms": {f"p{p:g}": round(statistics.median(_percentile(r["latencies"][path], p) for r in results), 3)
                        for p in PERCENTILES}}
                for path in case.mix if results
            ]  # fmt: skip
    return out


def _warm_up(server: Running, case: Case) -> None:
    """The first requests import, connect and fill caches."""
    ask(server, 0.0, WARM_SECONDS, case.mix)


def _ask_with_event(server: Running, rate: float, case: Case, database: Any) -> dict[str, Any]:
    if case.event is None:
        return ask(server, rate, SECONDS, case.mix)
    timer = threading.Timer(SECONDS / 3, case.event, (server, database))
    timer.start()
    try:
        return ask(server, rate, SECONDS, case.mix)
    finally:
        timer.join()


def ask(server: Running, rate: float, seconds: float, mix: dict[str, float]) -> dict[str, Any]:
    words = [f"{path}:{weight:g}" for path, weight in mix.items()]
    with on_cores(LOAD_CORES):
        done = subprocess.run(
            [sys.executable, "-m", "bench.openloop", str(server.port), f"{rate:g}", f"{seconds:g}", *words],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _percentile(latencies: list[float], p: float) -> float:
    """In milliseconds."""
    ordered = sorted(latencies) or [DRAIN]
    return ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))] * 1e3
