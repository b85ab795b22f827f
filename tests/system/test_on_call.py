"""Faults as an engineer on call meets them: each is injected into a real process, alone, and its cause has to be named.

What an engineer has is the pages of the admin listener, the metrics that alerts are made of, and the log.  `FAULTS`
says for each where the sentence is that names the cause: a line of the application, a statement, a route or a process.

Half of them run in CI, the others with `-m long`.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import psycopg
import pytest

from tests.support.client import wait_for
from tests.support.faults.postgres import Postgres
from tests.support.ports import free_port
from tests.support.processes import Process, ask, running

# Each route is a fault, and one line of it the cause.
WSGI = """
import os, re, threading, time, urllib.request

import pkg

kept = []
guard = threading.Lock()

def export():
    kept.append(open(os.environ["PRICES"]))

def stock():
    with pkg.connection() as connection:
        connection.execute("update stock set n = n + 1")

def die():
    os._exit(3)

def remember():
    kept.append(bytearray(1 << 20))

def match():
    re.match(r"(a+)+$", "a" * 40 + "b")

def refresh():
    def rates():
        raise KeyError("EUR")
    threading.Thread(target=rates, name="refresher").start()

def begin():
    threading.Thread(target=threading.Event().wait, daemon=True, name="report").start()

def sell():
    raise KeyError("a secret")

def rank():
    def ranking():
        while True:
            sorted(range(1000), key=str)
    threading.Thread(target=ranking, daemon=True, name="ranking").start()

def count():
    with guard:
        time.sleep(2)

def report():
    return (bytes(1 << 16) for _ in range(1000))

def app(environ, start_response):
    environ["wsgi.input"].read()
    route = globals().get(environ["PATH_INFO"][1:])
    body = route() if route is not None else None
    start_response("200 OK", [])
    return body or [b"ok"]
"""
ASGI = """
import asyncio, os, time, urllib.request

import pkg

kept = []

async def connect():
    kept.append(await asyncio.open_connection("127.0.0.1", int(os.environ["UPSTREAM"])))

async def ask():
    reader, writer = await asyncio.open_connection("127.0.0.1", int(os.environ["UPSTREAM"]))
    return await reader.read()

async def block():
    urllib.request.urlopen(f"http://127.0.0.1:{os.environ['UPSTREAM']}/").read()

async def order():
    connection = await pkg.aconnect()
    await connection.execute("update stock set n = n + 1")
    kept.append(connection)

async def stock():
    async with pkg.aconnection() as connection:
        await connection.execute("update stock set n = n + 1")

async def leak():
    kept.append(await pkg.aconnect())

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    while (await receive()).get("more_body"):
        pass
    route = globals().get(scope["path"][1:])
    if route is not None:
        await route()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
