"""A soak: good, slow and hostile clients together for an hour, in which memory and descriptors are to stay flat.

    python -m tests.system.soak [--minutes 60] [--interval 10] [--clients 24] [--plot FILE]

It starts a PostgreSQL and `python -m pkg` with a WSGI application that queries it, and sends what clients send and
worse: see GOOD and BAD.  The database stops, freezes, and loses its sessions meanwhile.  Each interval a row is printed
of the service's memory, descriptors, threads and counters.  At each eighth of the time all clients leave for a moment:
what the service holds then belongs to nobody, so it can be compared from one such moment to the next, exactly.  With
--plot memory, descriptors and the 99th percentile of short requests are drawn, again at each eighth.

The exit code is 1, and the last lines say why, if one of these does not hold:

- The descriptors of the quiet moments in the second half are those of the first of them, not one more.
- The memory (PSS) of the last two quiet moments, the lesser, is at most MEMORY_BOUND above that of the first two of the
  second half, the greater.
- In each quiet moment `accepted = closed + open`, nothing is in flight, queued or buffered, and every request handed to
  a worker was served or aborted.
- No good client was left without its right answer, and no line of the log is an error other than those provoked.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.chart import Chart, draw
from tests.support.client import Answer, Connection, wait_for
from tests.support.faults.postgres import Postgres
from tests.support.ports import free_port
from tests.support.processes import ask

# Bytes from one pair of quiet moments to another.  What malloc has not given back yet makes these differ by some 4 MB,
# in either direction; the least of one pair and the most of the other leave most of that out.  At 200 connections a
# second this finds a leak of about 20 bytes a connection in an hour.
MEMORY_BOUND = 1 << 20
# In a short run the second half still has the beginning in it: the first 20,000 connections, whose threads, arenas and
# code come to 20 MB.
WARM_UP, WARM_UP_BOUND = 300.0, 24 << 20  # seconds, bytes

LARGE = 3 << 20  # bytes of a large response: more than the service leaves with its loop
LOOKS = 5
PATIENCE = 30.0  # seconds in which a good client is answered, on a busy machine

APPLICATION = f"""
import os, tempfile, time
import pkg

