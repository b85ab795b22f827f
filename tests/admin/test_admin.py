"""The admin listener: who may ask, what each page says, and that nothing a client sends hurts it."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pkg._core import Counters
from pkg.admin import pages as _pages
from pkg.admin.listener import THREADS, Admin
from pkg.admin.pages import Pages
from pkg.diagnostics.cgroup import Throttling
from pkg.diagnostics.failures import Failure
from pkg.diagnostics.profile import Profile, Profiler
from pkg.diagnostics.snapshot import Computing, InFlight, Latency, ServiceState, Snapshot, Status, Workers, diagnose
from pkg.health.checks import Check, Checker, Degraded
from pkg.health.report import HealthReport
from pkg.lifecycle import Lifecycle, Phase
from pkg.logs import sink as logs
from pkg.logs.sink import LogLines
from pkg.settings import declared as settings
from tests.support.client import get, wait_for
from tests.support.ports import free_port
from tests.support.processes import ask, running
from tests.support.servers import serving_app

SECRET = "hunter2-and-more"


class Levels:
    """A log level that remembers what it was."""

    def __init__(self) -> None:
        self.past = ["info"]

    def __call__(self) -> str:
        return self.past[-1]


class World:
    """A server with an application, and the admin listener beside it."""

    def __init__(self, server: Any, token: str = "") -> None:
        self.server = server
        self.levels = Levels()
        self.drained: list[str] = []
        self.pool: dict[str, int] | None = None
        self.lifecycle = Lifecycle()
        self.lifecycle.advance(Phase.READY)
        front = server.front
        self.checker = Checker(publish=front.publish, renew=front.renew)
        loaded = settings.load({"DATABASE_URL": f"postgresql://me:{SECRET}@db/x", "PKG_ADMIN_TOKEN": SECRET})
        self.status = Status(
            front=front,
            threads=lambda: server.threads,
            alive=lambda: server.stuck_workers,
            lifecycle=self.lifecycle,
            checker=self.checker,
            databases=lambda: {} if self.pool is None else {"": self},
            logs=lambda: LogLines(1, 0, 0),
            app="shop:app",
            address="127.0.0.1:80",
            settings=[{"name": row.name, "value": row.value, "origin": row.origin} for row in loaded.describe()],
        )
        pages = Pages(self.status, level=self.levels, set_level=self.levels.past.append, drain=self.drained.append)
        self.admin = Admin(("127.0.0.1", 0), pages=lambda: pages, token=token)
        self.admin.start()
        self.address = self.admin.address

    shortage = locks = ""

    def stats(self) -> dict[str, int]:
        """Of the pool."""
        return dict(self.pool or {})

    def taken(self) -> list[str]:
        """Connections of the pool that are out."""
        return []

    def ask(self, target: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
        return ask(self.address, target, method, **headers)

    def json(self, target: str, method: str = "GET") -> Any:
        status, headers, text = self.ask(target, method, Accept="application/json")
        assert (status // 100, headers["content-type"]) == (2, "application/json")
        return json.loads(text)


class App:
    """Answers at once, or waits at /wait until told to go on."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"].startswith("/wait"):
            self.wait_here()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]

    def wait_here(self) -> None:
        self.go.wait(30)


@contextlib.contextmanager
def world_of(app: Any, token: str = "", **options: Any) -> Iterator[World]:
    with serving_app(app, **options) as server:
        world = World(server, token)
        try:
            yield world
        finally:
            if isinstance(app, App):
                app.go.set()
            world.admin.close()


@pytest.fixture
def world() -> Iterator[World]:
    with world_of(App()) as made:
        yield made


# --- who may -------------------------------------------------------------------------------------------------------

ALL_PAGES = ("/", "/statusz", "/metrics", "/debug/threads", "/debug/requests", "/debug/pool", "/debug/memory")


@pytest.mark.parametrize("page", ALL_PAGES)
@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/html,application/xhtml+xml"])
def test_every_page_answers(world: World, page: str, accept: str) -> None:
    status, headers, text = world.ask(page, Accept=accept)
    assert status == 200 and text
    assert headers["cache-control"] == "no-store" and headers["x-content-type-options"] == "nosniff"
    if "json" in accept:
        json.loads(text)
    head = world.ask(page, "HEAD", Accept=accept)
    assert head[0] == 200 and head[2] == "" and int(head[1]["content-length"]) > 0