"""


def line(source: str, text: str) -> str:
    """The place of that line, as pages and logs write it."""
    (number,) = (n for n, found in enumerate(source.splitlines(), 1) if text in found)
    return f"application.py:{number}"


class Limited(Process):
    """With few descriptors."""

    def command(self, arguments: tuple[str, ...]) -> list[str]:
        return ["prlimit", "--nofile=100", *super().command(arguments)]


class Scene:
    """What a fault is injected into.  `server` is there if the fault needs it; `rest` is what it leaves for the end."""

    def __init__(self, process: Process, admin: int, server: Postgres | None, rest: contextlib.ExitStack) -> None:
        self.process, self.server, self.rest = process, server, rest
        self._admin = ("127.0.0.1", admin)

    def ask(self, path: str, times: int = 1, body: bytes | None = None) -> None:
        for _ in range(times):
            with contextlib.suppress(OSError, http.client.HTTPException):
                ask(self.process.address, path, "GET" if body is None else "POST", body=body, timeout=5.0)

    def begin(self, path: str, clients: int = 1) -> None:
        """Requests that are not waited for."""
        for _ in range(clients):
            threading.Thread(target=self.ask, args=(path,), daemon=True).start()

    def page(self, path: str, method: str = "GET") -> str:
        """ "" if it does not come in time."""
        with contextlib.suppress(OSError):
            return ask(self._admin, path, method, timeout=5.0)[2]
        return ""

    def log(self) -> str:
        """Messages and stacks of its records, and what is on stderr."""
        records = self.process.lines()
        stacks = [str(record.get("exception", record.get("exception.stacktrace", ""))) for record in records]
        return "\n".join([*(record["message"] for record in records), *stacks, self.process.errors()])


class Fault(NamedTuple):
    """`named`: pattern of the sentence that names the cause; `where`: the page, or "log"."""

    source: str
    workers: int
    inject: Callable[[Scene], object]
    where: str
    named: str
    needs: str = ""  # database, upstream, few descriptors, a small disk
    environ: Mapping[str, str] = MappingProxyType({})
    in_ci: bool = False


def one(path: str, clients: int = 1) -> Callable[[Scene], object]:
    return lambda scene: scene.begin(path, clients)


def many(path: str, times: int) -> Callable[[Scene], object]:
    return lambda scene: scene.ask(path, times)


def traced(scene: Scene) -> None:
    scene.page("/debug/memory?seconds=60", "POST")
    scene.ask("/remember", 20)


def kept_by_a_proxy(scene: Scene) -> None:
    connection = http.client.HTTPConnection(*scene.process.address, timeout=5)
    scene.rest.callback(connection.close)
    connection.request("GET", "/")
    connection.getresponse().read()
    wait_for(lambda: connection.sock.recv(1, socket.MSG_PEEK) == b"", 5, "the end of an idle connection")
    connection.sock.sendall(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")


def locked(scene: Scene) -> None:
    """By a session of somebody else, which has forgotten to end its transaction."""
    assert scene.server is not None
    holder = scene.rest.enter_context(psycopg.connect(scene.server.url, application_name="migration"))
    holder.execute("lock table stock")
    scene.begin("/stock", 3)


def left_open(scene: Scene) -> None:
    scene.ask("/order")
    scene.begin("/stock", 3)


def reads_nothing(scene: Scene) -> None:
    client = scene.rest.enter_context(socket.create_connection(scene.process.address))
    client.sendall(b"GET /report HTTP/1.1\r\nHost: shop\r\n\r\n")


FAULTS = {
    "descriptors": Fault(
        WSGI, 0, many("/export", 85), "/statusz", r"\d+ of them are \S*/prices\.csv", "few descriptors", in_ci=True
    ),
    "sockets": Fault(
        ASGI, 2, many("/connect", 190), "/statusz",
        r"worker \d: .*file descriptor.*; \d+ of them are connections to 127\.0\.0\.1:UPSTREAM",
        "few descriptors, upstream", in_ci=True,
    ),
    "lock": Fault(
        WSGI, 0, locked, "/statusz",
        r"3 statements wait for a lock of process \d+ of the server \(role \w+, migration, idle in transaction for \d",
        "database", in_ci=True,
    ),
    "transaction": Fault(
        ASGI, 2, left_open, "/debug/pool", r"for a lock of process \d+ of the server \(role \w+, pkg", "database"
    ),
    "death": Fault(WSGI, 2, one("/die"), "log", r"exited with code 3 .* while serving GET /die", in_ci=True),
    "memory": Fault(WSGI, 2, traced, "/debug/memory", r"\d+\.\d MiB +\d+ +" + line(WSGI, "bytearray("), in_ci=True),
    "expression": Fault(
        WSGI, 0, lambda scene: (scene.begin("/match"), time.sleep(1.5), scene.ask("/healthz")), "log",
        r'application\.py", line ' + line(WSGI, "re.match(").partition(":")[2],
        environ={"PKG_LIVENESS_TIMEOUT": "1s"},
    ),
    "silence": Fault(
        ASGI, 2, one("/ask", 3), "/debug/requests", line(ASGI, "await reader.read()") + " in ask", "upstream",
        in_ci=True,
    ),
    "blocked": Fault(
        ASGI, 2, one("/block"), "log", "event loop has been blocked for .* at " + line(ASGI, "urlopen("), "upstream"
    ),
    "proxy": Fault(
        ASGI, 0, kept_by_a_proxy, "/statusz", "1 request came when idle_timeout had just closed the connection",
        environ={"PKG_IDLE_TIMEOUT": "1s"},
    ),
    "rights": Fault(
        WSGI, 2, one("/stock"), "log", r"(?s)line " + line(WSGI, '"update stock').partition(":")[2]
        + ".*permission denied for table stock", "database without rights",
    ),
    "leak": Fault(ASGI, 2, many("/leak", 3), "/debug/pool", line(ASGI, "append(await pkg.aconnect())"), "database"),
    "thread": Fault(WSGI, 0, one("/refresh"), "log", "(?s)ended the thread refresher.*" + "KeyError: 'EUR'"),
    "threads": Fault(WSGI, 0, many("/begin", 50), "/debug/threads", r"50 threads at\n  report"),
    "failing": Fault(
        WSGI, 2, many("/sell", 20), "/statusz",
        "KeyError at " + line(WSGI, 'raise KeyError("a') + r" in sell was logged \d+ times in the last 60 s",
        in_ci=True,
    ),
    "computing": Fault(
        WSGI, 0, one("/rank"), "/statusz",
        r"the thread ranking, which serves no request, has computed for \d+ of the last \d+ s, at "
        + line(WSGI, "sorted(range("),
    ),
    "jam": Fault(
        WSGI, 2, one("/count", 8), "/statusz",
        r"(?s)worker \d: \d threads have been serving GET /count for up to \d+ s, at " + line(WSGI, "with guard:")
        + r".*GET /count +\d: worker-\d+ +application\.py", in_ci=True,
    ),
    "reader": Fault(
        WSGI, 2, reads_nothing, "/debug/requests",
        r"GET /report +worker-\d+ +waiting for the client to take the response", in_ci=True,
    ),
    "disk": Fault(
        WSGI, 2, lambda scene: scene.ask("/", body=bytes(24 << 20)), "log",
        "request bodies could not be spooled.*No space left", "a small disk",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def upstream() -> Iterator[int]:
    """Of a service that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener:
        yield listener.getsockname()[1]


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    path = folder / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if fault.in_ci else pytest.mark.long) for name, fault in FAULTS.items()]
)
def test_the_cause_is_named(name: str, tmp_path: Path, upstream: int, request: pytest.FixtureRequest) -> None:
    fault, admin = FAULTS[name], free_port()
    environ = {"PKG_ADMIN": f"127.0.0.1:{admin}", "WEB_CONCURRENCY": str(fault.workers), "UPSTREAM": str(upstream)}
    environ |= {"PRICES": str(tmp_path / "prices.csv")} | fault.environ
    (tmp_path / "prices.csv").touch()
    with contextlib.ExitStack() as stack:
        server: Postgres | None = None
        if "database" in fault.needs:
            server = request.getfixturevalue("postgres")
            rights = "" if "without rights" in fault.needs else "grant all on stock to public;"
            with psycopg.connect(server.admin_url.replace("template1", "postgres"), autocommit=True) as connection:
                connection.execute(f"drop table if exists stock; create table stock (n int); {rights}")
                connection.execute("insert into stock values (1)")
            environ["DATABASE_URL"] = server.url
        if "small disk" in fault.needs:
            environ["TMPDIR"] = str(stack.enter_context(small_disk(tmp_path)))
        kind: Any = Limited if "few descriptors" in fault.needs else Process
        process = stack.enter_context(running(tmp_path, fault.source, kind=kind, **environ))
        scene = Scene(process, admin, server, stack)
        fault.inject(scene)
        pattern = fault.named.replace("UPSTREAM", str(upstream))
        said = ""

        def is_named() -> bool:
            nonlocal said
            said = scene.log() if fault.where == "log" else scene.page(fault.where)
            return re.search(pattern, said) is not None

        try:
            wait_for(is_named, 15, pattern)
        except AssertionError:
            raise AssertionError(f"{fault.where} does not name it: {pattern}\n{said}") from None
