"""What hostile clients, applications and machines do to worker processes."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.support.client import wait_for
from tests.support.processes import Process, ask, running
from tests.workers.test_workers import APP, children, is_over, rows, workers


def test_clients_that_leave_while_their_requests_wait_for_another_worker(tmp_path: Path) -> None:
    with workers(tmp_path, number=1) as process:
        clients = [socket.create_connection(process.address) for _ in range(4)]
        for client in clients:
            client.sendall(b"GET /sleep?5 HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: rows(process)[0]["in_flight"] == 4, 5, "requests in the worker")
        os.kill(rows(process)[0]["pid"], signal.SIGKILL)
        process.await_message("while serving GET /sleep .repeated.")
        for client in clients:
            client.close()
        wait_for(lambda: any(row["is_ready"] for row in rows(process)), 10, "another worker")
        assert ask(process.address, "/")[0] == 200


def count(process: Process, pattern: str) -> int:
    return sum(re.search(pattern, text) is not None for text in process.messages())


def pids(process: Process) -> list[int]:
    return [row["pid"] for row in rows(process) if row["is_ready"]]


def test_a_worker_whose_child_holds_its_line_and_an_unusual_signal(tmp_path: Path) -> None:
    source = APP.replace(
        'path == "/lock":', 'path == "/fork":\n        os.fork() or time.sleep(9) or os._exit(0)\n    elif 0:'
    )
    with workers(tmp_path, source, number=1) as process:
        assert ask(process.address, "/fork")[0] == 200
        (worker,) = pids(process)
        began = time.monotonic()
        os.kill(worker, signal.SIGRTMIN + 1)
        process.await_message("was killed by signal")
        assert time.monotonic() - began < 0.6
        wait_for(lambda: pids(process) not in ([], [worker]), 10, "another worker")


def test_a_reload_that_hangs_and_a_death_meanwhile(tmp_path: Path) -> None:
    with workers(tmp_path) as process:
        before = pids(process)
        application = tmp_path / "application.py"
        application.write_text("import time\ntime.sleep(60)")
        process.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(rows(process)) == 3, 10, "a successor")
        os.kill(before[0], signal.SIGKILL)
        process.await_message("was killed by SIGKILL")
        assert ask(process.address, "/")[0] == 200
        application.write_text(APP)
        process.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(pids(process)) == 2 and not {*before} & {*pids(process)}, 15, "new workers")
        wait_for(lambda: len(rows(process)) == 2, 5, "no third worker")


def test_a_replacement_that_fails_is_not_tried_again_at_once(tmp_path: Path) -> None:
    with workers(tmp_path, number=1, PKG_MAX_REQUESTS="1") as process:
        before = pids(process)
        (tmp_path / "application.py").write_text("import nothing_of_that_name")
        process.process.send_signal(signal.SIGHUP)
        process.await_message("could not be replaced")
        assert ask(process.address, "/")[0] == 200
        time.sleep(1)
        assert count(process, "could not be replaced") == 1
        assert pids(process) == before


def test_a_template_that_hangs(tmp_path: Path) -> None:
    source = 'import os, time\nif os.path.exists("hang"):\n    time.sleep(60)\n' + APP
    with workers(tmp_path, source, number=1, PKG_PRELOAD="true") as process:
        (tmp_path / "hang").touch()
        process.process.send_signal(signal.SIGHUP)
        process.await_message("reloading")
        os.kill(pids(process)[0], signal.SIGKILL)
        process.await_message("was killed by SIGKILL")  # although the template is not ready
        (tmp_path / "hang").unlink()
        process.process.send_signal(signal.SIGHUP)
        wait_for(lambda: pids(process), 10, "a worker")
        (tmp_path / "hang").touch()
        process.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(children(process.process.pid)) == 2, 10, "a new template")
        left = children(process.process.pid)
        process.kill()
        wait_for(lambda: all(map(is_over, left)), 5, "the end of worker and template")


LOST = """
import os, time

class Finalizer:
    def __del__(self):
        open(f"{os.getpid()}.begun", "w").close()
        time.sleep(1)  # what a signal handler raises here is lost

