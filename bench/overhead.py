"""Section 8: what observing costs: hello world with nothing on, with its metrics scraped, with an access log.

The front's own counters and histograms are always on; what they cost is in every figure here.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
from collections.abc import Iterator
from typing import Any

from bench.load import Sample, warm_up, wrk
from bench.peers import BY_NAME
from bench.servers import LOAD_CORES, Running, free_port, get, on_cores
from bench.session import Session

CONNECTIONS = 32
SCRAPE_INTERVAL = 1.0  # seconds; Prometheus's usual one is 15


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
    """Rows of {"case", "cpu_us", "rate"}, the one to compare with first; CPU in microseconds a request."""
    admin = free_port()
    cases = {
        "nothing on": {},
        "metrics, scraped each second": {"PKG_ADMIN": f"127.0.0.1:{admin}"},
        "access log (JSON)": {"PKG_ACCESS_LOG": "on", "LOG_LEVEL": "info"},
    }
    samples: dict[str, list[Sample]] = {case: [] for case in cases}
    with contextlib.ExitStack() as stack:
        servers: dict[str, Running] = {}
        for case, extra in cases.items():
            session.say(f"overhead, starting: {case}")
            server = session.start(BY_NAME["pkg"], extra)
            if server is None:
                return []
            servers[case] = stack.enter_context(server)
            warm_up(server, "/", CONNECTIONS)
        stack.enter_context(_scraped(admin))
        rounds = 3 if session.quick else 15
        for number in range(rounds):
            for case, server in servers.items():
                session.say(f"overhead, round {number + 1} of {rounds}: {case}")
                samples[case].append(wrk(server, path="/", connections=CONNECTIONS, seconds=1))
    return [
        {
            "case": case,
            "cpu_us": round(statistics.median(s.cpu for s in found) * 1e6, 3),
            "rate": round(statistics.median(s.rate for s in found), 1),
        }
        for case, found in samples.items()
    ]
