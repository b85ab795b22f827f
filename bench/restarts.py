"""Section 7: requests lost while two instances behind HAProxy and nginx are restarted in turn under load.

The very test that the project is held to (tests/support/rolling.py: balancers, load, order), with other servers in the
place of ours, which has no more rights than in its image.  Each is told to end by SIGTERM (nginx: SIGQUIT, its
graceful one), has the same grace period and the same application; a request is lost when its client gets no response,
or one that is not 200 with the right body.

    python -m bench.restarts [--rounds N] [--docs docs/shutdown.md]

prints the table, puts it between that page's markers, and measures beside it what no server can save: requests that
cross the end of an idle connection.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import environment
from bench.environment import PEER_PYTHON, ROOT, Missing, command
from bench.session import Session
from tests.support.ports import free_ports

GRACE = 20  # seconds that every server has for requests in flight
DELAY = 1.0  # seconds; drain_delay of our server, ten times the interval of HAProxy's checks
KEEP = 75  # seconds that an idle connection is kept
THREADS = 8
ROUNDS = 25
BEGIN, END = "<!-- drain -->", "<!-- /drain -->"

# nginx as a server, with the responses of tests/support/rolling_application.py.
NGINX = """\
daemon off; worker_processes 1; {user}
pid {folder}/pid; error_log stderr crit;
events {{ worker_connections 2000; }}
http {{
  access_log off; keepalive_requests 1000000; keepalive_timeout {keep}; client_max_body_size 10m;
  client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  map $content_length $size {{ default $content_length; "" 0; }}
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    location / {{ return 200 ok; }}
    location ~ ^/echo/(?<token>.*) {{ return 200 "$request_method $token $size"; }}
  }}
}}
"""


@dataclass(frozen=True)
class Server:
    """One server as an instance of the rolling update; PORT in a word of the command is replaced by the port."""

    title: str
    words: tuple[str, ...]
    environ: tuple[tuple[str, str], ...] = ()
    stop: signal.Signals = signal.SIGTERM


WSGI, ASGI = "tests.support.rolling_application:app", "tests.support.rolling_application:asgi"
OURS = Server(
    "pkg",
    (sys.executable, "-m", "pkg", WSGI, "--port", "PORT"),
    (
        ("HOST", "127.0.0.1"),
        ("PKG_ADMIN", "off"),
        ("PKG_ACCESS_LOG", "off"),
        ("PKG_THREADS", str(THREADS)),
        ("PKG_DRAIN_DELAY", str(DELAY)),
        ("PKG_DRAIN_TIMEOUT", str(GRACE)),
    ),
)
_PEER = (str(PEER_PYTHON), "-m")
SERVERS = {
    "pkg": OURS,
    "gunicorn": Server(
        "gunicorn gthread",
        (*_PEER, "gunicorn", "--worker-class=gthread", f"--threads={THREADS}", f"--keep-alive={KEEP}",
         f"--graceful-timeout={GRACE}", "--no-control-socket", "--log-level=critical", "--bind=127.0.0.1:PORT", WSGI),
    ),
    "uvicorn": Server(
        "uvicorn (ASGI)",
        (*_PEER, "uvicorn", "--loop=uvloop", "--http=httptools", "--no-access-log", "--log-level=critical",
         f"--timeout-keep-alive={KEEP}", f"--timeout-graceful-shutdown={GRACE}", "--host=127.0.0.1", "--port=PORT",
         ASGI),
    ),
    "nginx": Server("nginx itself, SIGQUIT", ("nginx",), stop=signal.SIGQUIT),
}  # fmt: skip


class _Starter:
    """Starts instances of one server, with its files in `folder`."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._server, self._folder, self._count = server, folder, 0

    def __call__(self, port: int) -> subprocess.Popen[bytes]:
        from tests.support.unprivileged import unprivileged

        words = [word.replace("PORT", str(port)) for word in self._server.words]
        if words == ["nginx"]:
            words = self._nginx(port)
        elif self._server.words == OURS.words:
            words = [*unprivileged(), *words]  # as in the image
        environ = {k: v for k, v in os.environ.items() if not k.startswith("PKG_") and k != "PYTHONWARNINGS"}
        environ |= {"PYTHONPATH": str(ROOT), **dict(self._server.environ)}
        with open(self._folder / "log", "ab") as log:
            return subprocess.Popen(
                words, cwd=self._folder, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def _nginx(self, port: int) -> list[str]:
        self._count += 1
        folder = self._folder / str(self._count)  # because two run at the same time
        folder.mkdir()
        user = "user root;" if os.geteuid() == 0 else ""
        (folder / "conf").write_text(NGINX.format(folder=folder, port=port, user=user, keep=KEEP))
        return [command("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(folder / "conf")]


def _measure(session: Session, name: str, rounds: int) -> dict[str, Any]:
    """Raises Missing if the server does not start."""
    from tests.support.rolling import roll

    server = SERVERS[name]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        start = _Starter(server, Path(folder))
        try:
            outcome = roll(
                lambda place: start(place.port), rounds=rounds, stop=server.stop, pause=0.02,
                say=lambda text: session.say(f"{server.title}: {text}"),
            )  # fmt: skip
        except AssertionError as error:
            log = (Path(folder) / "log").read_text().strip().splitlines() or ["it said nothing"]
            raise Missing(f"{server.title}: {error}: {log[-1][:200]}") from None
    kinds: dict[str, dict[str, Any]] = {}
    for balancer, tallies in outcome.tallies.items():
        for (_, keep), tally in tallies.items():
            kind = kinds.setdefault(
                f"{balancer} {'keep-alive' if keep else 'one-shot'}", {"sent": 0, "lost": 0, "how": {}}
            )
            kind["sent"] += tally.sent
            kind["lost"] += tally.lost.total()
            kind["how"] = dict(Counter(kind["how"]) + tally.lost)
    return {
        "server": name, "restarts": 2 * rounds, "kinds": kinds,
        "answered": sum(k["sent"] - k["lost"] for k in kinds.values()), "lost": sum(k["lost"] for k in kinds.values()),
        "seconds_to_end": round(max(outcome.ends), 2),
    }  # fmt: skip


def run(session: Session, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    out = []
    for name in SERVERS:
        if session.quick and name in ("uvicorn", "nginx"):
            continue
        try:
            for needed in ("haproxy", "nginx"):
                command(needed)
            out.append(_measure(session, name, 2 if session.quick else rounds))
        except Missing as error:
            session.missing[f"rolling restarts, {name}"] = str(error)
    return out


def table(rows: list[dict[str, Any]]) -> str:
    kinds = list(rows[0]["kinds"])
    lines = [
        f"| lost of sent in {rows[0]['restarts']} restarts | "
        + " | ".join(kinds).replace("haproxy", "HAProxy")
        + " | ended after at most |",
        "|---|" + "---:|" * (len(kinds) + 1),
    ]
    for row in rows:
        cells = [f"{k['lost']:,} of {k['sent']:,}" for k in row["kinds"].values()]
        lines.append(f"| {SERVERS[row['server']].title} | {' | '.join(cells)} | {row['seconds_to_end']:.1f} s |")
    return "\n".join(lines)


# ------------------------------------------------------------------ what cannot be saved

IDLE = 1000  # connections each time
SPREAD = 0.2  # seconds around the closing of idle connections, in which each of them sends one request


@contextlib.contextmanager
def _serving(port: int) -> Iterator[subprocess.Popen[bytes]]:
    from tests.support.client import get, wait_for
    from tests.support.load import is_listening

    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        server = Server("", OURS.words, (*OURS.environ, ("PKG_DRAIN_DELAY", "0")))
        process = _Starter(server, Path(folder))(port)
        try:
            wait_for(lambda: is_listening(port) and get(("127.0.0.1", port), "/readyz").status == 200, 30)
            yield process
        finally:
            process.kill()
            process.wait()


def race(times: int) -> Counter[str]:
    """The fate of requests on idle connections around the FIN: `answered`, `closed before`, `lost`, `reset`.

    Each client looks whether its connection is still open, as pools do, and then sends at once.
    """
    fate: Counter[str] = Counter()
    request = b"GET / HTTP/1.1\r\nHost: t\r\n\r\n"
    for _ in range(times):
        (port,) = free_ports(1)
        with contextlib.ExitStack() as stack:
            process = stack.enter_context(_serving(port))
            idle = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(IDLE)]
            for s in idle:
                s.sendall(request)
            for s in idle:
                s.recv(65536)
                s.setblocking(False)
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            sent = []
            for moment in sorted(random.uniform(1 - SPREAD / 2, 1 + SPREAD / 2) for _ in idle):
                s = idle.pop()
                time.sleep(max(0.0, began + moment - time.monotonic()))
                try:
                    s.recv(1, socket.MSG_PEEK)
                    fate["closed before"] += 1
                except BlockingIOError:
                    s.sendall(request)
                    sent.append(s)
            for s in sent:
                select.select([s], [], [], 10)
                try:
                    fate["answered" if s.recv(65536).startswith(b"HTTP/1.1 ") else "lost"] += 1
                except OSError:
                    fate["reset"] += 1
    return fate


def main() -> int:
    from tests.support.unprivileged import describe

    parser = argparse.ArgumentParser(prog="python -m bench.restarts", description="Requests lost in rolling restarts.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="restarts of both instances (default: %(default)s)")
    parser.add_argument("--races", type=int, default=20, help="runs with 1,000 idle connections (default: %(default)s)")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="put the table between the markers of this page")
    arguments = parser.parse_args()
    session = Session(False, [], {})
    session.missing |= environment.prepare(session.say)
    rows = run(session, arguments.rounds)
    fate = race(arguments.races)
    session.clear()
    for what, why in session.missing.items():
        print(f"missing: {what}: {why}", file=sys.stderr)
    for row in rows:
        print(row["server"], {kind: k["how"] for kind, k in row["kinds"].items()}, file=sys.stderr)
    last = (
        f"{fate.total():,} idle connections that each sent a request within {SPREAD / 2:g} s of the end: "
        f"{fate['answered']:,} answered, {fate['closed before']:,} not sent because the client saw the FIN, "
        f"{fate['lost'] + fate['reset']:,} lost."
    )
    text = f"{table(rows)}\n\nOurs on {describe()}. {last}"
    print(text)
    if arguments.docs:
        before, _, rest = arguments.docs.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        arguments.docs.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
