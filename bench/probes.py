"""Section 1: how many probes a server answers, and the CPU time of each, with keep-alive and without."""

from __future__ import annotations

from functools import partial
from typing import Any

from bench.load import wrk
from bench.session import Session

CONNECTIONS = 32


def run(session: Session) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    with session.all_running(session.choose(hosts=False)) as servers:
        for case, close in (("keep-alive", False), ("one connection each", True)):
            chosen = [server for server in servers if server.peer.closes or not close]
            for server in set(servers) - set(chosen):
                session.missing[f"{server.peer.name}, {case}"] = "it ignores `Connection: close`"
            ask = partial(wrk, path="/healthz", connections=CONNECTIONS, close=close)
            if not session.quick:
                session.rounds(f"probes, {case}, warming up", chosen, partial(ask, seconds=1), rounds=1)
            rows = session.rounds(
                f"probes, {case}", chosen, partial(ask, seconds=1 if session.quick else 2),
                rounds=(1 if close else 2) if session.quick else 3,
            )  # fmt: skip
            out += [{"case": case, "connections": CONNECTIONS, **row} for row in rows]
    return out
