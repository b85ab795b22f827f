"""A process that is frozen (SIGSTOP, as `docker pause` and a platform that takes the CPU away do) and goes on."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pkg.health.checks import Check, Checker
from tests.support.client import Connection, wait_for
from tests.support.processes import Process, ask, running

APPLICATION = """
import ctypes, threading, time

def app(environ, start_response):
    if environ["PATH_INFO"] == "/hang":
        ctypes.PyDLL(None).sleep(60)  # with the interpreter lock
    if environ["PATH_INFO"] == "/wait":
        time.sleep(1)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def freeze(process: Process, seconds: float, meanwhile: Callable[[], object] = lambda: None) -> None:
    process.process.send_signal(signal.SIGSTOP)
    meanwhile()
    time.sleep(seconds)
    process.process.send_signal(signal.SIGCONT)


def test_nothing_is_said_of_a_healthy_interpreter(tmp_path: Path) -> None:
    environ = {"PKG_LIVENESS_TIMEOUT": "3s", "PKG_QUEUE_TIMEOUT": "4s", "PKG_HEADER_TIMEOUT": "3s"}
    environ |= {"PKG_THREADS": "1", "PKG_STUCK_TIMEOUT": "4s"}
    with running(tmp_path, APPLICATION, **environ) as process:
        answers: list[tuple[str, int]] = []

        def probe(path: str) -> None:
            answers.append((path, ask(process.address, path, timeout=60)[0]))

        begun = Connection(process.address, 60)
        begun.send(b"GET / HTTP/1.1\r\nHost: test\r\n")
        busy = [threading.Thread(target=probe, args=("/wait",)) for _ in range(2)]
        probes = [threading.Thread(target=probe, args=(path,)) for path in ["/healthz"] * 4 + ["/readyz"] * 4]
        for thread in busy:
            thread.start()
        wait_for(lambda: ask(process.address, "/healthz")[0] == 200, 10, "an answer")
        freeze(process, 5, lambda: [thread.start() for thread in probes])
        begun.send(b"\r\n")
        for thread in [*busy, *probes]:
            thread.join(60)
        assert begun.receive().status == 200
        begun.socket.close()
        wait_for(lambda: ask(process.address, "/readyz")[0] == 200, 5, "readiness")
        assert [status for path, status in answers if path != "/readyz"] == [200] * 6, answers
        assert {status for path, status in answers if path == "/readyz"} <= {200, 503}
        assert process.errors() == ""
        process.await_message(r"the process was frozen for \d\.\d s; running every check again")
        assert process.stop() == 0


def test_an_interpreter_that_hangs_is_found_although_the_cpu_is_taken_away(tmp_path: Path) -> None:
    with running(tmp_path, APPLICATION, PKG_LIVENESS_TIMEOUT="3s") as process:
        hanging = Connection(process.address, 60)
        hanging.send(b"GET /hang HTTP/1.1\r\nHost: test\r\n\r\n")

        def found() -> bool:
            freeze(process, 2.6)
            return ask(process.address, "/healthz")[0] == 503

        wait_for(found, 60, "503 of a process that hangs")
        hanging.socket.close()
        assert "no sign of life" in process.errors()


class Bench:
    """A checker whose front is the test."""

    def __init__(self) -> None:
        self.frozen = 0.0
        self.renewed: list[tuple[int, float]] = []
        self.checker = Checker(
            publish=lambda pages: None,
            renew=lambda *renewal: self.renewed.append(renewal),
            clock=lambda: time.monotonic() - self.frozen,
            frozen=lambda: self.frozen,
        )

    def readiness_renewed(self) -> bool:
        self.renewed.clear()
        self.checker.tick()
        return any(slot == 1 and seconds > 0 for slot, seconds in self.renewed)


def test_readiness_is_renewed_when_the_required_checks_have_run_again() -> None:
    bench = Bench()
    gate = threading.Event()
    gate.set()
    runs: list[str] = []

    def probe(name: str) -> Any:
        def run() -> None:
            runs.append(name)
            assert gate.wait(10)

        return run

    bench.checker.add(Check("main", probe("main"), interval=600, timeout=20))
    bench.checker.add(Check("side", probe("side"), interval=600, timeout=20, required=False))
    bench.checker.startup_done()
    bench.checker.start()
    try:
        wait_for(lambda: bench.checker.report().ready, 10, "readiness")
        assert bench.readiness_renewed()
        gate.clear()
        runs.clear()
        bench.frozen += 100
        assert not bench.readiness_renewed()
        wait_for(lambda: sorted(runs) == ["main", "side"], 10, "another run of each, long before its interval is over")
        assert not bench.readiness_renewed()
        assert bench.checker.report().ready  # nothing has failed for the time that has passed
        gate.set()
        wait_for(bench.readiness_renewed, 10, "its renewal")
    finally:
        gate.set()
        bench.checker.stop()


def test_a_failure_of_a_run_that_was_frozen_does_not_count() -> None:
    bench = Bench()

    def probe() -> None:
        if bench.checker._checks["main"].runs == 1:
            bench.frozen += 100
            raise TimeoutError("100 s")

    check = Check("main", probe, interval=600, failures=1)
    bench.checker.add(check)
    bench.checker.run_once(check)
    bench.checker.run_once(check)
    assert check.status == "ok"
    bench.checker.run_once(check)
    assert check.status == "ok"
    assert check.runs == 3