Finalizer()
time.sleep(60)
"""


def test_the_end_of_a_start_in_a_finalizer(tmp_path: Path) -> None:
    with running(tmp_path, LOST, ready=False, WEB_CONCURRENCY="2") as process:
        wait_for(lambda: len(list(tmp_path.glob("*.begun"))) == 2, 10, "workers")
        assert process.stop(signal.SIGTERM, 5) == 0


def test_the_end_of_a_start_that_hangs(tmp_path: Path) -> None:
    with running(tmp_path, "import time\ntime.sleep(60)", ready=False, WEB_CONCURRENCY="2") as process:
        wait_for(lambda: len(children(process.process.pid)) == 3, 10, "workers")
        assert process.stop(signal.SIGTERM, 5) == 0


def reload(process: Process) -> None:
    before = pids(process)
    process.process.send_signal(signal.SIGHUP)
    wait_for(lambda: len(pids(process)) == 2 and not {*before} & {*pids(process)}, 10, "other workers")


def test_many_hangups_are_no_drain(tmp_path: Path) -> None:
    with workers(tmp_path, PKG_DRAIN_TIMEOUT="1") as process:
        for _ in range(3):
            reload(process)
            time.sleep(0.6)  # the front takes signals within one second for the same
        assert ask(process.address, "/readyz")[0] == 200
        assert ask(process.address, "/")[1].get("connection") != "close"


STREAMS = """
import asyncio, os
async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun, ", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.body", "body": b"ended"})
"""
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM], ids=["reload", "drain"])
def test_streams_and_websockets_are_told_to_end(tmp_path: Path, number: signal.Signals) -> None:
    with workers(tmp_path, STREAMS, number=1, PKG_LIFESPAN="off", PKG_DRAIN_TIMEOUT="2") as process:
        stream, websocket = socket.create_connection(process.address), socket.create_connection(process.address)
        with stream, websocket:
            stream.settimeout(10)
            websocket.settimeout(10)
            stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
            websocket.sendall(UPGRADE)
            assert b"101 Switching" in websocket.recv(1000)
            process.process.send_signal(number)
            assert websocket.recv(1000)[2:4] == (1001).to_bytes(2, "big")
            websocket.sendall(b"\x88\x82\0\0\0\0\x03\xe9")
            assert b"".join(iter(lambda: stream.recv(1000), b"")).endswith(b"begun, ended")
        assert not process.faults()


def test_a_start_that_fails_ends_what_has_been_started(tmp_path: Path) -> None:
    source = """
import pkg
@pkg.on_stop
def last():
    print("ended", flush=True)
@pkg.on_start
def first():
    raise ValueError("no means")
def app(environ, start_response): ...
"""
    with running(tmp_path, source, ready=False, WEB_CONCURRENCY="1") as process:
        assert process.process.wait(20) != 0
        assert "ended\n" in (tmp_path / "stdout").read_text()
        assert "no means" in process.errors()


def test_a_request_that_takes_too_long_is_told_once_with_its_stack(tmp_path: Path) -> None:
    with workers(tmp_path, number=1, PKG_REQUEST_TIMEOUT="1") as process:
        assert ask(process.address, "/sleep?2")[0] == 504
        process.await_message("GET /sleep took longer than 1 s .request_timeout.; its worker thread is still busy")
        (told,) = [line for line in process.lines() if line["logger"] == "pkg.lastwords"]
        assert "time.sleep(float(environ" in told["code.stacktrace"]


def test_memory_that_workers_share_is_not_private(tmp_path: Path) -> None:
    with workers(tmp_path, "ballast = b'x' * (50 << 20)\n" + APP, PKG_PRELOAD="true") as process:
        assert all(0 < row["private"] < 30 << 20 for row in rows(process))


def test_a_child_of_the_application_ends_by_a_signal(tmp_path: Path) -> None:
    source = APP.replace(
        'path == "/lock":', 'path == "/fork":\n        body = b"%d" % (os.fork() or time.sleep(9) or 0)\n    elif 0:'
    )
    with workers(tmp_path, source, number=1) as process:
        child = int(ask(process.address, "/fork")[2])
        os.kill(child, signal.SIGTERM)
        wait_for(lambda: is_over(child), 5, "its end")


def test_a_drain_that_does_not_end_shows_stacks(tmp_path: Path) -> None:
    with workers(tmp_path, number=1, PKG_DRAIN_TIMEOUT="1.5") as process:
        with socket.create_connection(process.address) as client:
            client.sendall(b"POST /sleep?60 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            wait_for(lambda: rows(process)[0]["in_flight"] == 1, 5, "a request")
            assert process.stop(signal.SIGTERM) == 1
        assert "in app" in process.errors()


def states(pid: int) -> set[str]:
    """Of the threads of a process (proc(5))."""
    found = Path(f"/proc/{pid}/task").glob("*/stat")
    return {path.read_text().rpartition(") ")[2][0] for path in found}


def test_a_stopped_worker_holds_no_request(tmp_path: Path) -> None:
    """It is the one that served last, and so would be given the next request."""
    with workers(tmp_path) as process:
        for _ in range(5):
            last = int(ask(process.address, "/", "POST", body=b"x")[2].split()[1])
            os.kill(last, signal.SIGSTOP)
            wait_for(lambda last=last: states(last) == {"T"}, 10, "its threads to stop")  # type: ignore[misc]
            try:
                began = time.monotonic()
                assert [ask(process.address, "/")[0] for _ in range(5)] == [200] * 5
                assert time.monotonic() - began < 3
            finally:
                os.kill(last, signal.SIGCONT)
