"""Section 3: the cost of hosting an application: hello world, 64 KiB, a 1 MiB upload, a one-row query as JSON."""

from __future__ import annotations

from functools import partial
from typing import Any

from bench.database import postgres
from bench.load import warm_up, wrk
from bench.session import Session

CASES = (("hello", "/"), ("64 KiB", "/64k"), ("1 MiB upload", "/upload"), ("query", "/query"))
LEVELS = (1, 32, 256)  # connections
QUICK = {"hello": "", "64 KiB": "pkg gunicorn granian fastpysgi bjoern", "1 MiB upload": "pkg gunicorn granian",
         "query": "pkg gunicorn granian"}  # fmt: skip


def run(session: Session) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    with postgres(session) as database:
        extra = {"DATABASE_URL": database.url} if database is not None else {}
        with session.all_running(session.choose(hosts=True), extra) as servers:
            for case, path in CASES:
                if case == "query" and database is None:
                    continue
                for connections in (32,) if session.quick else LEVELS:
                    chosen = servers
                    if session.quick and QUICK[case]:
                        chosen = [s for s in servers if s.peer.name in QUICK[case].split()]
                    title = f"{case}, {connections} connections"
                    # Fewer rounds where precision matters less, as a full run shall take half an hour.
                    rounds = 1 if session.quick or connections != 32 else 3
                    if case == "hello":
                        rounds = 1 if session.quick else 5
                    # The first query imports psycopg and connects, which does not belong to the cost of a query.
                    if case == "query" or (not session.quick and rounds > 1):
                        for server in chosen:
                            session.say(f"{title}, warming up: {server.peer.title}")
                            warm_up(server, path, connections)
                    rows = session.rounds(
                        title, chosen,
                        partial(wrk, path=path, connections=connections, seconds=1),
                        rounds=rounds,
                    )  # fmt: skip
                    out += [{"case": case, "connections": connections, **row} for row in rows]
    return out
