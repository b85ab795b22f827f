"""NOTIFY_SOCKET: the tests play the service manager of sd_notify(3) with `python -m pkg`."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pkg.health.report import CheckState, HealthReport
from pkg.service.notify import readiness
from tests.supervisors.test_process_1 import SUBREAPER
from tests.support.client import Connection, get, wait_for
from tests.support.faults.postgres import Postgres
from tests.support.pages import ROOT
from tests.support.ports import free_port
from tests.support.processes import Process, ask, running

APP = """
import ctypes, json, os, pathlib, sys, threading, time
import pkg
SEEN = [os.environ.get(name) for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")]
state = {"ok": True}
@pkg.check("orders", interval=0.1)
def orders():
    if not state["ok"]:
        raise OSError("cannot reach https://user:hunter2@orders.internal")
def app(environ, start_response):
    path = environ["PATH_INFO"]
    text = "ok"
    if path == "/seen":
        text = json.dumps(SEEN)
    elif path == "/fail":
        state["ok"] = False
    elif path == "/recover":
        state["ok"] = True
    elif path == "/unready":
        pkg.set_ready(False, "the index is\\nbeing built")
    elif path == "/give_up":
        pkg.fail_liveness("the cache is corrupt")
    elif path == "/hold":
        ctypes.PyDLL(None).sleep(3)      # C code that does not let go of the interpreter lock
    elif path == "/sleep":
        pathlib.Path("sleeping").touch()
        time.sleep(1)
    elif path == "/linger":              # delays the end of the process, after the drain
        threading.Thread(target=time.sleep, args=(4,), daemon=False).start()
    elif path == "/fork":
        pid = os.fork()
        if pid == 0:
            time.sleep(1.5)              # three ticks
            sys.exit(0)
        os.waitpid(pid, 0)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text.encode()]
"""


class Receiver:
    """The socket of a service manager, and what has come through it."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self.address = address
        self.messages: list[str] = []
        self.times: list[float] = []
        self.senders: list[int] = []  # process ids

    def read(self, timeout: float = 0.0) -> None:
        """What has come, or comes first within `timeout` seconds."""
        while select.select([self.socket], [], [], timeout)[0]:
            data, ((_, _, credentials),), _, _ = self.socket.recvmsg(65536, 64)
            self.messages.append(data.decode())
            self.times.append(time.monotonic())
            self.senders.append(struct.unpack("iii", credentials)[0])
            timeout = 0.0

    def await_message(self, message: str, timeout: float = 15.0, count: int = 1) -> None:
        def come() -> bool:
            self.read(0.05)
            return self.messages.count(message) >= count

        wait_for(come, timeout, f"{message!r} among {self.messages}")

    def signs(self) -> list[float]:
        self.read()
        return [at for at, message in zip(self.times, self.messages, strict=True) if message == "WATCHDOG=1"]

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with contextlib.closing(Receiver(str(tmp_path / "notify"))) as receiver:
        yield receiver


def test_a_whole_life(tmp_path: Path) -> None:
    """Through an abstract address, as systemd gives to services; the other tests use paths."""
    with contextlib.closing(Receiver(f"@pkg-test-{os.getpid()}-{time.monotonic_ns()}")) as receiver:
        with running(tmp_path, APP, NOTIFY_SOCKET=receiver.address) as process:
            receiver.await_message("READY=1")
            receiver.await_message("STATUS=ready")
            assert ask(process.address, "/seen")[2] == "[null, null, null]"
            ask(process.address, "/fail")
            receiver.await_message(
                "STATUS=not ready: orders: failed"
            )  # the reason could hold a secret, and here it does
            ask(process.address, "/recover")
            receiver.await_message("STATUS=ready", count=2)
            ask(process.address, "/unready")
            receiver.await_message("STATUS=not ready: application: the index is being built")
            assert process.stop(signal.SIGTERM) == 0
        receiver.read()
        assert receiver.messages[-2:] == ["STATUS=draining after SIGTERM", "STOPPING=1"]
        assert receiver.messages.count("READY=1") == receiver.messages.count("STOPPING=1") == 1
        assert "WATCHDOG=1" not in receiver.messages


def test_status_tells_of_an_outage_and_ready_does_not_wait_for_it(receiver: Receiver, tmp_path: Path) -> None:
    with Postgres() as postgres:
        with running(tmp_path, APP, NOTIFY_SOCKET=receiver.address, DATABASE_URL=postgres.url) as process:
            receiver.await_message("STATUS=ready")
            assert process.stop() == 0
        url = postgres.url
    with running(tmp_path, APP, NOTIFY_SOCKET=receiver.address, DATABASE_URL=url) as process:
        receiver.await_message("READY=1", count=2)

        def why() -> str:
            receiver.read()
            return next((text for text in receiver.messages if "refused" in text), "")

        assert wait_for(why).startswith("STATUS=not ready: database: ") and "\n" not in why()
        assert get(process.address, "/readyz").status == 503


