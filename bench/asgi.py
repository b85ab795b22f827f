"""Section 9: the cost of hosting an ASGI application: raw and of two frameworks, streams, uploads, WebSockets."""

from __future__ import annotations

from functools import partial
from typing import Any

from bench.echo import echo
from bench.load import wrk
from bench.peers import ASGI_PEERS
from bench.session import Session
from bench.trial import Trial, in_turn

CONNECTIONS = 32
ECHO = "WebSocket echo"
CASES = {"hello": "/", "Starlette": "/starlette", "FastAPI": "/fastapi", "streamed 64 KiB": "/stream",
         "1 MiB upload": "/upload", ECHO: "/echo"}  # fmt: skip
QUICK = {"hello": "pkg uvicorn granian fastpysgi", "Starlette": "pkg uvicorn granian"}
LEAST_QUICK = "pkg uvicorn"  # in the other cases


def run(session: Session) -> list[dict[str, Any]]:
    """Rows of {"case", "server", "cpu_us", ...}, as in `hosting`; of the echo, each message counts."""
    chosen = {peer.name for peer in session.peers}
    peers = [peer for peer in ASGI_PEERS if peer.name in chosen]
    return in_turn(session, peers, [_trial(case, session.quick, [peer.name for peer in peers]) for case in CASES])


def _trial(case: str, quick: bool, names: list[str]) -> Trial:
    if quick:
        names = [name for name in QUICK.get(case, LEAST_QUICK).split() if name in names]
    if case == ECHO:
        names = [name for name in names if name != "fastpysgi"]  # does not answer (0.6)
        measure = partial(echo, connections=CONNECTIONS, seconds=1)
    else:
        measure = partial(wrk, path=CASES[case], connections=CONNECTIONS, seconds=1)
    imports = case in ("Starlette", "FastAPI")  # with the first request
    return Trial(f"{case} (ASGI)", {"case": case}, measure, 1 if quick else 5, names, prepare=imports or not quick)