def test_without_a_token_anybody_local_may(world: World) -> None:
    for host in ("localhost", "localhost:9901", "127.0.0.1", "127.8.8.8:1", "[::1]:9901", "LOCALHOST.", "a.localhost"):
        assert world.ask("/", Host=host)[0] == 200, host


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9901", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", ""]
)
def test_other_hosts_are_refused(world: World, host: str, caplog: pytest.LogCaptureFixture) -> None:
    """A web page whose name has been pointed at the loopback address (DNS rebinding)."""
    assert world.ask("/statusz", Host=host)[0] == 403
    assert "refused GET /statusz" in caplog.text


def test_no_host_is_no_browser(world: World) -> None:
    with socket.create_connection(world.address, 5) as s:
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert s.recv(15) == b"HTTP/1.1 200 OK"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_other_sites_change_nothing(world: World, headers: dict[str, str]) -> None:
    assert world.ask("/drain", "POST", Host="localhost:9901", **headers)[0] == 403
    assert world.drained == []


def test_the_own_site_may(world: World) -> None:
    origin = {"Origin": "http://localhost:9901", "Sec_Fetch_Site": "same-origin"}
    assert world.ask("/drain", "POST", Host="localhost:9901", **origin)[0] == 202


def test_token(caplog: pytest.LogCaptureFixture) -> None:
    basic = base64.b64encode(f"anybody:{SECRET}".encode()).decode()
    with world_of(App(), token=SECRET) as world:
        for value in (f"Bearer {SECRET}", f"bearer  {SECRET}", f"Basic {basic}"):
            assert world.ask("/statusz", Authorization=value)[0] == 200
            # A token is proof enough: the listener may be reached by any name.
            assert world.ask("/statusz", Authorization=value, Host="pod-1.example:9901")[0] == 200
        wrong = ("", "Bearer", f"Bearer {SECRET}x", "Bearer \xe9", SECRET, f"Digest {SECRET}", "Basic !", "Basic QQ==")
        for value in wrong:
            status, headers, text = world.ask("/statusz", Authorization=value)
            assert status == 401, value
            assert headers["www-authenticate"].startswith("Bearer") and SECRET not in text
        assert world.ask("/statusz")[0] == 401
        assert world.ask("/drain", "POST")[0] == 401 and world.drained == []
    refusals = [r.getMessage() for r in caplog.records if "token" in r.getMessage()]
    assert 1 <= len(refusals) <= 4, "logged, but not each of many"
    assert "127.0.0.1" in refusals[0] and SECRET not in caplog.text


@pytest.mark.parametrize(
    ("method", "page", "allowed"),
    [
        ("POST", "/statusz", "GET, HEAD"),
        ("PUT", "/metrics", "GET, HEAD"),
        ("OPTIONS", "/debug/threads", "GET, HEAD"),
        ("GET", "/drain", "POST"),
        ("DELETE", "/drain", "POST"),
        ("PATCH", "/debug/log-level", "GET, HEAD, POST"),
    ],
)
def test_wrong_methods(world: World, method: str, page: str, allowed: str) -> None:
    status, headers, _ = world.ask(page, method)
    assert (status, headers["allow"]) == (405, allowed)
    assert world.drained == []


@pytest.mark.parametrize("page", ["/nothing", "/debug", "/debug/heap", "/debug/environ", "/%2e%2e/etc/passwd"])
def test_unknown_pages(world: World, page: str) -> None:
    status, _, text = world.ask(page)
    assert status == 404 and "/statusz" in text


def test_no_page_shows_a_secret() -> None:
    with world_of(App(), token=SECRET) as world:
        for page in (*ALL_PAGES, "/debug/profile?seconds=0.1", "/debug/log-level"):
            for accept in ("*/*", "application/json", "text/html"):
                status, _, text = world.ask(page, Accept=accept, Authorization=f"Bearer {SECRET}")
                assert status == 200
                assert SECRET not in text, page
        assert "postgresql://" in world.ask("/statusz", Authorization=f"Bearer {SECRET}")[2]


# --- wrong input ---------------------------------------------------------------------------------------------------


def exchange(address: tuple[str, int], data: bytes) -> bytes:
    with socket.create_connection(address, 10) as s:
        s.sendall(data)
        received = b""
        while more := s.recv(65536):
            received += more
        return received