def test_a_start_that_a_signal_interrupts(receiver: Receiver, tmp_path: Path) -> None:
    source = "import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(60)\n"
    with running(tmp_path, source, ready=False, NOTIFY_SOCKET=receiver.address) as process:
        wait_for((tmp_path / "importing").exists)
        receiver.await_message("STATUS=not ready: startup: in progress")
        assert process.stop(signal.SIGTERM) == 0
    receiver.read()
    assert receiver.messages[-2:] == ["STATUS=draining after SIGTERM", "STOPPING=1"]
    assert "READY=1" not in receiver.messages


# ------------------------------------------------------------------ the watchdog


def test_signs_of_life_stop_while_the_interpreter_hangs(receiver: Receiver, tmp_path: Path) -> None:
    usec = {"WATCHDOG_USEC": "2000000"}
    with running(tmp_path, APP, NOTIFY_SOCKET=receiver.address, **usec) as process:
        receiver.await_message("WATCHDOG=1", count=3)
        assert len(receiver.signs()) < 20
        with Connection(process.address) as connection:
            connection.send(b"GET /hold HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert connection.receive().status == 200  # after three seconds
        signs = receiver.signs()
        receiver.await_message("WATCHDOG=1", count=len(signs) + 2)
        signs = receiver.signs()
        assert max(b - a for a, b in itertools.pairwise(signs)) > 2
        assert ask(process.address, "/seen")[2] == "[null, null, null]"


def test_signs_of_life_go_on_to_the_end(receiver: Receiver, tmp_path: Path) -> None:
    with running(tmp_path, APP, NOTIFY_SOCKET=receiver.address, WATCHDOG_USEC="1000000") as process:
        ask(process.address, "/linger")
        with Connection(process.address) as connection:
            connection.send(b"GET /sleep HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_for((tmp_path / "sleeping").exists)
            process.process.send_signal(signal.SIGTERM)
            receiver.await_message("STOPPING=1")
            begun = time.monotonic()
            wait_for(lambda: receiver.read() or process.process.poll() is not None, 20)
        signs = [at for at in receiver.signs() if at > begun]
        assert len(signs) >= 4 and time.monotonic() - signs[-1] < 2


def test_no_signs_of_life_when_liveness_fails(receiver: Receiver, tmp_path: Path) -> None:
    with running(tmp_path, APP, NOTIFY_SOCKET=receiver.address, WATCHDOG_USEC="1000000") as process:
        receiver.await_message("WATCHDOG=1", count=2)
        ask(process.address, "/give_up")
        receiver.read(0.3)
        before = len(receiver.signs())
        time.sleep(2)
        assert len(receiver.signs()) <= before + 1
        assert process.stop() == 0


@pytest.mark.parametrize(
    ("pid", "how", "is_ours"),
    [
        ("$$", "-m pkg application:app", True),
        ("$$", "-m pkg application:app --reload", True),
        ("$$", "init.py application:app", True),
        ("1", "-m pkg application:app", False),
    ],
)
def test_whose_watchdog(receiver: Receiver, tmp_path: Path, pid: str, how: str, is_ours: bool) -> None:
    """WATCHDOG_PID is the process that systemd has started: here the one that the shell becomes.  With --reload and as
    process 1 of a container, its child serves."""
    (tmp_path / "application.py").write_text(APP)
    (tmp_path / "init.py").write_text(SUBREAPER)
    environ = {"PORT": "0", "HOST": "127.0.0.1", "PKG_ADMIN": "off", "PKG_DRAIN_DELAY": "0", "PYTHONPATH": str(ROOT)}
    environ |= {"NOTIFY_SOCKET": receiver.address, "WATCHDOG_USEC": "1000000"}
    command = ["/bin/sh", "-c", f'export WATCHDOG_PID={pid}; exec "$0" {how}', sys.executable]
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | environ, stdout=subprocess.DEVNULL)
    try:
        receiver.await_message("READY=1", 30)
        if is_ours:
            receiver.await_message("WATCHDOG=1")
        else:
            receiver.read(1.5)
        assert bool(receiver.signs()) == is_ours
        process.terminate()
        assert process.wait(20) == 0
        receiver.read()
        assert receiver.messages.count("STOPPING=1") == 1
        (sender,) = set(receiver.senders)
        assert (sender == process.pid) == (how == "-m pkg application:app")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_a_watchdog_faster_than_the_tick(receiver: Receiver, tmp_path: Path) -> None:
    with running(tmp_path, APP, NOTIFY_SOCKET=receiver.address, WATCHDOG_USEC="400000") as process:
        process.await_message("^WATCHDOG_USEC is 0.4 s, but signs of life are sent every 0.5 s")
        receiver.await_message("WATCHDOG=1", count=3)


# ------------------------------------------------------------------ other processes


def test_a_child_of_the_application_sends_nothing(receiver: Receiver, tmp_path: Path) -> None:
    with running(tmp_path, APP, NOTIFY_SOCKET=receiver.address, WATCHDOG_USEC="1000000") as process:
        receiver.await_message("WATCHDOG=1")
        assert ask(process.address, "/fork")[0] == 200
        assert process.stop() == 0
        pid = process.process.pid
    receiver.read()
    assert set(receiver.senders) == {pid}


def test_each_service_of_reload_tells_and_none_says_that_it_stops(receiver: Receiver, tmp_path: Path) -> None:
    port = str(free_port())
    process = Process(tmp_path, APP, ("--reload", "application:app"), {"PORT": port, "NOTIFY_SOCKET": receiver.address})
    try:
        receiver.await_message("READY=1", 30)
        (tmp_path / "application.py").write_text(APP + "\n# changed\n")
        receiver.await_message("READY=1", 30, count=2)
        assert "STATUS=draining after SIGINT" in receiver.messages and "STOPPING=1" not in receiver.messages
        assert process.stop(signal.SIGTERM) == 0
        receiver.read()
        assert receiver.messages[-2:] == ["STATUS=draining after SIGTERM", "STOPPING=1"]
    finally:
        process.kill()


# ------------------------------------------------------------------ receivers that do not work


def test_a_receiver_that_does_not_read_delays_nothing(receiver: Receiver, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filling:
        filling.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                filling.sendto(b"X=1", receiver.address)
    with running(tmp_path, APP, NOTIFY_SOCKET=receiver.address, WATCHDOG_USEC="1000000", LOG_LEVEL="debug") as process:
        assert ask(process.address, "/seen")[0] == 200
        assert get(process.address, "/readyz").status == 200
        process.await_message("^NOTIFY_SOCKET did not take ")
        receiver.await_message("READY=1")  # as soon as there is room
        receiver.await_message("STATUS=ready")
        assert process.stop() == 0
    assert sum("NOTIFY_SOCKET did not take" in text for text in process.messages()) == 1


@pytest.mark.parametrize("address", ["/nowhere/notify", "@pkg-nobody-listens", "/" + 200 * "x", "vsock:2:1234"])
def test_nobody_receives(tmp_path: Path, address: str) -> None:
    with running(tmp_path, APP, NOTIFY_SOCKET=address, WATCHDOG_USEC="1000000") as process:
        assert get(process.address, "/readyz").status in (200, 503)
        assert process.stop() == 0
    ignored = f"ignoring NOTIFY_SOCKET={address}: only paths and names that begin with @ are supported"
    assert (ignored in process.messages()) == address.startswith("vsock")
    assert process.errors() == ""


def test_without_it_nothing_is_imported(tmp_path: Path) -> None:
    for environ, is_imported in ({}, False), ({"NOTIFY_SOCKET": "@pkg-nobody-listens"}, True):
        with running(tmp_path, "", app="", PYTHONPROFILEIMPORTTIME="1", **environ) as process:
            assert process.stop() == 0
        assert ("pkg.service.notify" in process.errors()) == is_imported


# ------------------------------------------------------------------ the text


def report(ready: bool, *states: tuple[str, str, str, bool]) -> HealthReport:
    return HealthReport(True, ready, [], [CheckState(*state, None) for state in states])


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (report(True, ("startup", "ok", "", True)), "ready"),
        (report(False, ("startup", "failed", "in progress", True)), "not ready: startup: in progress"),
        (
            report(False, ("startup", "failed", "in progress", True), ("a", "failed", "late", True)),
            "not ready: a: late",
        ),
        (report(False, ("a", "failed", "x", True), ("b", "failed", "y", True)), "not ready: a: x; b: y"),
        (report(False, ("a", "failed", "x", True), ("b", "failed", "y", False)), "not ready: a: x"),
        (report(True, ("a", "degraded", "full", True)), "ready, degraded: a: full"),
        (report(True, ("hidden", "failed", "secret", False)), "ready, degraded: hidden: failed"),
    ],
)
def test_the_text(given: HealthReport, text: str) -> None:
    assert readiness(given, lambda state: state.name != "hidden") == text