BLOCK = bytes(range(256)) * 256
FILE = tempfile.NamedTemporaryFile()
FILE.write(BLOCK * ({LARGE} // len(BLOCK)))
FILE.flush()

def app(environ, start_response):
    path = environ["PATH_INFO"]
    def plain(body):
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]
    if path == "/echo":
        size = 0
        while data := environ["wsgi.input"].read(65536):
            size += len(data)
        return plain(str(size).encode())
    if path == "/unread":               # answers without a look at the body
        return plain(b"ok")
    if path == "/query":
        with pkg.connection(timeout=2) as conn:
            return plain(str(conn.execute("select %s::int + 1", [int(environ["QUERY_STRING"])]).fetchone()[0]).encode())
    if path == "/late":                 # ended by the deadline of its connection
        with pkg.connection(timeout=0.2) as conn:
            conn.execute("select pg_sleep(5)")
    if path == "/large":
        start_response("200 OK", [("Content-Length", "{LARGE}")])
        return (BLOCK for _ in range({LARGE} // len(BLOCK)))
    if path == "/stream":               # without a length: in chunks
        start_response("200 OK", [("Content-Type", "text/plain")])
        return (b"part %d\\n" % n for n in range(100))
    if path == "/file":
        start_response("200 OK", [("Content-Length", "{LARGE}")])
        return environ["wsgi.file_wrapper"](open(FILE.name, "rb"))
    if path == "/fails":
        raise RuntimeError("on purpose")
    if path == "/breaks":               # in the middle of its response
        start_response("200 OK", [("Content-Length", "1000")])
        return (b"x" * (10 // (3 - n)) for n in range(10))
    if path == "/sleep":
        time.sleep(float(environ["QUERY_STRING"]))
    return plain(b"hello")
"""

# Short, so that what they end comes around often.
SETTINGS = {
    "HOST": "127.0.0.1",
    "LOG_FORMAT": "json",
    "PKG_HEADER_TIMEOUT": "2s",
    "PKG_BODY_TIMEOUT": "2s",
    "PKG_WRITE_TIMEOUT": "2s",
    "PKG_IDLE_TIMEOUT": "4s",
    "PKG_QUEUE_TIMEOUT": "30s",
    "PKG_DATABASE_CHECK_INTERVAL": "500ms",
    "PKG_CONNECT_TIMEOUT": "1s",
    "PKG_POOL_MIN_SIZE": "4",
    "PKG_POOL_MAX_SIZE": "4",
    "PKG_DRAIN_DELAY": "0",
}


# The errors in the log that clients bring about; queries fail while the database is away.
PROVOKED = re.compile(r"GET /(fails|breaks|late|query)( failed|:| 50[03])")


class Service:
    """`python -m pkg`, whose log is read by a thread: only its errors are kept."""

    def __init__(self, folder: Path, database_url: str) -> None:
        (folder / "application.py").write_text(APPLICATION)
        self.admin = ("127.0.0.1", free_port())
        environ = {**os.environ, **SETTINGS, "PORT": "0", "DATABASE_URL": database_url}
        environ["PKG_ADMIN"] = f"127.0.0.1:{self.admin[1]}"
        self.lines = 0
        self.errors: list[dict[str, Any]] = []
        self.address = ("127.0.0.1", 0)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pkg", "application:app"],
            cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_for(lambda: self.address[1] or self.process.poll() is not None, PATIENCE, "the service")
        assert self.process.poll() is None, self.errors

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines += 1
            if b'"ERROR"' in line or b'"CRITICAL"' in line:
                self._note(json.loads(line))
            elif self.address[1] == 0 and (found := re.search(rb'"serving [^"]*:(\d+) after', line)):
                self.address = ("127.0.0.1", int(found[1]))

    def _note(self, record: dict[str, Any]) -> None:
        if not PROVOKED.match(record["message"]) and len(self.errors) < 100:
            self.errors.append(record)

    def stop(self) -> int:
        """The exit code."""
        self.process.terminate()
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def metrics(self) -> dict[str, float]:
        """By name, with labels as they are written."""
        _, _, text = ask(self.admin, "/metrics", timeout=PATIENCE)
        return {
            name: float(value)
            for name, _, value in (line.rpartition(" ") for line in text.splitlines() if line[:1] != "#")
        }

    def memory(self) -> tuple[int, int]:
        """RSS and PSS in bytes."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        rss, pss = (int(re.search(rf"^{name}: +(\d+)", text, re.MULTILINE)[1]) for name in ("Rss", "Pss"))  # type: ignore[index]
        return rss * 1024, pss * 1024

    def descriptors(self) -> list[str]:
        """What each is open on; a connection with its ports."""
        ports = {}
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{self.process.pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                here, there = (int(address.rpartition(":")[2], 16) for address in fields[1:3])
                ports[f"socket:[{fields[9]}]"] = f"connection of {here}" if here == self.address[1] else f"to {there}"
        found = []
        for entry in os.scandir(f"/proc/{self.process.pid}/fd"):
            with contextlib.suppress(OSError):
                link = os.readlink(entry.path)
                found.append(ports.get(link) or re.sub(r"\d+\]", "]", link))
        return sorted(found)


# ------------------------------------------------------------------------------------------------------ the clients


class Wrong(Exception):
    """A good client has not got what it should have."""


@dataclass
class Client:
    """One thread of clients: a kind after the other, each on connections of its own."""

    service: Service
    soak: Soak
    pace: random.Random = field(default_factory=random.Random)

    def connect(self) -> Connection:
        return Connection(self.service.address, PATIENCE)

    def expect(self, answer: Answer, status: int = 200, body: bytes | None = None) -> None:
        if answer.status != status or (body is not None and answer.body != body):
            raise Wrong(f"{answer.status} {answer.body[:80]!r}")

    def wait(self, seconds: float) -> bool:
        """False: the clients are to leave."""
        return not self.soak.quiet.wait(seconds)


def keep_alive(client: Client) -> None:
    with client.connect() as c:
        for _ in range(client.pace.randrange(1, 30)):
            began = time.monotonic()
            client.expect(c.request("GET", "/"), body=b"hello")
            client.soak.took.append(time.monotonic() - began)


def one_shot(client: Client) -> None:
    with client.connect() as c:
        client.expect(c.request("GET", "/", "Connection: close\r\n"), body=b"hello")


def old_protocol(client: Client) -> None:
    with client.connect() as c:
        client.expect(c.request("GET", "/", "Connection: keep-alive\r\n", version="1.0"), body=b"hello")
        client.expect(c.request("GET", "/stream", version="1.0"))


def query(client: Client) -> None:
    number = client.pace.randrange(1000)
    before = client.soak.outages
    with client.connect() as c:
        answer = c.request("GET", f"/query?{number}")
    if answer.status == 503 and (client.soak.is_out or client.soak.outages != before):
        return
    client.expect(answer, body=str(number + 1).encode())


def upload(client: Client) -> None:
    body = bytes(client.pace.choice((0, 10, 5_000, 70_000, 300_000)))
    with client.connect() as c:
        for target in ("/echo", "/unread"):
            answer = c.request("POST", target, body=body)
            client.expect(answer, body=str(len(body)).encode() if target == "/echo" else b"ok")


def chunked_upload(client: Client) -> None:
    parts = [bytes(client.pace.choice((1, 100, 20_000))) for _ in range(client.pace.randrange(1, 9))]
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\nX-Trailer: 1\r\n\r\n"
    expects = client.pace.choice(("", "Expect: 100-continue\r\n"))
    with client.connect() as c:
        c.send(f"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n{expects}\r\n".encode())
        if expects:
            client.wait(0.01)
        c.send(body)
        client.expect(c.receive("POST"), body=str(sum(map(len, parts))).encode())


def pipelining(client: Client) -> None:
    number = client.pace.randrange(2, 40)
    with client.connect() as c:
        c.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * number)
        for _ in range(number):
            client.expect(c.receive(), body=b"hello")


def half_close(client: Client) -> None:
    with client.connect() as c:
        c.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        c.socket.shutdown(socket.SHUT_WR)
        client.expect(c.receive(), body=b"hello")


def methods(client: Client) -> None:
    with client.connect() as c:
        for method, target in (("HEAD", "/"), ("OPTIONS", "/"), ("OPTIONS", "*"), ("DELETE", "/"), ("HEAD", "/large")):
            client.expect(c.request(method, target))


def probes(client: Client) -> None:
    with client.connect() as c:
        for target in ("/healthz", "/readyz?verbose", "/readyz/database"):
            answer = c.request("GET", target, "User-Agent: kube-probe/1.31\r\n")
            if answer.status != 200 and (target == "/healthz" or answer.status != 503):
                raise Wrong(f"{target} {answer.status}")


def download(client: Client) -> None:
    with client.connect() as c:
        answer = c.request("GET", client.pace.choice(("/large", "/file")))
        client.expect(answer)
        if len(answer.body) != LARGE:
            raise Wrong(f"{len(answer.body)} bytes")


def slow_download(client: Client) -> None:
    """Takes some 3 s for it, above the minimum rate."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        s.settimeout(PATIENCE)
        s.connect(client.service.address)
        s.sendall(
            b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % client.pace.choice((b"/large", b"/file"))
        )
        size = 0
        while data := s.recv(65536):
            size += len(data)
            time.sleep(0.02)
    if size < LARGE:
        raise Wrong(f"{size} bytes")


def slow_upload(client: Client) -> None:
    """Drips, but as fast as it has to."""
    with client.connect() as c:
        c.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n")
        for _ in range(10):
            c.send(bytes(500))
            time.sleep(0.1)
        client.expect(c.receive("POST"), body=b"5000")


def errors(client: Client) -> None:
    with client.connect() as c:
        client.expect(c.request("GET", "/fails"), 500)


def upgrade(client: Client) -> None:
    """Asks for a web socket, which a WSGI application does not know, and is answered in HTTP."""
    headers = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    with client.connect() as c:
        client.expect(c.request("GET", "/", headers + "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"), body=b"hello")
        c.send(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58")


def scrape(client: Client) -> None:
    target = client.pace.choice((b"/metrics", b"/statusz", b"/debug/threads", b"/debug/requests"))
    with Connection(client.service.admin, PATIENCE) as c:
        c.send(b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % target)
        client.expect(c.receive())


GOOD = [
    keep_alive, one_shot, old_protocol, query, upload, chunked_upload, pipelining, half_close, methods, probes,
    download, slow_download, slow_upload, errors, upgrade, scrape,
]  # fmt: skip


def reset(s: socket.socket) -> None:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


def silent(client: Client) -> None:
    with client.connect():
        client.wait(client.pace.choice((0.0, 0.1, 5.0)))


def slow_head(client: Client) -> None:
    with client.connect() as c:
        for byte in b"GET / HTTP/1.1\r\nHost: " + bytes(100):
            c.send(bytes([byte]))
            if not client.wait(0.05):
                return


def slow_body(client: Client) -> None:
    """Long and short bodies, below the minimum rate, and never complete."""
    length = client.pace.choice((1000, 1_000_000))
    expects = client.pace.choice((b"", b"Expect: 100-continue\r\n"))
    with client.connect() as c:
        c.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%b\r\n" % (length, expects))
        c.send(bytes(min(length - 200, 100_000)))
        for _ in range(60):
            c.send(b"x")
            if not client.wait(0.1):
                return


def aborted_upload(client: Client) -> None:
    framing = client.pace.choice((b"Content-Length: 1000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nf4240\r\n"))
    with client.connect() as c:
        c.send(b"POST /echo HTTP/1.1\r\nHost: x\r\n" + framing + bytes(client.pace.choice((0, 1000, 100_000, 500_000))))
        client.wait(client.pace.choice((0.0, 0.02)))
        client.pace.choice((reset, socket.socket.close))(c.socket)


def aborted_download(client: Client) -> None:
    target = client.pace.choice((b"/large", b"/file", b"/stream", b"/query?1", b"/sleep?0.05", b"/breaks"))
    with client.connect() as c:
        c.send(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target * client.pace.choice((1, 1, 5)))
        if client.pace.random() < 0.5:
            c.socket.recv(1000)
        client.pace.choice((reset, socket.socket.close))(c.socket)


def never_reads(client: Client) -> None:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.settimeout(PATIENCE)
        s.connect(client.service.address)
        s.sendall(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % client.pace.choice((b"/large", b"/file")) * 3)
        client.wait(4.0)


def malformed(client: Client) -> None:
    wrong = (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 40_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n" + bytes(100_000),
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + bytes(1000),
        b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        client.pace.randbytes(200),
    )
    with client.connect() as c, contextlib.suppress(TimeoutError):
        c.send(client.pace.choice(wrong))
        c.socket.settimeout(4)
        while c.socket.recv(65536):
            pass


def late(client: Client) -> None:
    with client.connect() as c:
        c.request("GET", "/late")


def slow_scrape(client: Client) -> None:
    with Connection(client.service.admin, PATIENCE) as c:
        c.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
        client.wait(1.0)


def reset_at_once(client: Client) -> None:
    reset(client.connect().socket)


BAD = [
    silent, slow_head, slow_body, aborted_upload, aborted_download, never_reads, malformed, late, slow_scrape,
    reset_at_once,
]  # fmt: skip

# Those that take seconds have threads of their own: else they would soon be all that runs.
SLOW = [silent, slow_head, slow_body, slow_download, slow_upload, never_reads, malformed, late, slow_scrape]
QUICK = [kind for kind in GOOD + BAD if kind not in SLOW]


# --------------------------------------------------------------------------------------------------------- the soak


@dataclass
class Moment:
    """What the service holds while it has no client."""

    time: float
    pss: int
    threads: float
    descriptors: list[str]


class Soak:
    """`clients` threads against a service: a third of them quick kinds, the others slow ones."""

    def __init__(self, service: Service, server: Postgres, clients: int) -> None:
        self.service, self.server = service, server
        self.quiet = threading.Event()  # the clients are to leave
        self.done: Counter[str] = Counter()  # by kind
        self.took: list[float] = []  # seconds, of short requests on connections that are kept
        self.wrong: list[str] = []
        self.faults: list[str] = []
        self.moments: list[Moment] = []
        self.outages, self.is_out = 0, False
        self._over = False
        self._gate = threading.Condition()
        self._active = 0
        quick = max(1, clients // 3)
        work = (
            [(self._client, (QUICK,))] * quick + [(self._client, (SLOW,))] * (clients - quick) + [(self._outages, ())]
        )
        self._threads = [threading.Thread(target=target, args=arguments, daemon=True) for target, arguments in work]
        self._begun = time.monotonic()
        for thread in self._threads:
            thread.start()

    @property
    def age(self) -> float:
        return time.monotonic() - self._begun

    @contextlib.contextmanager
    def _inside(self) -> Iterator[bool]:
        """While clients may be there; False: no more."""
        with self._gate:
            self._gate.wait_for(lambda: self._over or not self.quiet.is_set())
            self._active += 1
        try:
            yield not self._over
        finally:
            with self._gate:
                self._active -= 1
                self._gate.notify_all()

    def _client(self, kinds: list[Callable[[Client], None]]) -> None:
        client, count = Client(self.service, self), Counter[str]()
        while True:
            with self._inside() as goes_on:
                if not goes_on:
                    break
                kind = client.pace.choice(kinds)
                try:
                    kind(client)
                except (Wrong, OSError, EOFError, AssertionError) as error:
                    if kind in GOOD and len(self.wrong) < 100:
                        self.wrong.append(f"{self.age:.1f} s: {kind.__name__}: {error!r}")
                count[kind.__name__] += 1
                client.wait(client.pace.uniform(0, 0.06))
        with self._gate:
            self.done += count

    def _outages(self) -> None:
        """The database stops, freezes, or loses its sessions; every other time for long enough to turn /readyz red."""
        server = self.server
        faults: list[tuple[Callable[[], object], Callable[[], object]]]
        faults = [(server.stop, server.start), (server.pause, server.resume), (server.terminate, lambda: None)]
        for number in itertools.count():
            with self._inside() as goes_on:
                if not goes_on:
                    return
                begin, end = faults[number % len(faults)]
                self.outages += 1
                self.is_out = True
                try:
                    begin()
                    self.quiet.wait(4.0 if number % 2 else 1.0)
                finally:
                    end()
                try:
                    wait_for(self._is_ready, PATIENCE, "readiness after an outage")
                except AssertionError as error:
                    self.wrong.append(f"{self.age:.1f} s: {error}")
                self.is_out = False
                self.quiet.wait(10.0)

    def _is_ready(self) -> bool:
        return ask(self.service.address, "/readyz", timeout=PATIENCE)[0] == 200

    def be_quiet(self) -> None:
        """A moment without clients, in which the books must balance."""
        self.quiet.set()
        with self._gate:
            if not self._gate.wait_for(lambda: self._active == 0, 4 * PATIENCE):
                self.faults.append(f"{self.age:.0f} s: {self._active} clients are stuck")

        def open_accounts() -> list[str]:
            m = self.service.metrics()
            balance = {
                "accepted - closed - open": m["pkg_connections_accepted_total"]
                - m["pkg_connections_closed_total"]
                - m["pkg_connections"],
                "requests - served - aborted": m["pkg_requests_total"]
                - m["pkg_requests_served_total"]
                - m["pkg_requests_aborted_total"],
            }
            idle = 'db_client_connections{db_client_connection_pool_name="main",db_client_connection_state="idle"}'
            balance["pool size - idle connections"] = float(SETTINGS["PKG_POOL_MAX_SIZE"]) - m[idle]
            for name in ("pkg_connections", "pkg_buffered_bytes", "pkg_queue_length", "http_server_active_requests"):
                balance[name] = m[name]
            return [f"{name} is {value:g}" for name, value in balance.items() if value != 0]

        # A connection that has been left, or is read on after a FIN, takes a moment to end.
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not open_accounts(), PATIENCE)
        self.faults += [f"{self.age:.0f} s: without clients {text}" for text in open_accounts()]
        threads = self.service.metrics()["pkg_threads"]
        self.moments.append(Moment(self.age, self.service.memory()[1], threads, self._lasting_descriptors()))
        self.quiet.clear()
        with self._gate:
            self._gate.notify_all()

    def _lasting_descriptors(self) -> list[str]:
        """The fewest of some looks: a database check that is under way has one of its own for a moment."""
        found = []
        for _ in range(LOOKS):
            found.append(self.service.descriptors())
            time.sleep(0.1)
        return min(found, key=len)

    def finish(self) -> None:
        with self._gate:
            self._over = True
            self.quiet.set()
            self._gate.notify_all()
        for thread in self._threads:
            thread.join(2 * PATIENCE)

    def verdict(self) -> list[str]:
        """What does not hold; nothing if all does."""
        faults = [*self.faults, *self.wrong]
        messages = Counter(record["message"] for record in self.service.errors)
        faults += [f"{number} times in the log: {message}" for message, number in messages.items()]
        half = self.moments[len(self.moments) // 2 - 1 :]  # the first of them is at half the time
        for moment in half[1:]:
            more = Counter(moment.descriptors) - Counter(half[0].descriptors)
            if len(moment.descriptors) > len(half[0].descriptors):
                faults.append(f"descriptors: {len(moment.descriptors)} at {moment.time:.0f} s, {dict(more)} more")
            if moment.threads > half[0].threads:
                faults.append(
                    f"threads: {moment.threads:g} at {moment.time:.0f} s, {half[0].threads:g} at half the time"
                )
        bound = MEMORY_BOUND if half[0].time >= WARM_UP else WARM_UP_BOUND
        rise = self.rise()
        if rise > bound:
            faults.append(f"memory: {rise / 1e6:.1f} MB more in the second half, above {bound / 1e6:.1f} MB")
        return faults

    def rise(self) -> int:
        """Bytes of PSS from the first two to the last two quiet moments of the second half."""
        half = [moment.pss for moment in self.moments[len(self.moments) // 2 - 1 :]]
        return min(half[-2:]) - max(half[:2])


COLUMNS = (
    ("accepted", "pkg_connections_accepted_total"),
    ("open", "pkg_connections"),
    ("requests", "pkg_requests_total"),
    ("aborted", "pkg_requests_aborted_total"),
    ("resets", "pkg_connection_resets_total"),
    ("timeouts", "pkg_timeouts_total"),
    ("rejected", "pkg_requests_rejected_total"),
    ("shed", "pkg_requests_shed_total"),
    ("probes", "pkg_probes_total"),
    ("buffered", "pkg_buffered_bytes"),
)


class Sample(NamedTuple):
    """`p99`: seconds, of the short requests since the last sample."""

    time: float
    rss: int
    pss: int
    descriptors: int
    p99: float
    metrics: dict[str, float]


def sample_of(soak: Soak) -> Sample:
    rss, pss = soak.service.memory()
    took, soak.took = sorted(soak.took), []
    p99 = took[len(took) * 99 // 100] if took else 0.0
    return Sample(soak.age, rss, pss, len(soak.service.descriptors()), p99, soak.service.metrics())


def row(sample: Sample, wrong: int) -> str:
    numbers = " ".join(f"{sample.metrics[name]:9.0f}" for _, name in COLUMNS)
    held = (
        f"{sample.rss / 1e6:7.1f} {sample.pss / 1e6:7.1f} {sample.descriptors:5} {sample.metrics['pkg_threads']:7.0f}"
    )
    return f"{sample.time:7.0f} {held} {sample.p99 * 1000:7.1f} {numbers} {wrong:6}"


def plot(samples: Sequence[Sample], moments: Sequence[Moment]) -> str:
    requests = [(s.time, s.metrics["pkg_requests_total"]) for s in samples]
    rates = [(at, (n - before) / (at - since)) for (since, before), (at, n) in itertools.pairwise(requests)]
    charts = [
        Chart(
            "Memory", "bytes",
            {
                "resident": [(s.time, s.rss) for s in samples],
                "PSS": [(s.time, s.pss) for s in samples],
                "PSS without clients": [(m.time, m.pss) for m in moments],
            },
        ),
        Chart(
            "Descriptors", "",
            {
                "with clients": [(s.time, s.descriptors) for s in samples],
                "without clients": [(m.time, len(m.descriptors)) for m in moments],
            },
        ),
        Chart("Short requests, 99th percentile", "s", {"as clients see them": [(s.time, s.p99) for s in samples]}),
        Chart("Requests a second", "", {"of all clients": rates}),
    ]  # fmt: skip
    return draw("Soak", "good, slow and hostile clients together, and a database that is away again and again", charts)


def run(
    seconds: float,
    interval: float,
    clients: int,
    say: Callable[[str], None] = print,
    picture: Path | None = None,
) -> list[str]:
    """The whole of it.  What does not hold; nothing if all does."""
    with tempfile.TemporaryDirectory(prefix="soak-") as name, Postgres() as server:
        service = Service(Path(name), server.url)
        try:
            soak = Soak(service, server, clients)
            say(f"{'s':>7} {'RSS MB':>7} {'PSS MB':>7} {'desc.':>5} {'threads':>7} {'p99 ms':>7} " + " ".join(
                f"{title:>9}" for title, _ in COLUMNS) + f" {'wrong':>6}")  # fmt: skip
            samples: list[Sample] = []
            due = interval  # when the next is
            for eighth in range(1, 9):
                while soak.age < seconds * eighth / 8:
                    time.sleep(max(0.0, min(due, seconds * eighth / 8) - soak.age))
                    if soak.age >= due:
                        samples.append(sample_of(soak))
                        say(row(samples[-1], len(soak.wrong)))
                        due += interval
                soak.be_quiet()
                moment = soak.moments[-1]
                say(
                    f"{moment.time:7.0f} {'quiet':>7} {moment.pss / 1e6:7.1f} {len(moment.descriptors):5}"
                    f" {moment.threads:7.0f}"
                )
                if picture is not None:
                    picture.write_text(plot(samples, soak.moments))
            soak.finish()
            say(f"clients: {dict(soak.done)}")
            say(f"{soak.outages} outages of the database, {service.lines} lines of log")
            faults = soak.verdict()
            say(f"memory in the second half: {soak.rise() / 1e6:+.2f} MB")
        finally:
            code = service.stop()
        if code != 0:
            faults.append(f"the service ended with {code}")
        return faults


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.system.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--interval", type=float, default=10.0, help="seconds between two rows (10)")
    parser.add_argument("--clients", type=int, default=24, help="how many clients at a time (24)")
    parser.add_argument("--plot", type=Path, help="an SVG file to draw it into")
    options = parser.parse_args(arguments)
    faults = run(
        60 * options.minutes, options.interval, options.clients, lambda text: print(text, flush=True), options.plot
    )
    for fault in faults:
        print("FAULT:", fault)
    print("failed" if faults else "memory and descriptors are flat in the second half; every account balances")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