GOOD = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 150 + b"\r\n", b"431"),
        (b"GARBAGE\r\n\r\n", b"400"),
        (b"GET / HTTP/9.9\r\n\r\n", b"505"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"POST /drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100000, b"413"),
        (b"POST /drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"0" * 4999 + b"1\r\n\r\n", b"413"),
        (b"POST /drain HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"411"),
        (b"GET /?" + b"&".join([b"a=1"] * 50) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
    ],
    ids=lambda value: value[:20] if len(value) > 3 else None,
)
def test_wrong_input(world: World, data: bytes, status: bytes) -> None:
    answer = exchange(world.address, data)
    assert answer.split()[1] == status, answer[:200]
    assert b"<" not in answer and b"Traceback" not in answer
    assert world.drained == []
    assert exchange(world.address, GOOD).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("body", [b"x", b"xy", b"xyz!", b"x" * 4096])
def test_a_body_that_comes_late_does_not_reset_the_connection(world: World, body: bytes) -> None:
    """Whatever is still unread at close() would take the reply away."""
    with socket.create_connection(world.address, 10) as s:
        s.sendall(b"POST /drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
        s.settimeout(0.2)
        with pytest.raises(TimeoutError):  # it waits for all of the body
            s.recv(1)
        s.settimeout(10)
        s.sendall(body)
        received = b""
        while more := s.recv(65536):
            received += more
    assert received.startswith(b"HTTP/1.1 202 ") and world.drained == ["POST /drain"]


def test_what_ends_by_itself_is_not_begun_without_a_thread_for_it(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import tracemalloc

    def refuse(self: threading.Timer) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Timer, "start", refuse)
    assert world.ask("/debug/log-level?level=debug", "POST")[0] == 500
    assert world.ask("/debug/memory?seconds=5", "POST")[0] == 500
    assert world.levels.past == ["info"] and not tracemalloc.is_tracing()
    assert world.json("/debug/log-level")["reverts_in"] is None
    assert "can't start new thread" in caplog.text


def test_slow_clients_do_not_shut_others_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every thread is held by a client that does not finish its request; each for so long only."""
    monkeypatch.setattr("pkg.admin.listener.READ_TIMEOUT", 0.5)
    slow = [socket.create_connection(world.address, 10) for _ in range(THREADS)]
    try:
        for s in slow:
            s.sendall(b"GET / HTTP/1.1\r\n")
        began = time.monotonic()
        assert exchange(world.address, GOOD).startswith(b"HTTP/1.1 200 ")
        assert time.monotonic() - began < 5
        for s in slow:
            assert s.recv(100).startswith(b"HTTP/1.1 408 ")
    finally:
        for s in slow:
            s.close()


def test_a_page_that_fails_is_logged(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Status, "collect", lambda self: 1 / 0)
    status, _, text = world.ask("/statusz")
    assert status == 500 and "this page failed (ZeroDivisionError)" in text
    assert "ZeroDivisionError" in caplog.text


# --- pages ---------------------------------------------------------------------------------------------------------


def test_statusz_is_a_page_that_needs_nothing_else(world: World) -> None:
    _, headers, text = world.ask("/statusz", Accept="text/html,*/*;q=0.8")
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert text.startswith("<!doctype html>") and text.rstrip().endswith("</html>")
    assert not re.search(r"<script|src=|https?://|@import|url\(", text)
    assert "prefers-color-scheme" in text
    from html.parser import HTMLParser

    class Balance(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            if tag != "meta":
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    balance = Balance()
    balance.feed(text)
    assert balance.open == []


def test_statusz_says_who_probes_and_escapes_what_they_say(world: World) -> None:
    world.checker.start()
    try:
        get(world.server.server_address, "/readyz", "User-Agent: <script>alert(1)</script>\r\n")
        document = world.json("/statusz")
        assert document["probers"][0] | {"age": 0} == {
            "client": "127.0.0.1",
            "user_agent": "<script>alert(1)</script>",
            "page": "/readyz",
            "count": 1,
            "status": 503,
            "age": 0,
        }
        _, _, html = world.ask("/statusz", Accept="text/html")
        assert "&lt;script&gt;" in html and "<script" not in html
    finally:
        world.checker.stop()


def test_statusz_shows_reasons(world: World) -> None:
    def fails() -> None:
        raise OSError("connection refused by 10.1.2.3")

    world.checker.add(Check("orders", fails))
    world.checker.add(Check("cache", lambda: Degraded("slow today"), required=False))
    world.checker.start()
    try:
        wait_for(lambda: all(s["status"] != "pending" for s in world.json("/statusz")["health"]["readiness"]))
        text = world.ask("/statusz")[2]
        assert "check orders fails" in text and "connection refused by 10.1.2.3" in text
        assert "check cache is degraded" in text and "slow today" in text
        assert "10.1.2.3" not in get(world.server.server_address, "/readyz?verbose").body.decode()
    finally:
        world.checker.stop()


def test_text_that_is_no_text(world: World) -> None:
    """A reason may hold any string: a file's name whose bytes are no UTF-8 comes with lone surrogates."""

    def fails() -> None:
        raise OSError("no such file: \udcff.pem")

    world.checker.add(Check("certificate", fails))
    world.checker.start()
    try:
        wait_for(lambda: "no such file" in world.ask("/statusz")[2])
        status, _, html = world.ask("/statusz", Accept="text/html")
        assert status == 200 and ".pem" in html
        status, _, text = world.ask("/statusz", Accept="application/json")
        assert status == 200 and ".pem" in text
        json.dumps(json.loads(text), ensure_ascii=False).encode()  # what a strict parser takes
    finally:
        world.checker.stop()


@contextlib.contextmanager
def waiting_requests(world: World, *targets: str) -> Iterator[None]:
    """Requests in flight, sent and not answered."""
    connections = [socket.create_connection(world.server.server_address[:2], 10) for _ in targets]
    try:
        for connection, target in zip(connections, targets, strict=True):
            connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        wait_for(lambda: world.server.front.stats().in_flight == len(targets))
        wait_for(lambda: len(world.status.requests()) == len(targets))
        yield
    finally:
        for connection in connections:
            connection.close()


def test_requests_and_where_they_stand(world: World) -> None:
    with waiting_requests(world, "/wait/here?password=x"):
        wait_for(lambda: world.json("/debug/requests")[0]["at"])
        (request,) = world.json("/debug/requests")
        assert (request["method"], request["target"]) == ("GET", "/wait/here")
        assert request["worker"].startswith("worker-")
        assert request["at"].endswith("in wait_here") and request["source"] == "self.go.wait(30)"
        assert (world.status.not_listed(world.status.requests()), world.status.not_listed([])) == (0, 1)
        for page in ("/debug/requests", "/statusz", "/debug/threads"):
            text = world.ask(page)[2]
            assert "/wait/here" in text and "wait_here" in text and "password" not in text


def test_threads(world: World) -> None:
    wait_for(lambda: world.server.stuck_workers == 8)  # all are there
    threads = world.json("/debug/threads")
    names = [thread["name"] for thread in threads]
    assert [name for name in names if name.startswith("worker-")] == [f"worker-{n}" for n in range(8)]
    by_name = {thread["name"]: thread for thread in threads}
    assert by_name["MainThread"]["frames"][-1]["function"]
    assert "test_threads" in {frame["function"] for frame in by_name["MainThread"]["frames"]}
    assert {"file", "line", "function", "source"} == set(by_name["MainThread"]["frames"][0])
    text = world.ask("/debug/threads")[2]
    assert "8 threads at" in text, "threads at the same place are shown together"


def test_pool(world: World) -> None:
    assert "no connection pool" in world.ask("/debug/pool")[2]
    assert world.json("/debug/pool") is None
    world.pool = {"pool_size": 4, "pool_max": 4, "pool_available": 0, "requests_waiting": 3}
    assert world.json("/debug/pool")["requests_waiting"] == 3
    assert "the pool is exhausted: 4 of 4 connections are in use, 3 callers waiting" in world.ask("/statusz")[2]


def test_memory(world: World) -> None:
    import tracemalloc

    assert not tracemalloc.is_tracing()
    assert "not traced" in world.ask("/debug/memory")[2]
    assert world.ask("/debug/memory?seconds=100000", "POST")[0] == 400
    document = world.json("/debug/memory?seconds=60", "POST")
    try:
        assert document["tracing"] and tracemalloc.is_tracing()
        hoard = [bytes(1000) for _ in range(3000)]
        lines = world.json("/debug/memory")["lines"]
        largest = max(lines, key=lambda line: line["size"])
        assert largest["file"].endswith("test_admin.py") and largest["size"] >= sum(map(len, hoard))
        assert "ALLOCATED AT" in world.ask("/debug/memory")[2]
    finally:
        world.admin.pages.close()
    assert not tracemalloc.is_tracing()


def test_tracing_ends_by_itself(world: World) -> None:
    import tracemalloc

    world.json("/debug/memory?seconds=1", "POST")
    assert tracemalloc.is_tracing()
    wait_for(lambda: not tracemalloc.is_tracing())


# --- log level and drain -------------------------------------------------------------------------------------------


def test_log_level_reverts_by_itself(world: World, caplog: pytest.LogCaptureFixture) -> None:
    assert world.json("/debug/log-level") == {"level": "info", "usual": "info", "reverts_in": None}
    changed = world.json("/debug/log-level?level=debug&seconds=1", "POST")
    assert changed["level"] == "debug" and 0 < changed["reverts_in"] <= 1
    # A second change does not forget what was usual.
    assert world.json("/debug/log-level?level=error&seconds=1", "POST")["usual"] == "info"
    wait_for(lambda: world.levels() == "info")
    assert world.levels.past == ["info", "debug", "error", "info"]
    wait_for(lambda: "log level changed back to info" in caplog.text)


@pytest.mark.parametrize(
    "query", ["", "level=loud", "level=debug&seconds=0", "level=debug&seconds=x", "level=debug&seconds=nan"]
)
def test_wrong_log_levels(world: World, query: str) -> None:
    assert world.ask(f"/debug/log-level?{query}", "POST")[0] == 400
    assert world.levels.past == ["info"]


def test_drain(world: World) -> None:
    status, _, text = world.ask("/drain", "POST")
    assert (status, text) == (202, "draining\n")
    assert world.drained == ["POST /drain"]


# --- profiles ------------------------------------------------------------------------------------------------------


def test_profile_folded(world: World) -> None:
    with waiting_requests(world, "/wait"):
        status, headers, text = world.ask("/debug/profile?seconds=0.5&hz=50")
    assert status == 200
    lines = [re.fullmatch(r"(worker-\d+);(.+) (\d+)", line) for line in text.splitlines()]
    found = [m for m in lines if m and "wait_here" in m[2]]
    assert found and sum(int(m[3]) for m in found) >= 5
    assert "admin-" not in text, "idle threads are left out"
    assert int(headers["x-samples"]) > 0 and int(headers["x-idle-samples"]) > 0
    assert "worker-" in world.ask("/debug/profile?seconds=0.1&all=1")[2]


def test_profile_for_speedscope(world: World) -> None:
    with waiting_requests(world, "/wait"):
        status, headers, text = world.ask("/debug/profile?seconds=0.3&hz=50&format=speedscope")
        assert json.loads(world.ask("/debug/profile?seconds=0.1", Accept="application/json")[2])["profiles"]
    assert status == 200 and "speedscope.json" in headers["content-disposition"]
    document = json.loads(text)
    assert document["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    frames = document["shared"]["frames"]
    assert all(set(frame) == {"name", "file", "line"} for frame in frames)
    (profile,) = (p for p in document["profiles"] if p["name"].startswith("worker-"))
    assert profile["type"] == "sampled" and profile["unit"] == "seconds" and profile["startValue"] == 0
    assert len(profile["samples"]) == len(profile["weights"]) > 3
    assert profile["endValue"] == pytest.approx(sum(profile["weights"]), rel=0.01)
    assert all(0 <= index < len(frames) for stack in profile["samples"] for index in stack)
    innermost_first = [frames[index]["name"] for index in reversed(profile["samples"][-1])]
    assert innermost_first.index("App.wait_here" if "App.wait_here" in innermost_first else "wait_here") > 0


def test_profile_of_an_idle_service_can_be_opened() -> None:
    """speedscope: src/lib/file-format.ts shows one of the profiles, so there has to be one."""
    (profile,) = Profile(0.01).speedscope()["profiles"]
    assert profile["name"].startswith("idle: the application was at work in none of 0 samples")
    assert (profile["type"], profile["samples"], profile["weights"]) == ("sampled", [], [])


@pytest.mark.parametrize(
    "query", ["seconds=61", "seconds=0", "seconds=-1", "seconds=x", "seconds=inf", "hz=0", "hz=1000000", "format=pdf"]
)
def test_profiles_that_are_not_made(world: World, query: str) -> None:
    assert world.ask(f"/debug/profile?{query}")[0] == 400


def test_one_profile_at_a_time(world: World) -> None:
    first: list[int] = []
    thread = threading.Thread(target=lambda: first.append(world.ask("/debug/profile?seconds=30")[0]))
    thread.start()
    try:
        profiler: Profiler = world.admin.pages._profiler
        wait_for(profiler._lock.locked)
        status, _, text = world.ask("/debug/profile?seconds=1")
        assert status == 409 and "another profile" in text
        assert world.ask("/statusz")[0] == 200
    finally:
        world.admin.pages.close()  # ends the long one early
        thread.join(10)
    assert first == [200]


def test_profile_finds_who_computes() -> None:
    """Samples are where the time goes."""
    stop = threading.Event()

    def burn() -> None:
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=burn, name="burner")
    thread.start()
    try:
        profile = Profiler().sample(0.5, 100)
    finally:
        stop.set()
        thread.join()
    assert any(line.startswith("burner;") and "burn (" in line for line in profile.folded().splitlines())
    assert profile.seconds == pytest.approx(0.5, abs=0.4)


# --- findings ------------------------------------------------------------------------------------------------------


def healthy() -> Snapshot:
    service = ServiceState("", "", "", None, 1, "", "", "ready", "", 100.0, 100.0, "", None)
    return Snapshot(
        service=service,
        health=HealthReport(True, True, [], []),
        workers=Workers(threads=4, alive=4, busy=0),
        requests=[],
        pools={},
        front=Counters(**dict.fromkeys(Counters._fields, 0)),
        listening=[],
        latency=Latency(0, {}),
        probers=[],
        process={"open_fds": 10.0, "max_fds": 1000.0, "interpreter_delay_seconds": 0.0},
        logs=LogLines(0, 0, 0),
        settings=[],
    )


def request(age: float, at: str | None = "app.py:3 in f", worker: str | None = "worker-0") -> InFlight:
    return InFlight("GET", "/a", age, worker, 7 if worker else None, "sleeping", at, "with lock:")


def change(snapshot: Snapshot, path: str, value: Any) -> Snapshot:
    part, _, name = path.partition(".")
    if not name:
        return snapshot._replace(**{part: value})
    former = getattr(snapshot, part)
    new = {**former, name: value} if isinstance(former, dict) else former._replace(**{name: value})
    return snapshot._replace(**{part: new})


FINDINGS: list[tuple[str, dict[str, Any], str]] = [
    (
        "error",
        {"service.phase": "starting", "service.main_thread_at": "a.py:1"},
        "still starting after 100 s: .*a.py:1",
    ),
    ("warning", {"service.phase": "draining", "service.reason": "SIGTERM"}, "draining for 100 s because of SIGTERM"),
    ("error", {"workers.alive": 3}, "only 3 of 4 workers are running"),
    (
        "error",
        {"workers.busy": 4, "front.queued": 2, "requests": [request(1.0)]},
        "all 4 workers are busy and 2 requests wait; .* 1.0 s: GET /a",
    ),
    ("warning", {"workers.busy": 4, "requests": [request(1.0)]}, "all 4 workers are busy and 0 requests wait"),
    (
        "warning",
        {"requests": [request(9.0)]},
        "worker-0 has been serving GET /a for 9 s, at app.py:3 in f: `with lock:`",
    ),
    (
        "warning",
        {"requests": [request(9.0), request(8.0)]},
        "2 threads have been serving GET /a for up to 9 s, at app.py:3",
    ),
    (
        "note",
        {"workers.busy": 3, "requests": [request(2.0), request(1.9), request(1.1)]},
        "3 threads have been serving GET /a for up to 2 s, at app.py:3",
    ),
    (
        "warning",
        {"requests": [request(9.0, None)._replace(awaits="to take the response")]},
        "worker-0 has been serving GET /a for 9 s, waiting for the client to take the response$",
    ),
    (
        "warning",
        {"requests": [request(9.0)._replace(awaits="to send the body")] * 2},
        "2 threads .* at app.py:3 in f: `with lock:`, waiting for their clients to send the body$",
    ),
    (
        "warning",
        {"computing": [Computing("ranking", 21.0, 22.0, "app.py:24 in refresh", "for view in views:")]},
        "thread ranking, which .* computed for 21 of the last 22 s, at app.py:24 in refresh: `for view in views:`; req",
    ),
    (
        "warning",
        {"failures": [Failure("KeyError", "app.py:3 in f", 47)]},
        "KeyError at app.py:3 in f was logged 47 times",
    ),
    ("warning", {"failures": [Failure("OSError", "", 1)]}, "OSError was logged 1 time in the last 60 s; the log has"),
    ("warning", {"requests": [request(9.0, None)]}, "at an unknown place"),
    (
        "warning",
        {"pools": {"": {"pool_size": 5, "pool_max": 5}}},
        "exhausted: 5 of 5 .* 0 callers",
    ),
    (
        "error",
        {"process": {"max_fds": 64.0, "interpreter_delay_seconds": 0.0}},
        "no file descriptor is free .the limit is 64",
    ),
    (
        "error",
        {"process.open_fds": 960.0, "front.connections": 900},
        "960 of 1000 file .* are open, 900 of them client",
    ),
    ("warning", {"pools": {"b": {"pool_size": 5, "pool_max": 5}}}, "the pool b is exhausted: 5 of 5 .* 0 callers"),
    ("warning", {"pools": {"b": {"connections_used": 1}}}, "a connection of the pool b is in use while no request"),
    (
        "warning",
        {"pools": {"": {"connections_used": 2}}},
        "2 connections are in use while no request is in flight",
    ),
    ("warning", {"pools": {"": {"shortage": "pool_max_size is 9, but"}}}, "^pool_max_size is 9"),
    ("warning", {"pools": {"b": {"shortage": "pool_max_size is 9, but"}}}, "^b: pool_max_size is 9"),
    ("warning", {"process.interpreter_delay_seconds": 0.3}, "threads wait 300 ms for the interpreter lock"),
    (
        "warning",
        {"limits.cpu_limit": 0.5, "throttling": Throttling(60.0, 600, 228, 0)},
        "throttled in 38 % of the CPU periods of the last 60 s: the limit of 0.5 CPU makes answers slow.*limits.cpu",
    ),
    (
        "note",
        {"limits.memory_limit": 64 << 20, "limits.memory": 61 << 20, "limits.file": 12 << 20},
        "memory is at 95 % of its limit of 64 MiB: 12 MiB of it are file cache, which the kernel takes back first$",
    ),
    (
        "warning",
        {"limits.memory_limit": 64 << 20, "limits.memory": 61 << 20, "limits.file": 1 << 20},
        "memory is at 95 % of its limit of 64 MiB: 1 MiB of it are .*; beyond the limit the kernel kills",
    ),
    (
        "warning",
        {"limits.memory_limit": 64 << 20, "limits.memory": 61 << 20, "limits.oom_group": 1},
        "of 64 MiB; .* such a kill ends all processes of the container",
    ),
    (
        "warning",
        {"limits.memory_limit": 64 << 20, "limits.memory": 1 << 20, "limits.oom_kills": 2},
        "the kernel has killed 2 processes of this container for memory since it started$",
    ),
    (
        "warning",
        {"limits.memory_high": 48 << 20, "throttling": Throttling(60.0, 0, 0, 7)},
        "7 times in the last 60 s the kernel has slowed the process down .* below 48 MiB .memory.high",
    ),
    ("note", {"front.accept_errors": 2}, "2 times there was no descriptor or memory"),
    ("note", {"front.stale": 1}, "1 probe got 503 because the interpreter showed no sign of life"),
    ("note", {"logs.dropped": 7}, "7 log lines were lost"),
]


@pytest.mark.parametrize(("level", "changes", "text"), FINDINGS)
def test_findings(level: str, changes: dict[str, Any], text: str) -> None:
    snapshot = healthy()
    for path, value in changes.items():
        snapshot = change(snapshot, path, value)
    found = diagnose(snapshot)
    assert any(finding.level == level and re.search(text, finding.text) for finding in found), found
    assert len(found) == 1
    assert found[0].page.startswith("/")


def test_no_findings_when_all_is_well() -> None:
    assert diagnose(healthy()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"limits.cpu_limit": 0.5, "throttling": Throttling(60.0, 600, 150, 0)},
        {"limits.cpu_limit": 0.5, "throttling": Throttling(60.0, 9, 9, 0)},  # too few periods to say
        {"throttling": Throttling(60.0, 600, 600, 0)},
        {"limits.memory_limit": 64 << 20, "limits.memory": 57 << 20, "limits.oom_group": 1},
        {"limits.memory": 64 << 20, "limits.oom_kills": 2},  # without a limit it may be the whole machine's group
    ],
)
def test_limits_that_hurt_nobody(changes: dict[str, Any]) -> None:
    snapshot = healthy()
    for path, value in changes.items():
        snapshot = change(snapshot, path, value)
    assert diagnose(snapshot) == []


def test_a_queued_request_is_no_long_one() -> None:
    assert diagnose(change(healthy(), "requests", [request(9.0, None, None)])) == []


# --- as a process --------------------------------------------------------------------------------------------------

HELLO = """
def app(environ, start_response):
    import logging
    logging.getLogger("shop").warning("sold")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]

def own_id(environ, start_response):
    start_response("200 OK", [("X-Request-Id", "mine")])
    return []
"""


def test_ids_go_through_a_request(tmp_path: Path) -> None:
    """traceparent and X-Request-Id: to the records of the application, to the access line, and back to the client."""
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with running(tmp_path, HELLO, PKG_ADMIN="off") as service:
        given = get(service.address, "/", f"traceparent: 00-{trace}-{span}-01\r\nX-Request-Id: abc-1\r\n")
        made = get(service.address, "/", 'X-Request-Id: not "fit"\x01\r\n'.replace("\x01", ""))
        assert given.header("x-request-id") == "abc-1"
        assert re.fullmatch("[0-9a-f]{32}", made.header("x-request-id") or "")
        wait_for(lambda: sum(line["logger"] == "pkg.access" for line in service.lines()) == 2)
        first = [line for line in service.lines() if line.get("request_id") == "abc-1"]
        assert [line["logger"] for line in first] == ["shop", "pkg.access"]
        assert all((line["trace_id"], line["span_id"]) == (trace, span) for line in first)
        second = [line for line in service.lines() if line.get("request_id") == made.header("x-request-id")]
        assert [line["logger"] for line in second] == ["shop", "pkg.access"]
        assert not any("trace_id" in line for line in second)
        assert service.stop() == 0


def test_an_application_may_say_its_own_id(tmp_path: Path) -> None:
    with running(tmp_path, HELLO, app="application:own_id", PKG_ADMIN="off") as service:
        assert get(service.address, "/").header("x-request-id") == "mine"


def test_without_access_log_there_are_ids_all_the_same(tmp_path: Path) -> None:
    source = """
import logging
def app(environ, start_response):
    logging.getLogger("shop").warning("in the application")
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""
    trace = "0af7651916cd43dd8448eb211c80319c"
    with running(tmp_path, source, PKG_ADMIN="off", PKG_ACCESS_LOG="false") as service:
        headers = f"X-Request-Id: abc\r\ntraceparent: 00-{trace}-b7ad6b7169203331-01\r\n"
        assert get(service.address, "/", headers).header("x-request-id") == "abc"
        assert service.stop() == 0
        [line] = [line for line in service.lines() if line["message"] == "in the application"]
        assert (line["request_id"], line["trace_id"]) == ("abc", trace)
        assert not any(line["logger"] == "pkg.access" for line in service.lines())


def test_a_service_and_its_admin_client(tmp_path: Path) -> None:
    import subprocess
    import sys

    port = str(free_port())
    with running(tmp_path, HELLO, PKG_ADMIN=f"127.0.0.1:{port}", DATABASE_URL="") as service:
        assert get(service.address, "/").status == 200

        def client(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "pkg", "admin", *arguments, "--admin", f"127.0.0.1:{port}"]
            return subprocess.run(command, capture_output=True, text=True, timeout=30)

        for command, expected in {
            "status": "application:app: ready",
            "threads": "worker-0",
            "requests": "no request is in flight",
            "pool": "no connection pool",
            "metrics": "pkg_requests_served_total 1",
            "memory": "not traced",
        }.items():
            done = client(command)
            assert done.returncode == 0 and expected in done.stdout, (command, done)
        assert json.loads(client("status", "--json").stdout)["service"]["phase"] == "ready"
        assert json.loads(client("profile", "--json", "--seconds", "0.2").stdout)["exporter"] == "pkg"
        assert client("profile", "--seconds", "61").returncode == 1
        assert "debug for" in client("log-level", "debug", "--seconds", "60").stdout
        service.await_message("log level changed to debug for 60 s")
        assert client("drain").returncode == 0
        service.await_message(r"draining after POST /drain")
        assert service.process.wait(15) == 0
        service.await_message(r"stopped: .* 0 aborted")


def test_the_default_address_may_be_taken(tmp_path: Path) -> None:
    """Two services on one machine: the second says so once, and serves."""
    blocker = socket.socket()
    blocker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with contextlib.suppress(OSError):  # somebody else has it: as good
        blocker.bind(("127.0.0.1", 9901))
        blocker.listen()
    with blocker, running(tmp_path, HELLO) as service:
        assert get(service.address, "/").status == 200
        assert sum("admin listener cannot listen" in message for message in service.messages()) == 1
        assert service.stop() == 0


def test_an_address_that_was_asked_for_must_be_free(tmp_path: Path) -> None:
    with socket.socket() as blocker:
        blocker.bind(("127.0.0.1", 0))
        blocker.listen()
        port = blocker.getsockname()[1]
        with running(tmp_path, HELLO, ready=False, PKG_ADMIN=f"127.0.0.1:{port}") as service:
            assert service.process.wait(15) == 3
            assert "the admin listener cannot listen" in service.errors()


def test_closing_leaves_nothing(world: World) -> None:
    world.ask("/statusz")
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("admin-")]
    assert len(threads) == THREADS
    world.admin.close()
    assert not any(thread.is_alive() for thread in threads)
    with pytest.raises(OSError):
        socket.create_connection(world.address, 1)


def test_modules_agree_on_the_names_of_levels() -> None:
    assert set(logs.LEVELS) == {"debug", "info", "warning", "error", "critical"}
    assert logging.getLogger("pkg.admin") is _pages._log
