"""What the crew makes of workers that do not start, are overtaken by a reload, or were frozen with everybody else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pkg
from tests.support.client import Connection, wait_for
from tests.support.processes import Process, ask, children
from tests.workers.test_workers import rows, workers

# While there is a file `slow` its import takes as many seconds as the file says; one `broken` ends it.
STARTS = """
import os, signal, sys, time
if os.path.exists("broken"):
    os._exit(7)
if os.path.exists("slow"):
    time.sleep(float(open("slow").read()))
"""
WSGI = f"""{STARTS}
def app(environ, start_response):
    if environ["PATH_INFO"] == "/kill":
        os.kill(os.getpid(), signal.SIGKILL)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]
"""
ASGI = f"""{STARTS}
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    message = await receive()
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}})
    await send({{"type": "http.response.body", "body": b"ok"}})
"""
# Process 1 waits for a second in place of 30.
SOON = "import pkg.supervisors.crew as crew\ncrew.PROOF = 1.0\n"


@contextlib.contextmanager
def hasty(directory: Path, source: str = WSGI, **environ: str) -> Iterator[Process]:
    (directory / "sitecustomize.py").write_text(SOON)
    path = os.pathsep.join([str(directory), str(Path(pkg.__file__).parent.parent)])
    with workers(directory, source, PYTHONPATH=path, **environ) as process:
        yield process


def pids(process: Process) -> set[int]:
    return {row["pid"] for row in rows(process) if row["state"] == "serving"}


def page(process: Process, path: str) -> Any:
    return json.loads(ask(process.admin, path)[2])  # type: ignore[attr-defined]


def deaths(process: Process) -> int:
    text = ask(process.admin, "/metrics")[2]  # type: ignore[attr-defined]
    found = [line.split()[1] for line in text.splitlines() if line.startswith("pkg_worker_deaths_total")]
    assert len(found) == 2
    return sum(int(float(value)) for value in found)


def kill_all(process: Process) -> None:
    for pid in pids(process):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("file", "content"), [("slow", "60"), ("broken", "")])
def test_liveness_fails_when_no_worker_comes_back(tmp_path: Path, file: str, content: str) -> None:
    with hasty(tmp_path, PKG_LIVENESS_TIMEOUT="2s", PKG_DRAIN_TIMEOUT="3s") as process:
        (tmp_path / file).write_text(content)
        assert ask(process.address, "/healthz")[0] == 200
        kill_all(process)
        wait_for(lambda: ask(process.address, "/healthz")[0] == 503, 20, "liveness fails")
        process.await_message("liveness fails: no worker has shown a sign of life for")
        (tmp_path / file).unlink()
        for pid in {row["pid"] for row in rows(process)}:  # those that would still sleep
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: ask(process.address, "/healthz")[0] == 200, 20, "liveness is back")


def test_liveness_holds_while_all_start_again(tmp_path: Path) -> None:
    """As after the first start of an application whose import takes longer than liveness_timeout."""
    with workers(tmp_path, WSGI, PKG_LIVENESS_TIMEOUT="1s") as process:
        (tmp_path / "slow").write_text("3")
        before = pids(process)
        kill_all(process)
        while len(pids(process)) < 2:
            assert ask(process.address, "/healthz")[0] == 200
            time.sleep(0.1)
        assert not before & pids(process)


def test_liveness_holds_while_one_worker_lives(tmp_path: Path) -> None:
    with workers(tmp_path, WSGI, PKG_LIVENESS_TIMEOUT="1s") as process:
        (tmp_path / "slow").write_text("60")
        os.kill(min(pids(process)), signal.SIGKILL)
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert ask(process.address, "/healthz")[0] == 200
            time.sleep(0.1)


def test_a_freeze_is_nobody_s_fault(tmp_path: Path) -> None:
    """As by `docker pause`, which stops all processes; process 1 goes on first, and finds everything expired."""
    with workers(tmp_path, WSGI, PKG_LIVENESS_TIMEOUT="2s") as process:
        before = pids(process)
        everybody = [process.process.pid, *children(process.process.pid)]
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(3.5)
        for pid in everybody:
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.6 if pid == process.process.pid else 0)
        wait_for(lambda: ask(process.address, "/readyz")[0] == 200, 10, "readiness")
        assert ask(process.address, "/healthz")[0] == 200
        assert ask(process.address, "/")[0] == 200
        assert pids(process) == before
        assert deaths(process) == 0 and process.errors() == ""
        assert all("sign of life" not in message for message in process.messages())
        process.await_message(r"the process was frozen for \d\.\d s; running every check again")


def test_a_worker_that_hangs_is_found_although_all_are_frozen_again_and_again(tmp_path: Path) -> None:
    with workers(tmp_path, WSGI, PKG_LIVENESS_TIMEOUT="3s") as process:
        os.kill(min(pids(process)), signal.SIGSTOP)
        for _ in range(3):
            os.kill(process.process.pid, signal.SIGSTOP)
            time.sleep(2.5)
            os.kill(process.process.pid, signal.SIGCONT)
            time.sleep(0.5)
        process.await_message("is stuck and is replaced: its interpreter shows no sign of life", 20)


def test_a_reload_gives_up_a_worker_that_hangs_while_it_starts(tmp_path: Path) -> None:
    with hasty(tmp_path) as process:
        before = pids(process)
        (tmp_path / "slow").write_text("60")
        process.process.send_signal(signal.SIGHUP)
        process.await_message(r"worker 1 is given up: process \d+ has been starting for \d s")
        process.await_message("worker 1 could not be replaced; the old one")
        assert pids(process) == before and deaths(process) == 0
        assert int(ask(process.address, "/")[2]) in before
        (tmp_path / "slow").unlink()
        process.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(pids(process)) == 2 and not before & pids(process), 20, "other workers")
        assert process.stop() == 0


def test_a_start_may_take_longer_than_the_time_to_become_ready(tmp_path: Path) -> None:
    """It has to be ready a while after it has started, and not after it was born."""
    (tmp_path / "slow").write_text("1.5")
    with hasty(tmp_path, "import pkg\n" + WSGI + "pkg.check('late', interval=0.3)(lambda: True)\n") as process:
        before = pids(process)
        process.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(pids(process)) == 2 and not before & pids(process), 30, "other workers")
        assert process.faults() == [] and deaths(process) == 0


def test_a_second_hangup_overtakes_the_first_one(tmp_path: Path) -> None:
    with workers(tmp_path, WSGI) as process:
        before = pids(process)
        (tmp_path / "slow").write_text("1.5")
        for _ in range(3):
            process.process.send_signal(signal.SIGHUP)
            wait_for(lambda: any(row["state"] == "starting" for row in rows(process)), 10, "a start")
            time.sleep(0.3)
        (tmp_path / "slow").unlink()
        wait_for(lambda: len(pids(process)) == 2 and not before & pids(process), 20, "other workers")
        assert process.faults() == [] and deaths(process) == 0


def test_bodies_stream_while_a_worker_starts(tmp_path: Path) -> None:
    """An event loop takes them as they come: a client that waits for the response before it sends the rest gets it."""
    with workers(tmp_path, ASGI) as process:
        (tmp_path / "slow").write_text("60")
        os.kill(min(pids(process)), signal.SIGKILL)
        wait_for(lambda: any(row["state"] == "starting" for row in rows(process)), 10, "a start")
        client = Connection(process.address, 10)
        client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 300000\r\n\r\nbegin")
        assert client.receive().status == 200
        client.socket.close()
        assert "\npkg_workers 0\n" in ask(process.admin, "/metrics")[2]  # type: ignore[attr-defined]
        assert (
            page(process, "/statusz?format=json")["workers"]["threads"] == 0
        )  # threads, which event loops have none of
