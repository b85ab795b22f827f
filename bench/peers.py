"""How each server is started: one process, equal threads, no access log, and no limit below 10,000 clients.

It starts nothing; `servers` does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.environment import PEER_PYTHON, VENV, Missing, command, program

THREADS = 8
MANY = 20_000  # connections

NGINX = """\
daemon off; master_process off; worker_processes 1; worker_rlimit_nofile {many};
pid {folder}/pid; error_log stderr crit;
events {{ worker_connections {many}; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 75; default_type "text/plain; charset=utf-8";
  client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    add_header Cache-Control no-store; add_header X-Content-Type-Options nosniff;
    location / {{ return 200 "ok"; }}
  }}
}}
"""


@dataclass(frozen=True)
class Peer:
    """One server.  `command(port, folder)` returns the command that starts it; `folder` is an empty folder for its
    files."""

    name: str
    title: str
    command: Callable[[int, Path], list[str]]
    package: str = ""  # the package that must be installed
    threads: int = THREADS
    environment: dict[str, str] = field(default_factory=dict)
    hosts: bool = True  # runs the application; False: sends one fixed response to every request

    logging: dict[str, str] = field(
        default_factory=dict
    )  # words of the command and their replacements for an access log
    closes: bool = True  # obeys `Connection: close`; otherwise "one connection each" would measure something else

    def with_access_log(self) -> Peer:
        """The same server with an access log on stdout, for servers with `logging`."""

        def command(port: int, folder: Path) -> list[str]:
            words = (self.logging.get(word, word) for word in self.command(port, folder))
            return [word for word in words if word]

        return replace(self, command=command)

    def serving(self, application: str, instead_of: str, **environment: str) -> Peer:
        """The same server with another application, as module:name."""

        def command(port: int, folder: Path) -> list[str]:
            return [application if word == instead_of else word for word in self.command(port, folder)]

        return replace(self, command=command, environment={**self.environment, **environment})

    def settings(self) -> str:
        """The command line, for the reader of the results."""
        words = self.command(0, Path("FOLDER"))
        environment = [f"{name}={value}" for name, value in self.environment.items() if name != "PYTHONPATH"]
        return " ".join([*environment, Path(words[0]).name, *words[1:]])


def _module(*words: str) -> Callable[[int, Path], list[str]]:
    """`python -m ...` in the benchmark's environment; PORT in a word is replaced by the port."""
    return lambda port, folder: [
        str(PEER_PYTHON), "-m", *(word.replace("PORT", str(port)) for word in words)
    ]  # fmt: skip


def _script(name: str, *words: str) -> Callable[[int, Path], list[str]]:
    return lambda port, folder: [
        str(VENV / "bin" / name), *(word.replace("PORT", str(port)) for word in words)
    ]  # fmt: skip


