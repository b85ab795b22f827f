"""The stuck-service drill: a real process is brought to a standstill, and from outside, with nothing but HTTP and the
log, the cause has to be named.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pkg.health.stuck import StuckWorkers
from tests.support.client import Connection, get, wait_for
from tests.support.faults.postgres import Postgres
from tests.support.ports import free_port
from tests.support.processes import Process, ask, running
from tests.support.servers import serving_app

APPLICATION = """
import ctypes, os, threading, time

first, second = threading.Lock(), threading.Lock()
meeting = threading.Barrier(2)
hoard = []

def one():
    with first:
        meeting.wait()
        with second:
            pass

def two():
    with second:
        meeting.wait()
        with first:
            pass

def take_connection():
    import pkg
    with pkg.connection():
        threading.Event().wait()

def take_descriptors():
    try:
        while True:
            hoard.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass

def hold_the_lock():
    ctypes.PyDLL(None).sleep(4)  # a C extension that does not let go of the interpreter lock

def compute():
    while True:
        sum(range(1000))

def wait():
    threading.Event().wait()

def take_a_signal():
    import signal
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

def give_up():
    import pkg
    pkg.fail_liveness("the cache is corrupt")

def app(environ, start_response):
    name = environ["PATH_INFO"][1:]
    if name:
        globals()[name]()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]
