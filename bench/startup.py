"""Section 6: the time from the start of the process to the first 200, and the interpreter's part of it."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

from bench.servers import SERVER_CORES, on_cores
from bench.session import Session


def _interpreter() -> float:
    with on_cores(SERVER_CORES):
        begin = time.monotonic()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.monotonic() - begin


def run(session: Session) -> list[dict[str, Any]]:
    peers = session.choose(hosts=True)
    times: dict[str, list[float]] = {"interpreter alone": [], **{peer.name: [] for peer in peers}}
    rounds = 1 if session.quick else 10
    for number in range(rounds):
        session.say(f"start-up, round {number + 1} of {rounds}")
        times["interpreter alone"].append(_interpreter())
        for peer in peers:
            server = session.start(peer)
            if server is not None:
                times[peer.name].append(server.first_answer)
                server.stop()
    return [
        {"server": name, "ms": round(statistics.median(found) * 1e3, 1), "min_ms": round(min(found) * 1e3, 1),
         "max_ms": round(max(found) * 1e3, 1)}
        for name, found in times.items() if found
    ]  # fmt: skip