def _nginx(port: int, folder: Path) -> list[str]:
    if folder.is_dir():
        (folder / "nginx.conf").write_text(NGINX.format(port=port, folder=folder, many=MANY))
    return [command("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def _responder(port: int, folder: Path) -> list[str]:
    return [str(program("responder")), str(port)]


APP = "bench.applications:wsgi"
ASGI = "bench.applications:asgi"
ORM_APP = "bench.orm_applications:wsgi"
ORM_ASGI = "bench.orm_applications:asgi"
API_ASGI = "bench.api_application:asgi"

PEERS = (
    Peer(
        "pkg", "pkg", _module("pkg", APP, "--port", "PORT"),
        environment={
            "BENCH_SERVER": "pkg", "HOST": "127.0.0.1", "PKG_ADMIN": "off", "PKG_ACCESS_LOG": "off",
            "LOG_LEVEL": "warning", "PKG_THREADS": str(THREADS), "PKG_MAX_CONNECTIONS": str(MANY),
        },
    ),
    Peer(
        "gunicorn", "gunicorn",
        _module("gunicorn", "--worker-class=gthread", "--workers=1", f"--threads={THREADS}", "--keep-alive=75",
                f"--worker-connections={MANY}", "--log-level=critical", "--no-control-socket",
                "--bind=127.0.0.1:PORT", APP),
        "gunicorn",
        logging={"--log-level=critical": "--access-logfile=-"},
    ),
    Peer(
        "granian", "granian",
        _module("granian", "--interface=wsgi", "--workers=1", f"--blocking-threads={THREADS}",
                f"--backpressure={MANY}", "--no-ws", "--http=1", "--log-level=critical", "--no-access-log",
                "--host=127.0.0.1", "--port=PORT", APP),
        "granian",
        logging={"--log-level=critical": "--log-level=info", "--no-access-log": "--access-log"},
    ),
    Peer(
        "uvicorn", "uvicorn (ASGI)",
        _module("uvicorn", "--workers=1", "--loop=uvloop", "--http=httptools", "--no-access-log",
                "--log-level=critical", "--timeout-keep-alive=75", "--host=127.0.0.1", "--port=PORT", ASGI),
        "uvicorn",
        logging={"--log-level=critical": "--log-level=info", "--no-access-log": ""},
    ),
    Peer(
        "hypercorn", "hypercorn (ASGI)",
        _module("hypercorn", "--worker-class=uvloop", "--workers=1", "--keep-alive=75", "--backlog=2048",
                "--log-level=critical", "--bind=127.0.0.1:PORT", ASGI),
        "hypercorn",
        logging={"--log-level=critical": "--access-logfile=-"},
    ),
    Peer(
        "waitress", "waitress",
        _module("waitress", f"--threads={THREADS}", f"--connection-limit={MANY}", "--asyncore-use-poll",
                "--listen=127.0.0.1:PORT", APP),
        "waitress",
    ),
    Peer(
        "cheroot", "cheroot",
        _module("cheroot", f"--threads={THREADS}", "--timeout=75", "--request-queue-size=2048",
                "--bind=127.0.0.1:PORT", APP),
        "cheroot",
    ),
    Peer("fastpysgi", "fastpysgi", _module("bench.hosts", "fastpysgi", "PORT"), "fastpysgi", threads=1),
    Peer("bjoern", "bjoern", _module("bench.hosts", "bjoern", "PORT"), "bjoern", threads=1),
    Peer(
        "uwsgi", "uWSGI",
        _script("uwsgi", "--http11-socket=127.0.0.1:PORT", "--enable-threads", f"--threads={THREADS}",
                "--die-on-term", "--disable-logging", "--so-keepalive", "--listen=1024", f"--module={APP}"),
        "uwsgi",
        logging={"--disable-logging": ""},
        closes=False,  # --http11-socket keeps every connection
    ),
    Peer("stdlib", "http.server", _module("bench.hosts", "stdlib", "PORT"), threads=0),
    Peer("nginx", "nginx return 200", _nginx, threads=1, hosts=False),
    Peer("responder", "minimal C responder", _responder, threads=1, hosts=False),
)  # fmt: skip
BY_NAME = {peer.name: peer for peer in PEERS}

# The same servers with the ASGI application.
ASGI_PEERS = (
    replace(
        BY_NAME["pkg"], command=_module("pkg", ASGI, "--port", "PORT"),
        environment={
            **{name: value for name, value in BY_NAME["pkg"].environment.items() if name != "PKG_THREADS"},
            "PKG_LOOP": "asyncio",
        },
    ),
    BY_NAME["uvicorn"],
    BY_NAME["hypercorn"],
    replace(
        BY_NAME["gunicorn"],
        command=_module("gunicorn", "--worker-class=asgi", "--asgi-loop=uvloop", "--workers=1", "--keep-alive=75",
                        f"--worker-connections={MANY}", "--log-level=critical", "--no-control-socket",
                        "--bind=127.0.0.1:PORT", ASGI),
    ),
    replace(
        BY_NAME["granian"],
        command=_module("granian", "--interface=asgi", "--workers=1", f"--backpressure={MANY}", "--http=1",
                        "--log-level=critical", "--no-access-log", "--host=127.0.0.1", "--port=PORT", ASGI),
    ),
    # Of `Connection: close` it dies (0.6).
    replace(BY_NAME["fastpysgi"], command=_module("bench.hosts", "fastpysgi_asgi", "PORT"), closes=False),
)  # fmt: skip

# The same servers with queries through ORMs.
ORM_WSGI_PEERS = tuple(BY_NAME[name].serving(ORM_APP, APP) for name in ("pkg", "gunicorn", "granian"))
ORM_ASGI_PEERS = tuple(
    peer.serving(ORM_ASGI, ASGI, **({"PKG_LOOP": "uvloop"} if peer.name == "pkg" else {}))  # as the others
    for peer in ASGI_PEERS
    if peer.name in ("pkg", "uvicorn", "granian")
)


def _with_words(command: Callable[[int, Path], list[str]], other: dict[str, str], port: int, folder: Path) -> list[str]:
    return [other.get(word, word) for word in command(port, folder)]


def _with_workers(number: int) -> tuple[Peer, ...]:
    """The same servers with so many worker processes; 0: one process, which only ours has."""
    return tuple(
        replace(
            peer,
            command=functools.partial(_with_words, peer.command, {"--workers=1": f"--workers={number}"}),
            environment={**peer.environment, "WEB_CONCURRENCY": str(number)},
        )
        for peer in (BY_NAME[name] for name in ("pkg", "gunicorn", "granian", "uvicorn")[: None if number else 1])
    )


WORKER_PEERS = {number: _with_workers(number) for number in (0, 1, 2)}


# With --http11-socket a kept connection takes a thread for itself; the router in front takes any number of them.
_UWSGI_ROUTER = replace(
    BY_NAME["uwsgi"],
    command=_script("uwsgi", "--http=127.0.0.1:PORT", "--http-keepalive=75", "--http-timeout=75", "--enable-threads",
                    f"--threads={THREADS}", "--die-on-term", "--disable-logging", "--so-keepalive", "--listen=1024",
                    f"--module={APP}"),
)  # fmt: skip

# Those of which the latency at a constant rate is measured.  http.server is not: with a thread for each of 64
# connections it is capable of a quarter of the others' rate, which would be the rate of all.
STEADY_PEERS = tuple(
    _UWSGI_ROUTER if peer.name == "uwsgi" else peer
    for peer in PEERS
    if peer.hosts and peer.name not in ("uvicorn", "hypercorn", "stdlib")
)


def with_threads(number: int) -> tuple[Peer, ...]:
    """Those of them that have threads, with so many."""
    return tuple(
        replace(
            peer,
            command=functools.partial(_with_words, peer.command, {
                f"--threads={THREADS}": f"--threads={number}",
                f"--blocking-threads={THREADS}": f"--blocking-threads={number}",
            }),
            threads=number,
            environment={**peer.environment, **({"PKG_THREADS": str(number)} if peer.name == "pkg" else {})},
        )
        for peer in STEADY_PEERS if peer.threads > 1
    )  # fmt: skip


# Those that replace a worker that died, and all of them at SIGHUP.
REPLACING_PEERS = tuple(
    replace(peer, environment={**peer.environment, "GRANIAN_RESPAWN_FAILED_WORKERS": "true"})
    if peer.name == "granian" else peer
    for peer in WORKER_PEERS[2]
)  # fmt: skip


def api_peers(workers: int) -> tuple[Peer, ...]:
    """ASGI servers with so many processes, and the application of HttpArena's API profiles."""
    return tuple(
        replace(
            peer,
            command=functools.partial(_with_words, peer.command, {
                "--workers=1": f"--workers={workers}", ASGI: API_ASGI,
            }),
            environment={**peer.environment, "WEB_CONCURRENCY": str(workers),
                         **({"PKG_LOOP": "uvloop"} if peer.name == "pkg" else {})},
        )
        for peer in ASGI_PEERS if peer.name != "fastpysgi"
    )  # fmt: skip


def available(missing: dict[str, str]) -> tuple[list[Peer], dict[str, str]]:
    """The servers that can be started on this machine, and why the others cannot."""
    there, reasons = [], {}
    for peer in PEERS:
        try:
            peer.command(0, Path("FOLDER"))
        except Missing as error:
            reasons[peer.name] = str(error)
            continue
        if peer.package in missing:
            reasons[peer.name] = missing[peer.package]
        else:
            there.append(peer)
    return there, reasons
