"""Section 8: the cost of observing: hello world alone, with its metrics scraped, and with an access log.

The front's own counters and histograms are always on; what they cost is in every figure here.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
from collections.abc import Iterator
from typing import Any

from bench.load import Sample, warm_up, wrk
from bench.peers import BY_NAME, Peer
from bench.servers import LOAD_CORES, Running, get, on_cores
from bench.session import Session
from tests.support.ports import free_port

CONNECTIONS = 32
SCRAPE_INTERVAL = 1.0  # seconds; usual for Prometheus is 15
QUICK = "gunicorn granian"


@contextlib.contextmanager
def _scraped(port: int) -> Iterator[None]:
    end = threading.Event()

    def scrape() -> None:
        with on_cores(LOAD_CORES):
            while not end.wait(SCRAPE_INTERVAL):
                get(port, "/metrics")

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def run(session: Session) -> list[dict[str, Any]]:
    """Rows of {"case", "cpu_us", "rate"}, the base case first; CPU in microseconds per request.

    Behind them the other servers' access logs: {"server", "plain_us", "cpu_us", "rate"}.
    """
    admin = free_port()
    pkg = BY_NAME["pkg"]
    cases: dict[str, tuple[Peer, dict[str, str]]] = {
        "nothing on": (pkg, {}),
        "metrics, scraped each second": (pkg, {"PKG_ADMIN": f"127.0.0.1:{admin}"}),
        "access log (JSON)": (pkg, {"PKG_ACCESS_LOG": "on", "LOG_LEVEL": "info"}),
    }
    others = [peer for peer in session.peers if peer.logging and (not session.quick or peer.name in QUICK.split())]
    for peer in others:
        cases[peer.name] = peer, {}
        cases[f"{peer.name}, access log"] = peer.with_access_log(), {}
    samples: dict[str, list[Sample]] = {case: [] for case in cases}
    with contextlib.ExitStack() as stack:
        servers: dict[str, Running] = {}
        for case, (peer, extra) in cases.items():
            session.say(f"overhead, starting: {case}")
            server = session.start(peer, extra)
            if server is None:
                if peer.name == "pkg":
                    return []
                continue
            servers[case] = stack.enter_context(server)
            warm_up(server, "/", CONNECTIONS)
        stack.enter_context(_scraped(admin))
        rounds = 2 if session.quick else 9
        for number in range(rounds):
            for case, server in servers.items():
                session.say(f"overhead, round {number + 1} of {rounds}: {case}")
                samples[case].append(wrk(server, path="/", connections=CONNECTIONS, seconds=1))

    def figures(case: str) -> dict[str, float]:
        found = samples[case]
        return {
            "cpu_us": round(statistics.median(s.cpu for s in found) * 1e6, 3),
            "rate": round(statistics.median(s.rate for s in found), 1),
        }

    rows: list[dict[str, Any]] = [
        {"case": case, **figures(case)} for case, (peer, _) in cases.items() if peer.name == "pkg"
    ]
    for peer in others:
        case = f"{peer.name}, access log"
        if samples[peer.name] and samples[case]:
            rows.append({"server": peer.name, "plain_us": figures(peer.name)["cpu_us"], **figures(case)})
    return rows
