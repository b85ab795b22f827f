"""Section 5: memory when idle with an application and no database, and with 10,000 idle connections."""

from __future__ import annotations

import resource
import time
from typing import Any

from bench.load import Crowd
from bench.session import Session

CONNECTIONS = 10_000


def run(session: Session) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    count = min(CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 100)
    for peer in session.choose(hosts=True, quick="pkg gunicorn granian"):
        session.say(f"memory: {peer.title}")
        server = session.start(peer)
        if server is None:
            continue
        with server:
            time.sleep(0.5)
            idle_rss, idle_pss = server.memory()
            with Crowd(server, "idle", count, "/", opening=5 if session.quick else 10) as crowd:
                there = crowd.wait()
                rss, _ = server.memory()
        out.append({
            "server": peer.name, "idle_rss": idle_rss, "idle_pss": idle_pss, "connections": there,
            "added_rss": rss - idle_rss,
        })  # fmt: skip
    return out
