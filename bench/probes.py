"""Section 1: how many probes a server answers, and the CPU time of each, with keep-alive and without."""

from __future__ import annotations

from functools import partial
from typing import Any

from bench.load import wrk
from bench.session import Session
from bench.trial import Trial, in_turn

CONNECTIONS = 32
QUICK_CLOSING = "pkg gunicorn granian nginx"


def run(session: Session) -> list[dict[str, Any]]:
    peers = session.choose(hosts=False)
    closing = [peer.name for peer in peers if peer.closes]
    for peer in peers:
        if not peer.closes:
            session.missing[f"{peer.name}, one connection each"] = "it ignores `Connection: close`"
    if session.quick:
        closing = [name for name in closing if name in QUICK_CLOSING.split()]
    trials = [
        Trial(
            f"probes, {case}", {"case": case, "connections": CONNECTIONS},
            partial(wrk, path="/healthz", connections=CONNECTIONS, close=close, seconds=1),
            1 if session.quick else 5, closing if close else None, prepare=not session.quick,
        )
        for case, close in (("keep-alive", False), ("one connection each", True))
    ]  # fmt: skip
    return in_turn(session, peers, trials)
