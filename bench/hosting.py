"""Section 3: the cost of hosting an application: hello world, 64 KiB, a 1 MiB upload, a one-row query as JSON."""

from __future__ import annotations

from functools import partial
from typing import Any

from bench.database import postgres
from bench.load import wrk
from bench.session import Session
from bench.trial import Trial, in_turn

CASES = {"hello": "/", "64 KiB": "/64k", "1 MiB upload": "/upload", "query": "/query"}
USUAL = 32  # connections
ROUNDS = {1: 1, USUAL: 5, 256: 1}  # by connections; fewer where precision matters less
QUICK = {"64 KiB": "pkg gunicorn granian fastpysgi bjoern", "1 MiB upload": "pkg gunicorn granian",
         "query": "pkg gunicorn granian"}  # fmt: skip


def run(session: Session) -> list[dict[str, Any]]:
    with postgres(session) as database:
        trials = [trial for trial in _trials(session.quick) if database is not None or trial.labels["case"] != "query"]
        extra = {"DATABASE_URL": database.url} if database is not None else {}
        return in_turn(session, session.choose(hosts=True), trials, extra)


def _trials(quick: bool) -> list[Trial]:
    return [
        Trial(
            f"{case}, {connections} connections", {"case": case, "connections": connections},
            partial(wrk, path=path, connections=connections, seconds=1),
            1 if quick else rounds,
            QUICK[case].split() if quick and case in QUICK else None,
            prepare=case == "query" or not quick,
        )
        for case, path in CASES.items()
        for connections, rounds in ROUNDS.items() if connections == USUAL or not quick
    ]  # fmt: skip
