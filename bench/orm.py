"""Section 10: a one-row query through an ORM: SQLAlchemy Core and ORM, Django's ORM, and async psycopg in FastAPI.

The database's driver and the ORM do the same work under each server; what differs is the server and the pool.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from bench.database import postgres
from bench.load import wrk
from bench.orm_applications import SETUP
from bench.peers import ORM_ASGI_PEERS, ORM_WSGI_PEERS
from bench.session import Session
from bench.trial import Trial, in_turn

CONNECTIONS = 32
QUICK = "pkg granian uvicorn"
CASES = (
    (ORM_WSGI_PEERS, {"SQLAlchemy Core": "/core", "SQLAlchemy ORM": "/orm", "Django ORM": "/django"}),
    (ORM_ASGI_PEERS, {"FastAPI, async psycopg": "/fastapi"}),
)


def run(session: Session) -> list[dict[str, Any]]:
    """Rows of {"case", "server", "cpu_us", ...}, as in `hosting`."""
    chosen = {peer.name for peer in session.peers if not session.quick or peer.name in QUICK.split()}
    rounds = 1 if session.quick else 5
    out: list[dict[str, Any]] = []
    with postgres(session) as database:
        if database is None:
            return out
        database.sql(SETUP, database="postgres")
        for peers, cases in CASES:
            here = [peer for peer in peers if peer.name in chosen]
            trials = [
                Trial(case, {"case": case}, partial(wrk, path=path, connections=CONNECTIONS, seconds=1), rounds)
                for case, path in cases.items()
            ]
            out += in_turn(session, here, trials, {"DATABASE_URL": database.url})
    return out
