"""Section 13: HttpArena's profile API-4: three kinds of requests in turn, a new connection after five.

Of 8 connections 3 ask for the sum of two numbers, 3 for JSON and 2 for rows of PostgreSQL; 256 of them are open.  The
profile gives a server 4 CPUs; here it is as many as there are, at most 4, and the clients and PostgreSQL share them.
"""

from __future__ import annotations

import statistics
import subprocess
from typing import Any

from bench.api_application import SETUP
from bench.database import postgres
from bench.environment import program
from bench.peers import api_peers
from bench.servers import ALL_CORES, Running
from bench.session import Session

CONNECTIONS, REUSE = 256, 5
PATHS = ["/baseline11?a=1&b=2"] * 3 + ["/json"] * 3 + ["/async-db?min=10&max=50"] * 2
CPUS = min(4, len(ALL_CORES))


def run(session: Session) -> list[dict[str, Any]]:
    """Rows of {"server", "rate": responses a second, "pss": bytes under load, "failed", "cpus"}."""
    names = {peer.name for peer in session.peers}
    seconds, rounds = (2, 1) if session.quick else (5, 3)
    with postgres(session) as database:
        if database is None:
            return []
        database.sql(SETUP, database="postgres")
        peers = [peer for peer in api_peers(CPUS) if peer.name in names]
        if session.quick:
            peers = [peer for peer in peers if peer.name in ("pkg", "uvicorn", "granian")]
        found: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in peers}
        with session.all_running(peers, {"DATABASE_URL": database.url}, cores=ALL_CORES) as servers:
            for number in range(rounds + 1):  # the first one warms up
                for server in servers:
                    session.say(f"API-4, round {number} of {rounds}: {server.peer.title}")
                    if server.is_alive():
                        sample = _measure(server, seconds if number else 1)
                        if number:
                            found[server.peer.name].append(sample)
    return [
        {"server": name, "cpus": CPUS, "rate": round(statistics.median(s["rate"] for s in samples), 1),
         "pss": max(s["pss"] for s in samples), "failed": sum(s["failed"] for s in samples)}
        for name, samples in found.items() if samples
    ]  # fmt: skip


def _measure(server: Running, seconds: int) -> dict[str, Any]:
    words: list[Any] = [program("mixer"), server.port, seconds, CONNECTIONS, REUSE, *PATHS]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True)
    answered, refused, cut, took = done.stdout.split()
    return {"rate": int(answered) / float(took), "failed": int(refused) + int(cut), "pss": server.memory()[1]}
