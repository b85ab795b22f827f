"""Section 11: the cost of worker processes: the same application in one process, and in 1 and 2 workers.

Memory is that after the load, of the whole process tree.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from bench.load import wrk
from bench.peers import WORKER_PEERS
from bench.session import Session

CONNECTIONS = 32
CASES = {"hello": "/", "64 KiB": "/64k", "1 MiB upload": "/upload"}
NUMBERS = (0, 1, 2)  # of workers; 0: one process, which only ours has


def run(session: Session) -> list[dict[str, Any]]:
    """Rows of {"case", "server", "cpu_us", ...}, as in `hosting`, and of {"case", "server", "pss"}, bytes."""
    chosen = {peer.name for peer in session.peers}
    out: list[dict[str, Any]] = []
    for number in NUMBERS:
        peers = [peer for peer in WORKER_PEERS[number] if peer.name in chosen]
        with session.all_running(peers) as servers:
            how = f"{number} worker{'s' * (number != 1)}" if number else "one process"
            for case, path in CASES.items():
                if session.quick and case != "hello":
                    continue
                case += f", {how}"
                measure = partial(wrk, path=path, connections=CONNECTIONS, seconds=1)
                rows = session.rounds(case, servers, measure, rounds=1 if session.quick else 5)
                out += [{"case": case, **row} for row in rows if row["cpu_us"]]
            out += [{"case": f"memory, {how}", "server": s.peer.name, "pss": s.memory()[1]} for s in servers]
    return out
