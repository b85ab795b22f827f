"""Section 7: requests lost while two instances behind HAProxy are restarted in turn under load.

HAProxy asks each instance for its readiness five times a second and passes a request on to the other one when a
connection is refused (`option redispatch`), as is usual.  An instance is sent SIGTERM, and started again when it has
ended.  Half of the load keeps its connections, half opens one for each request.  A request is lost when its client gets
no response, or one that is not 200.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.environment import Missing, command
from bench.load import Background
from bench.peers import Peer
from bench.servers import LOAD_CORES, Running, free_port, get, on_cores
from bench.session import Session

HAPROXY = """\
global
    maxconn 4096
defaults
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
    retries 3
    option redispatch
frontend in
    bind 127.0.0.1:{port}
    default_backend instances
backend instances
    option httpchk GET {path}
    http-reuse safe
    default-server inter 200ms fall 2 rise 1
{servers}
"""
DRAIN = {"PKG_DRAIN_DELAY": "1", "PKG_DRAIN_TIMEOUT": "10", "PKG_GRACE_PERIOD": "20"}
SERVERS = "pkg gunicorn uvicorn"


@contextlib.contextmanager
def _haproxy(ports: list[int], path: str) -> Iterator[int]:
    port = free_port()
    servers = "\n".join(f"    server s{n} 127.0.0.1:{p} check" for n, p in enumerate(ports))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        config = Path(folder, "haproxy.cfg")
        config.write_text(HAPROXY.format(port=port, path=path, servers=servers))
        with on_cores(LOAD_CORES):
            process = subprocess.Popen(
                [command("haproxy"), "-db", "-f", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        try:
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError):
                    if get(port, "/", timeout=1) == 200:
                        break
                time.sleep(0.05)
            yield port
        finally:
            process.kill()
            process.wait()


def _counted(text: str) -> tuple[int, int]:
    """(answered, lost) of wrk's report."""
    answered = sum(int(n) for n in re.findall(r"(\d+) requests in", text))
    lost = sum(int(n) for line in re.findall(r"Socket errors:.*", text) for n in re.findall(r"\d+", line))
    refused = sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", text))
    return answered - refused, lost + refused


def _restart(server: Running) -> float:
    """Seconds it took to end."""
    begin = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    try:
        server.process.wait(30)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()
    return time.monotonic() - begin


def _stop(instances: list[Running]) -> None:
    for server in instances:
        server.stop()


def _measure(session: Session, peer: Peer, restarts: int) -> dict[str, Any] | None:
    took: list[float] = []
    path = "/readyz" if peer.name == "pkg" else "/healthz"  # nobody else has one that knows of the end
    with contextlib.ExitStack() as stack:
        instances: list[Running] = []
        for _ in range(2):
            server = session.start(peer, DRAIN)
            if server is None:
                return None
            instances.append(server)
        stack.callback(_stop, instances)
        port = stack.enter_context(_haproxy([server.port for server in instances], path))
        loads = [stack.enter_context(Background(None, "/", 8, port=port, close=close)) for close in (False, True)]
        time.sleep(0.5)
        for number in range(restarts):
            session.say(f"rolling restart {number + 1} of {restarts}: {peer.title}")
            old = instances[number % 2]
            took.append(_restart(old))
            old.stop()
            instances[number % 2] = Running(peer, DRAIN, port=old.port)
            time.sleep(0.6)  # HAProxy has to see it before the other one goes
        answered, lost = map(sum, zip(*(_counted(load.finish()) for load in loads), strict=True))
    return {
        "server": peer.name, "restarts": restarts, "answered": answered, "lost": lost,
        "seconds_to_end": round(max(took), 2),
    }  # fmt: skip


def run(session: Session) -> list[dict[str, Any]]:
    try:
        command("haproxy")
    except Missing as error:
        session.missing["rolling restarts"] = str(error)
        return []
    out = []
    for peer in session.choose(hosts=True):
        if peer.name in SERVERS.split() and not (session.quick and peer.name == "uvicorn"):
            try:
                row = _measure(session, peer, 2 if session.quick else 100 if peer.name == "pkg" else 20)
            except Missing as error:
                session.missing[f"rolling restarts, {peer.name}"] = str(error)
                continue
            out += [row] if row is not None else []
    return out
