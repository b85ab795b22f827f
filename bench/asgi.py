"""Section 9: the cost of hosting an ASGI application: raw and of two frameworks, streams, uploads, WebSockets."""

from __future__ import annotations

from functools import partial
from typing import Any

from bench.echo import echo
from bench.load import wrk
from bench.peers import ASGI_PEERS
from bench.servers import get
from bench.session import Session

CONNECTIONS = 32
ECHO = "WebSocket echo"
CASES = {"hello": "/", "Starlette": "/starlette", "FastAPI": "/fastapi", "streamed 64 KiB": "/stream",
         "1 MiB upload": "/upload", ECHO: "/echo"}  # fmt: skip
QUICK = {"hello": "pkg uvicorn granian fastpysgi", "Starlette": "pkg uvicorn granian"}
LEAST_QUICK = "pkg uvicorn"  # in the other cases


def run(session: Session) -> list[dict[str, Any]]:
    """Rows of {"case", "server", "cpu_us", ...}, as in `hosting`; of the echo, each message counts."""
    chosen = {peer.name for peer in session.peers}
    out: list[dict[str, Any]] = []
    with session.all_running([peer for peer in ASGI_PEERS if peer.name in chosen]) as servers:
        for case, path in CASES.items():
            names = QUICK.get(case, LEAST_QUICK).split()
            here = [server for server in servers if not session.quick or server.peer.name in names]
            if case == ECHO:
                here = [server for server in here if server.peer.name != "fastpysgi"]  # does not answer (0.6)
                measure = partial(echo, connections=CONNECTIONS, seconds=1)
            else:
                measure = partial(wrk, path=path, connections=CONNECTIONS, seconds=1)
            if path in ("/starlette", "/fastapi"):  # are imported with the first request
                here = [server for server in here if get(server.port, path, close=server.peer.closes) == 200]
            rounds = 1 if session.quick else 5 if case == "hello" else 3
            rows = session.rounds(f"{case} (ASGI)", here, measure, rounds=rounds)
            out += [{"case": case, **row} for row in rows if row["cpu_us"]]
    return out
