"""Section 1: how many probes a server answers, and the CPU time of each, with keep-alive and without."""

from __future__ import annotations

from functools import partial
from typing import Any

from bench.load import wrk
from bench.session import Session

CONNECTIONS = 32
QUICK_CLOSING = "pkg gunicorn granian nginx"


def run(session: Session) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    with session.all_running(session.choose(hosts=False)) as servers:
        for case, close in (("keep-alive", False), ("one connection each", True)):
            closing = [server for server in servers if server.peer.closes]
            for server in set(servers) - set(closing) if close else ():
                session.missing[f"{server.peer.name}, {case}"] = "it ignores `Connection: close`"
            chosen = closing if close else servers
            if close and session.quick:
                chosen = [server for server in closing if server.peer.name in QUICK_CLOSING.split()]
            ask = partial(wrk, path="/healthz", connections=CONNECTIONS, close=close)
            if not session.quick:
                session.rounds(f"probes, {case}, warming up", chosen, partial(ask, seconds=1), rounds=1)
            rows = session.rounds(
                f"probes, {case}", chosen, partial(ask, seconds=1 if session.quick else 2),
                rounds=1 if session.quick else 3,
            )  # fmt: skip
            out += [{"case": case, "connections": CONNECTIONS, **row} for row in rows]
    return out