"""


class Drill:
    """A service, requests that it will not answer, and what can be seen of it from outside."""

    def __init__(self, service: Process, admin: tuple[str, int]) -> None:
        self.service = service
        self.admin = admin
        self._open: list[Connection] = []

    def send(self, *targets: str) -> None:
        """Requests whose answers nobody waits for."""
        for target in targets:
            connection = Connection(self.service.address)
            connection.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            self._open.append(connection)

    def page(self, target: str) -> str:
        status, _, text = ask(self.admin, target)
        assert status == 200, text
        return text

    def json(self, target: str) -> Any:
        status, _, text = ask(self.admin, target, Accept="application/json")
        assert status == 200, text
        return json.loads(text)

    def findings(self) -> list[str]:
        return [f"{finding['level']}: {finding['text']}" for finding in self.json("/statusz")["findings"]]

    def await_finding(self, *words: str, timeout: float = 15.0) -> str:
        """Waits until one finding of /statusz has all the words."""

        def look() -> str | None:
            return next((text for text in self.findings() if all(word in text for word in words)), None)

        found: str = wait_for(look, timeout, f"a finding with {words}")
        return found

    def probe(self, path: str = "/healthz") -> tuple[int, str]:
        answer = get(self.service.address, path)
        return answer.status, answer.body.decode()

    def close(self) -> None:
        for connection in self._open:
            connection.close()


@contextlib.contextmanager
def drilling(directory: Path, *, ready: bool = True, source: str = APPLICATION, **environ: str) -> Iterator[Drill]:
    admin = ("127.0.0.1", free_port())
    with running(directory, source, ready=ready, PKG_ADMIN=f"127.0.0.1:{admin[1]}", **environ) as service:
        drill = Drill(service, admin)
        try:
            yield drill
        finally:
            drill.close()


# --- deadlock ------------------------------------------------------------------------------------------------------


def test_two_handlers_in_a_deadlock(tmp_path: Path) -> None:
    with drilling(tmp_path, PKG_THREADS="3") as drill:
        drill.send("/one", "/two")
        wait_for(lambda: sum("with " in str(r["source"]) for r in drill.json("/debug/requests")) == 2)
        where = {r["target"]: (r["at"], r["source"]) for r in drill.json("/debug/requests")}
        # Each stands at the lock that the other one holds.
        assert where["/one"][0].endswith("in one") and where["/one"][1] == "with second:"
        assert where["/two"][0].endswith("in two") and where["/two"][1] == "with first:"
        threads = drill.page("/debug/threads")
        assert "GET /one for" in threads and "GET /two for" in threads
        # The third worker, the probes and the pages go on.
        assert get(drill.service.address, "/").body == b"done"
        assert drill.probe() == (200, "ok") and drill.probe("/readyz") == (200, "ok")
        # After five seconds it is not only shown but said.
        drill.await_finding("GET /one", "in one: `with second:`")
        drill.await_finding("GET /two", "in two: `with first:`")


def test_every_worker_stuck_fails_liveness_with_last_words(tmp_path: Path) -> None:
    with drilling(tmp_path, PKG_THREADS="2", PKG_STUCK_TIMEOUT="1") as drill:
        drill.send("/one", "/two", "/")
        wait_for(lambda: drill.probe() == (503, "workers: failed"))
        drill.await_finding(
            "error: liveness fails: workers: all 2 worker threads have been busy with their requests for more than 1 s"
        )
        drill.await_finding("error: all 2 workers are busy and 1 request waits")
        messages = drill.service.messages()
        assert any("liveness fails: all 2 worker threads" in m for m in messages)
        assert any(m.startswith("in flight: GET /one") and "in one" in m for m in messages)
        stacks = {
            line["message"]: line["code.stacktrace"] for line in drill.service.lines() if "code.stacktrace" in line
        }
        assert "in one\n    with second:" in next(s for m, s in stacks.items() if "worker" in m and "in one" in s)
        assert any("MainThread" in message for message in stacks)


def test_busy_workers_do_not_fail_liveness() -> None:
    """Busy is not stuck: while one request after the other is finished nothing is wrong."""
    now = [0.0]

    class Front:
        finished, in_flight, queued = 0, 2, 0

        def stats(self) -> Front:
            return self

    front = Front()
    stuck = StuckWorkers(front, threads=2, timeout=10, clock=lambda: now[0])
    for _ in range(30):  # each look finds all of them busy, with other requests
        now[0] += 5
        front.finished += 1
        assert stuck() is None
    now[0] += 10
    assert stuck() is None
    now[0] += 0.1
    assert "all 2 worker threads" in str(stuck())
    front.finished += 1
    assert stuck() is None, "it recovers"
    now[0] += 20
    front.queued = 1
    assert stuck() is None, "one is free: nobody may be stuck"


# --- the application says so ---------------------------------------------------------------------------------------


def test_an_application_that_gives_up(tmp_path: Path) -> None:
    with drilling(tmp_path) as drill:
        drill.send("/wait")
        wait_for(lambda: drill.json("/debug/requests"))
        assert get(drill.service.address, "/give_up").status == 200
        assert drill.probe() == (503, "application: failed")
        drill.await_finding("error: liveness fails: application: the cache is corrupt")
        drill.service.await_message("liveness fails: the cache is corrupt")
        drill.service.await_message("in flight: GET /wait .* in wait")
        assert drill.service.stop(signal.SIGKILL) == -signal.SIGKILL


# --- the pool ------------------------------------------------------------------------------------------------------


def test_a_pool_that_is_used_up(tmp_path: Path) -> None:
    with (
        Postgres() as server,
        drilling(
            tmp_path, DATABASE_URL=server.url, PKG_POOL_MAX_SIZE="2", PKG_POOL_MIN_SIZE="1", PKG_POOL_TIMEOUT="60"
        ) as drill,
    ):
        drill.send(*["/take_connection"] * 3)
        finding = drill.await_finding("error: the pool is exhausted: 2 of 2 connections are in use, 1 caller waiting")
        assert finding
        assert drill.json("/debug/pool")["requests_waiting"] == 1
        metrics = drill.page("/metrics")
        used = 'db_client_connection_pool_name="main",db_client_connection_state="used"'
        assert f"db_client_connections{{{used}}} 2" in metrics
        assert 'db_client_connection_pending_requests{db_client_connection_pool_name="main"} 1' in metrics
        # Who keeps them is named by the requests in flight.
        places = [r["at"] for r in drill.json("/debug/requests") if r["target"] == "/take_connection"]
        assert len(places) == 3 and all("in take_connection" in place for place in places)
        assert server.url not in drill.page("/statusz") and "first-secret" not in drill.page("/statusz")


# --- descriptors ---------------------------------------------------------------------------------------------------


def test_no_descriptor_left(tmp_path: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    admin = free_port()
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(400, soft), hard))
    limit = {"PKG_MAX_CONNECTIONS": "100"}
    try:
        starting = running(tmp_path, APPLICATION, PKG_ADMIN=f"127.0.0.1:{admin}", **limit)
        service = starting.__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        drill = Drill(service, ("127.0.0.1", admin))
        with Connection(service.address) as c:
            assert drill.findings() == []
            assert c.request("GET", "/take_descriptors").body == b"done"
            for _ in range(8):  # and again: each of its threads finds a way
                assert any("file descriptor" in text for text in drill.findings()), drill.findings()
                assert drill.probe() == (200, "ok")
            assert "pkg_connections" in drill.page("/metrics")
            assert "worker-0" in drill.page("/debug/threads")
        assert drill.service.process.poll() is None
    finally:
        starting.__exit__(None, None, None)


# --- the interpreter lock ------------------------------------------------------------------------------------------


def test_the_interpreter_lock_is_held(tmp_path: Path) -> None:
    """No page can be made meanwhile.  Probes are answered all the same, truthfully, and stderr names the cause."""
    with drilling(tmp_path, PKG_LIVENESS_TIMEOUT="1") as drill:
        assert drill.probe() == (200, "ok")
        drill.send("/hold_the_lock")
        wait_for(lambda: drill.probe()[0] == 503)
        assert drill.probe() == (503, "interpreter: no sign of life")
        said = drill.service.errors()
        assert "liveness is failing: the interpreter shows no sign of life; 1 requests in flight" in said
        assert "GET /hold_the_lock" in said
        wait_for(lambda: "in hold_the_lock" in drill.service.errors())
        # Whoever asks again gets the stacks again.
        drill.service.process.send_signal(signal.SIGUSR1)
        wait_for(lambda: drill.service.errors().count("in hold_the_lock") >= 2)
        with pytest.raises(TimeoutError):
            ask(drill.admin, "/statusz", timeout=0.3)
        # Afterwards the pages tell what happened.
        wait_for(lambda: drill.probe() == (200, "ok"))
        drill.await_finding("note:", "got 503 because the interpreter showed no sign of life")
        assert drill.service.stop() == 0


def test_a_computation_that_keeps_others_waiting(tmp_path: Path) -> None:
    with drilling(tmp_path, PKG_THREADS="2") as drill:
        drill.send("/compute")
        wait_for(lambda: any("in compute" in str(r["at"]) for r in drill.json("/debug/requests")))
        profile = drill.page("/debug/profile?seconds=1")
        stacks = {line.rpartition(" ")[0]: int(line.rpartition(" ")[2]) for line in profile.splitlines()}
        most = max(stacks, key=lambda stack: stacks[stack])
        assert most.startswith("worker-") and "compute (application.py:" in most
        drill.await_finding("GET /compute", "in compute")


# --- nobody reads ---------------------------------------------------------------------------------------------------


def full_pipe() -> tuple[int, int]:
    """A pipe as large as may be, which takes not one byte more."""
    read, write = os.pipe()
    with contextlib.suppress(OSError):
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 20)
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 4096)
    os.set_blocking(write, True)
    return read, write


def test_nobody_reads_stdout_and_stderr(tmp_path: Path) -> None:
    """Stacks are written with the interpreter lock held: if that waited for a reader, so would everything."""
    (tmp_path / "application.py").write_text(APPLICATION)
    address, admin = ("127.0.0.1", free_port()), ("127.0.0.1", free_port())
    settings = {"HOST": address[0], "PORT": str(address[1]), "PKG_ADMIN": f"127.0.0.1:{admin[1]}"}
    settings |= {"PKG_DRAIN_TIMEOUT": "1.5", "PKG_LIVENESS_TIMEOUT": "1"}
    read, write = full_pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "pkg", "application:app"],
        cwd=tmp_path,
        env=os.environ | settings,
        stdout=write,
        stderr=write,
    )
    os.close(write)
    try:

        def is_ready() -> bool:
            with contextlib.suppress(OSError):
                return get(address, "/readyz").status == 200
            return False

        wait_for(is_ready)
        process.send_signal(signal.SIGUSR1)
        for _ in range(3):
            assert get(address, "/").body == b"done"
        assert ask(admin, "/debug/threads")[0] == 200
        with Connection(address) as held, Connection(address) as c:
            held.send(b"GET /hold_the_lock HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_for(lambda: c.request("GET", "/healthz").status == 503)  # says why to stderr
            wait_for(lambda: c.request("GET", "/healthz").status == 200)
            assert held.receive().status == 200
            held.send(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_for(lambda: json.loads(ask(admin, "/debug/requests?format=json")[2]))
            process.send_signal(signal.SIGINT)
            assert process.wait(15) == 1  # with last words, and nobody to hear them
    finally:
        process.kill()
        process.wait()
        os.close(read)


# --- start and end -------------------------------------------------------------------------------------------------


def test_an_import_that_does_not_end(tmp_path: Path) -> None:
    source = "import threading\n\ndef connect():\n    threading.Event().wait()\n\nconnect()\n"
    with drilling(tmp_path, ready=False, source=source) as drill:

        def main_thread() -> str | None:
            with contextlib.suppress(OSError):
                service = drill.json("/statusz")["service"]
                assert service["phase"] == "starting"
                return str(service["main_thread_at"]) if service["main_thread_at"] else None
            return None

        assert wait_for(main_thread) == "application.py:4 in connect"
        assert "application.py:4 in connect" in drill.page("/debug/threads")


def test_a_drain_that_does_not_end(tmp_path: Path) -> None:
    with drilling(tmp_path, PKG_DRAIN_TIMEOUT="1.5") as drill:
        drill.send("/wait")
        wait_for(lambda: any("in wait" in str(r["at"]) for r in drill.json("/debug/requests")))
        drill.service.process.send_signal(signal.SIGINT)
        drill.service.await_message("^draining after SIGINT: 1 requests in flight")
        drill.await_finding("warning: draining for", "because of SIGINT")
        assert drill.service.process.wait(15) == 1
        messages = drill.service.messages()
        last = next(n for n, m in enumerate(messages) if m == "the drain deadline is in 1 s: 1 requests in flight")
        assert any(m.startswith("in flight: GET /wait for") and "in wait" in m for m in messages[last:])
        assert any(
            "in wait\n    threading.Event().wait()" in line.get("code.stacktrace", "") for line in drill.service.lines()
        )
        assert any("aborted at the deadline" in m for m in messages), messages


def test_stacks_on_sigusr1(tmp_path: Path) -> None:
    with drilling(tmp_path) as drill:
        drill.send("/wait")
        wait_for(lambda: any("in wait" in str(r["at"]) for r in drill.json("/debug/requests")))
        drill.service.process.send_signal(signal.SIGUSR1)
        wait_for(lambda: "in wait" in drill.service.errors() and "in serve_forever" in drill.service.errors())
        assert drill.probe() == (200, "ok")


def test_a_fatal_error_leaves_its_stack(tmp_path: Path) -> None:
    with drilling(tmp_path) as drill:
        os.kill(drill.service.process.pid, signal.SIGSEGV)
        assert drill.service.process.wait(15) == -signal.SIGSEGV
        assert "Fatal Python error: Segmentation fault" in drill.service.errors()


# --- what the drill has found ----------------------------------------------------------------------------------------


def test_workers_stay_when_another_was_faster() -> None:
    """A worker that is woken for a request which another one has taken must sleep again, not end."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/slow":
            time.sleep(0.002)
        start_response("200 OK", [])
        return []

    with serving_app(app, threads=4) as server:

        def go() -> None:
            with Connection(server.server_address) as c:
                for n in range(400):
                    assert c.request("GET", "/slow" if n % 3 else "/").status == 200

        clients = [threading.Thread(target=go) for _ in range(6)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert server.stuck_workers == 4  # alive, that is


def test_a_signal_that_does_not_wake_the_main_thread(tmp_path: Path) -> None:
    """Taken by a worker, as by chance: or come when the main thread was about to sleep.  It drains all the same."""
    with drilling(tmp_path) as drill:

        def waits() -> bool:
            (main,) = (t for t in drill.json("/debug/threads") if t["name"] == "MainThread")
            return main["frames"][-1]["function"] == "wait"

        wait_for(waits)
        assert get(drill.service.address, "/take_a_signal").body == b"done"
        drill.service.await_message("^draining after SIGINT")
        assert drill.service.process.wait(15) == 0


def test_the_admin_listener_outlives_a_flood(tmp_path: Path) -> None:
    """Connections that ask for nothing do not keep it from answering for long."""
    with drilling(tmp_path) as drill, contextlib.ExitStack() as stack:
        for _ in range(30):
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_connection(drill.admin, 1))
        stack.close()
        assert "pkg_workers" in drill.page("/metrics")
