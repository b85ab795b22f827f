"""Section 11: the cost of worker processes: the same application in one process, and in 1 and 2 workers.

Memory is that after the load, of the whole process tree.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

from bench.load import wrk
from bench.peers import WORKER_PEERS
from bench.servers import Running
from bench.session import Session
from bench.trial import Trial, in_turn

CONNECTIONS = 32
CASES = {"hello": "/", "64 KiB": "/64k", "1 MiB upload": "/upload"}
NUMBERS = (0, 1, 2)  # of workers; 0: one process, which only ours has


def run(session: Session) -> list[dict[str, Any]]:
    """Rows of {"case", "server", "cpu_us", ...}, as in `hosting`, and of {"case", "server", "pss"}, bytes."""
    chosen = {peer.name for peer in session.peers}
    rounds = 1 if session.quick else 5
    out: list[dict[str, Any]] = []
    for number in NUMBERS:
        how = f"{number} worker{'s' * (number != 1)}" if number else "one process"
        trials = [
            Trial(f"{case}, {how}", {"case": f"{case}, {how}"},
                  partial(wrk, path=path, connections=CONNECTIONS, seconds=1), rounds, prepare=not session.quick)
            for case, path in CASES.items() if case == "hello" or not session.quick
        ]  # fmt: skip
        memory: dict[str, list[int]] = {}

        def weigh(server: Running, found: dict[str, list[int]] = memory) -> None:
            found.setdefault(server.peer.name, []).append(server.memory()[1])

        peers = [peer for peer in WORKER_PEERS[number] if peer.name in chosen]
        out += in_turn(session, peers, trials, after=weigh)
        out += [
            {"case": f"memory, {how}", "server": name, "pss": round(statistics.median(found))}
            for name, found in memory.items()
        ]
    return out
