"""Section 2: how long a probe waits for its response while the server is in trouble.

    saturated     32 clients, each wanting 50 ms of CPU of the application again and again
    lock held     one request that holds the interpreter lock for 3 s, then a second of rest, again and again
    slow clients  10,000 connections that send one byte of a request a second
    frozen        PostgreSQL stopped by SIGSTOP: it accepts and never answers; 8 clients query; both probes are asked

and of servers with an event loop, the ASGI application beside its probes:

    blocked       one request that sleeps for 3 s in the event loop, then a second of rest, again and again
    callbacks     CPU in callbacks of 0.1 to 10 ms, without an end
    lock held     as above, in the event loop

A probe is a new connection every 20 ms, however long earlier ones take, as an orchestrator asks.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import resource
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from bench.database import postgres
from bench.environment import Missing
from bench.load import Background, Crowd, Probes, read_probes, start_probes
from bench.peers import BY_NAME
from bench.servers import Running, get
from bench.session import Session

INTERVAL = 0.02  # seconds
TIMEOUT = 5  # seconds; also the latency counted for a probe without a response
SLOW_CLIENTS = 10_000
BOTH = ("/healthz", "/readyz")


@contextlib.contextmanager
def _saturated(session: Session, server: Running) -> Iterator[dict[str, Any]]:
    with Background(server, "/busy", 32):
        time.sleep(0.5)
        yield {}


@contextlib.contextmanager
def _again(target: str, rest: float, session: Session, server: Running) -> Iterator[dict[str, Any]]:
    """One request after the other, with so many seconds between them."""
    end = threading.Event()

    def hold() -> None:
        while not end.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException):
                get(server.port, target, timeout=60)
            end.wait(rest)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    time.sleep(0.2)
    try:
        yield {}
    finally:
        end.set()


@contextlib.contextmanager
def _slow_clients(session: Session, server: Running) -> Iterator[dict[str, Any]]:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with Crowd(server, "slow", min(SLOW_CLIENTS, limit - 100), opening=4 if session.quick else 10) as crowd:
        yield {"connections": crowd.wait()}


@contextlib.contextmanager
def _frozen(server: Running, database: Any) -> Iterator[dict[str, Any]]:
    deadline = time.monotonic() + 10
    while get(server.port, "/readyz") != 200:
        if time.monotonic() > deadline:
            raise Missing("it did not become ready")
        time.sleep(0.1)
    database.pause()
    try:
        with Background(server, "/query", 8):
            time.sleep(0.5)
            yield {}
    finally:
        database.resume()


@contextlib.contextmanager
def _noted(session: Session, what: str) -> Iterator[None]:
    """A server that fails is a line in the report and does not end the run."""
    try:
        yield
    except (OSError, http.client.HTTPException, Missing, ValueError) as error:
        session.missing[what] = str(error) or type(error).__name__


# Servers that run the application in an event loop.
EVENT_LOOPS = (
    replace(
        BY_NAME["pkg"], name="pkg-asgi", title="pkg (ASGI)",
        command=lambda port, folder: [
            word.replace(":wsgi", ":asgi") for word in BY_NAME["pkg"].command(port, folder)
        ],
    ),
    BY_NAME["uvicorn"],
)  # fmt: skip


def _event_loops(session: Session) -> list[dict[str, Any]]:
    out = []
    for case, trouble in (
        ("event loop blocked", functools.partial(_again, "/loop/block", 1)),
        ("callbacks", functools.partial(_again, "/loop/callbacks", 0)),
        ("lock held by the event loop", functools.partial(_again, "/loop/hold", 1)),
    ):
        for peer in EVENT_LOOPS:
            if peer is not EVENT_LOOPS[0] and (
                peer not in session.peers or (session.quick and case != "event loop blocked")
            ):
                continue
            session.say(f"probe latency, {case}: {peer.title}")
            server = session.start(peer)
            if server is not None:
                with _noted(session, f"{peer.name}, {case}"), server, trouble(session, server) as facts:
                    paths = BOTH if peer is EVENT_LOOPS[0] else BOTH[:1]  # other servers have no readiness
                    out += _ask(server, paths, 4 if session.quick else 8, case, peer.name, facts)
    return out


def _ask(
    server: Running, paths: tuple[str, ...], seconds: int, case: str, name: str, facts: dict[str, Any]
) -> list[dict[str, Any]]:
    """Probes of all these paths at the same time; a record of each."""
    started = {path: start_probes(server.port, path, seconds, INTERVAL, TIMEOUT) for path in paths}
    return [
        {"case": case, "server": name, "path": path, **facts, **_record(read_probes(process, TIMEOUT))}
        for path, process in started.items()
    ]


def run(session: Session) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for case, trouble, seconds, quick in (
        ("saturated", _saturated, 3 if session.quick else 6, "pkg gunicorn granian"),
        ("lock held", functools.partial(_again, "/hold", 1), 4 if session.quick else 8, "pkg gunicorn"),
        ("slow clients", _slow_clients, 3 if session.quick else 6, "pkg gunicorn"),
    ):
        for peer in session.choose(hosts=True, quick=quick):
            session.say(f"probe latency, {case}: {peer.title}")
            server = session.start(peer)
            if server is not None:
                with _noted(session, f"{peer.name}, {case}"), server, trouble(session, server) as facts:
                    out += _ask(server, BOTH[:1], seconds, case, peer.name, facts)
    out += _event_loops(session)
    with postgres(session) as database:
        for peer in session.choose(hosts=True, quick="pkg gunicorn") if database is not None else []:
            session.say(f"probe latency, database frozen: {peer.title}")
            server = session.start(peer, {"DATABASE_URL": database.url})
            if server is None:
                continue
            with _noted(session, f"{peer.name}, database frozen"), server, _frozen(server, database) as facts:
                out += _ask(server, BOTH, 3 if session.quick else 6, "database frozen", peer.name, facts)
    return out


def _record(seen: Probes) -> dict[str, Any]:
    return {
        "probes": len(seen.latencies),
        "statuses": seen.statuses,
        "ms": {name: round(value * 1e3, 3) for name, value in seen.summary().items()},
    }
