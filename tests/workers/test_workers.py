"""Requests through worker processes, how workers start and end, and what is seen of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import SLOWNESS, wait_for
from tests.support.ports import free_port
from tests.support.processes import Process, ask, children, running
from tests.support.tables import names, tables

APP = """
import os, signal, time
served = 0
def app(environ, start_response):
    global served
    served += 1
    path = environ["PATH_INFO"]
    body = environ["wsgi.input"].read()
    if path == "/sleep":
        time.sleep(float(environ["QUERY_STRING"]))
    elif path == "/exit":
        os._exit(3)
    elif path == "/kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif path == "/half":
        start_response("200 OK", [("Content-Length", "100")])
        def half():
            yield b"x" * 50
            time.sleep(0.5)
            os._exit(4)
        return half()
    elif path == "/lock":
        sum(range(10 ** 10))
    elif path == "/large":
        body = b"0123456789abcdef" * 65536 * 4
    else:
        body = b"%s %d %d" % (body, os.getpid(), served)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body]
"""


@contextlib.contextmanager
def workers(
    directory: Path, source: str = APP, number: int = 2, *, ready: bool = True, **environ: str
) -> Iterator[Process]:
    admin = free_port()
    environ |= {"WEB_CONCURRENCY": str(number), "PKG_ADMIN": f"127.0.0.1:{admin}"}
    with running(directory, source, ready=ready, **environ) as process:
        process.admin = ("127.0.0.1", admin)  # type: ignore[attr-defined]
        yield process


def rows(process: Process) -> list[dict[str, Any]]:
    status, _, text = ask(process.admin, "/statusz?format=json")  # type: ignore[attr-defined]
    assert status == 200
    found: list[dict[str, Any]] = json.loads(text)["processes"]
    return [row for row in found if row["worker"] and row["pid"]]  # without the template, and places that have none


def is_over(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z"
    except FileNotFoundError:
        return True


def test_requests_are_served_by_all(tmp_path: Path) -> None:
    with workers(tmp_path) as process:
        pids: set[str] = set()

        def get() -> None:
            for _ in range(20):
                status = ask(process.address, "/sleep?0.01", "POST", body=b"")[0]
                assert status == 200
                status, _, text = ask(process.address, "/", "POST", body=b"hello")
                assert (status, text.split()[0]) == (200, "hello")
                pids.add(text.split()[1])

        threads = [threading.Thread(target=get) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pids == {str(row["pid"]) for row in rows(process)}
        assert str(process.process.pid) not in pids
        text = ask(process.address, "/large")[2]
        assert text == "0123456789abcdef" * 65536 * 4
        assert ask(process.address, "/", "POST", body=b"x" * 3_000_000)[2].split()[0] == "x" * 3_000_000
        assert ask(process.address, "/readyz")[0] == 200
        assert all(row["is_ready"] for row in rows(process))
        metrics = ask(process.admin, "/metrics")[2]  # type: ignore[attr-defined]
        assert 'pkg_worker_ready{worker="2"} 1' in metrics
        told = {names(row["metric"])[0] for row in tables("logs-and-metrics.md", "metric", "type", "unit", "labels")}
        shown = set(re.findall(r"^# TYPE (pkg_worker_\w+)", metrics, re.MULTILINE))
        assert shown == {name for name in told if name.startswith("pkg_worker_")}
        pids = {str(p) for p in children(process.process.pid)} | pids
        assert process.stop(signal.SIGTERM) == 0
        assert all(is_over(int(pid)) for pid in pids)
        assert not process.faults()


def test_a_response_longer_than_its_ring_is_not_delayed(tmp_path: Path) -> None:
    """A thread that missed that there was room slept for 0.1 s, ten times and more in each of these responses."""
    with workers(tmp_path, number=1) as process, contextlib.closing(HTTPConnection(*process.address)) as connection:
        took = []
        for _ in range(20):
            began = time.monotonic()
            connection.request("GET", "/large")
            assert len(connection.getresponse().read()) == 4 << 20
            took.append(time.monotonic() - began)
        assert statistics.median(took) < 0.3 * SLOWNESS


BY_LENGTH = """
def app(environ, start_response):
    size = len(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % size]
"""


@pytest.mark.parametrize("size", [64 * 1024, 256 * 1024, 1024 * 1024])
def test_a_body_that_fills_its_ring_keeps_the_connection(tmp_path: Path, size: int) -> None:
    """The application that reads by Content-Length does not ask for more, and so does not learn of the end."""
    with (
        workers(tmp_path, BY_LENGTH, number=1) as process,
        contextlib.closing(HTTPConnection(*process.address, timeout=15)) as connection,
    ):
        for _ in range(30):
            connection.request("POST", "/", b"x" * size)
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, b"%d" % size)
            assert response.headers["Connection"] is None


SOME = """
def app(environ, start_response):
    environ["wsgi.input"].read(10)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"some"]
"""


def test_a_body_in_a_file_that_is_not_read_whole_keeps_the_connection(tmp_path: Path) -> None:
    with (
        workers(tmp_path, SOME, number=1) as process,
        contextlib.closing(HTTPConnection(*process.address, timeout=15)) as connection,
    ):
        for _ in range(5):
            connection.request("POST", "/", iter([b"x" * 1_000_000, b"x" * 2_000_000]))  # chunked
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, b"some")
            assert response.headers["Connection"] is None


def test_no_request_waits_while_a_worker_is_free(tmp_path: Path) -> None:
    with workers(tmp_path, PKG_THREADS="1") as process:
        threads = [threading.Thread(target=ask, args=(process.address, "/sleep?2")) for _ in range(1)]
        threads[0].start()
        time.sleep(0.2)
        began = time.monotonic()
        for _ in range(10):
            assert ask(process.address, "/")[0] == 200
        assert time.monotonic() - began < 1.5
        threads[0].join()


@pytest.mark.parametrize(("path", "how"), [("/exit", "exited with code 3"), ("/kill", "was killed by SIGKILL")])
def test_a_worker_that_dies_costs_its_own_request_only(tmp_path: Path, path: str, how: str) -> None:
    with workers(tmp_path) as process:
        status, headers, _ = ask(process.address, path, "POST", body=b"")
        assert (status, headers["retry-after"]) == (502, "1")
        process.await_message(f"worker . .process .*{how}.* while serving POST {path} .502.")
        wait_for(lambda: sum(row["is_ready"] for row in rows(process)) == 2, 20, "another worker")
        assert ask(process.address, "/healthz")[0] == 200
        assert ask(process.address, "/")[0] == 200


def test_the_application_sees_that_a_request_is_repeated(tmp_path: Path) -> None:
    source = APP.replace(
        'if path == "/sleep":',
        """if path == "/once":
        body = b"repeated"
        if "pkg.repeated" not in environ:
            os._exit(5)
    elif path == "/sleep":""",
    )
    with workers(tmp_path, source) as process:
        assert ask(process.address, "/once")[::2] == (200, "repeated")
        assert ask(process.address, "/once", "POST", body=b"")[0] == 502


def test_get_is_repeated_once(tmp_path: Path) -> None:
    with workers(tmp_path) as process:
        status, _, _ = ask(process.address, "/exit")
        assert status == 502  # the second has died as well
        process.await_message(r"while serving GET /exit .repeated.")
        process.await_message(r"while serving GET /exit .502.")


def test_a_response_half_sent_is_cut(tmp_path: Path) -> None:
    with workers(tmp_path) as process, pytest.raises(Exception, match=r"IncompleteRead|reset"):
        ask(process.address, "/half")


def test_code_that_fails_ends_the_start(tmp_path: Path) -> None:
    with running(tmp_path, "import nothing_of_that_name", ready=False, WEB_CONCURRENCY="2") as process:
        assert process.process.wait(20) == 3
        assert "No module named 'nothing_of_that_name'" in process.errors()


def test_nothing_outlives_process_1(tmp_path: Path) -> None:
    with workers(tmp_path) as process:
        pids = children(process.process.pid)
        assert len(pids) == 3
        process.kill()
        wait_for(lambda: all(map(is_over, pids)), 5, "the end of workers and template")


def test_sigterm_ends_requests_in_flight(tmp_path: Path) -> None:
    with workers(tmp_path) as process:
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(ask(process.address, "/sleep?1")[0])) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.4)
        assert process.stop(signal.SIGTERM) == 0
        for thread in threads:
            thread.join()
        assert answers == [200] * 4


def test_sighup_replaces_the_code_without_losing_a_request(tmp_path: Path) -> None:
    with workers(tmp_path) as process:
        ended, failures = threading.Event(), []
        count = 0

        def load() -> None:
            nonlocal count
            while not ended.is_set():
                for method in ("GET", "POST"):
                    try:
                        status = ask(process.address, "/", method, body=b"")[0]
                    except OSError as error:
                        status = error  # type: ignore[assignment]
                    count += 1
                    if status != 200:
                        failures.append(status)

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        before = {row["pid"] for row in rows(process)}
        (tmp_path / "application.py").write_text(APP.replace('b"%s %d %d"', 'b"%s %d %d new"'))
        process.process.send_signal(signal.SIGHUP)
        wait_for(lambda: not before & {row["pid"] for row in rows(process)}, 30, "other workers")
        assert ask(process.address, "/")[2].endswith(" new")
        now = {row["pid"] for row in rows(process)}
        (tmp_path / "application.py").write_text("import nothing_of_that_name")
        process.process.send_signal(signal.SIGHUP)
        process.await_message("could not be replaced")
        time.sleep(0.5)
        assert {row["pid"] for row in rows(process)} == now
        ended.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert count > 20


def test_a_stuck_worker_is_replaced(tmp_path: Path) -> None:
    with workers(tmp_path, PKG_LIVENESS_TIMEOUT="1") as process:
        threading.Thread(target=lambda: ask(process.address, "/lock", "POST", body=b"", timeout=30)).start()
        process.await_message("is stuck and is replaced: its interpreter shows no sign of life", 30)
        assert ask(process.address, "/healthz")[0] == 200
        assert ask(process.address, "/")[0] == 200
        wait_for(lambda: "in app" in process.errors(), 10, "its stacks")
        wait_for(lambda: sum(row["is_ready"] for row in rows(process)) == 2, 20, "another worker")


def test_workers_go_on_without_their_template(tmp_path: Path) -> None:
    with workers(tmp_path) as process:
        before = {row["pid"] for row in rows(process)}
        (template,) = set(children(process.process.pid)) - before
        os.kill(template, signal.SIGKILL)
        assert ask(process.address, "/")[0] == 200
        os.kill(min(before), signal.SIGKILL)
        wait_for(lambda: sum(row["is_ready"] for row in rows(process)) == 2, 20, "another worker")


MOOD = """
import pkg
@pkg.check("mood")
def mood():
    assert os.path.exists("good") or not os.path.exists(str(os.getpid())), "bad mood"
"""


def test_readiness_is_that_of_enough_workers(tmp_path: Path) -> None:
    source = APP + MOOD
    with workers(tmp_path, source, PKG_MIN_READY_WORKERS="2") as process:
        wait_for(lambda: ask(process.address, "/readyz")[0] == 200, 10, "readiness")
        bad = rows(process)[0]["pid"]
        (tmp_path / str(bad)).touch()
        wait_for(lambda: ask(process.address, "/readyz")[0] == 503, 20, "unreadiness")
        assert "mood" in next(row for row in rows(process) if row["pid"] == bad)["reason"]
        (tmp_path / "good").touch()
        wait_for(lambda: ask(process.address, "/readyz")[0] == 200, 20, "readiness again")


def test_a_worker_is_replaced_after_max_requests(tmp_path: Path) -> None:
    with workers(tmp_path, number=1, PKG_MAX_REQUESTS="20") as process:
        pids = set()
        for _ in range(200):
            pids.add(ask(process.address, "/")[2].split()[0])
            time.sleep(0.01)
            if len(pids) > 2:
                break
        assert len(pids) > 2
        assert not process.faults()


def test_debug_pages_are_of_all_workers(tmp_path: Path) -> None:
    with workers(tmp_path) as process:
        thread = threading.Thread(target=ask, args=(process.address, "/sleep?2"))
        thread.start()
        time.sleep(0.5)
        admin = process.admin  # type: ignore[attr-defined]
        text = ask(admin, "/debug/requests")[2]
        assert "worker 1\n" in text and "worker 2\n" in text and "GET /sleep" in text
        assert "worker 1" in ask(admin, "/debug/threads")[2]
        one = ask(admin, "/debug/threads?worker=2")[2]
        assert "worker 1\n" not in one and "worker-0" in one
        assert ask(admin, "/debug/threads?worker=9")[0] == 404
        assert ask(admin, "/debug/log-level?worker=2&level=debug", "POST")[0] == 200
        assert ["debug" in ask(admin, f"/debug/log-level?worker={worker}")[2] for worker in (1, 2)] == [False, True]
        assert "debug" not in ask(admin, "/debug/log-level")[2]
        assert ask(admin, "/debug/profile?seconds=0.3&all=1")[2].startswith("worker-1;")
        thread.join()


def test_a_stuck_worker_is_seen_from_outside(tmp_path: Path) -> None:
    """It holds its interpreter lock, so that nothing in it can answer."""
    with workers(tmp_path, PKG_LIVENESS_TIMEOUT="60") as process:
        admin = process.admin  # type: ignore[attr-defined]
        assert len(rows(process)) == 2
        connection = socket.create_connection(process.address)
        connection.sendall(b"POST /lock?secret HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")

        def stuck() -> dict[str, Any] | None:
            found = json.loads(ask(admin, "/debug/requests?format=json")[2])
            return next(({"place": name, **said} for name, said in found.items() if isinstance(said, dict)), None)

        seen = wait_for(stuck, 10, "a worker that does not answer")
        assert [(request["method"], request["target"]) for request in seen["requests"]] == [("POST", "/lock")]
        assert "in app" in seen["stacks"]
        number = seen["place"].removeprefix("worker-")
        began = time.monotonic()
        status, _, text = ask(admin, f"/debug/threads?worker={number}")
        assert time.monotonic() - began < 2.0
        assert status == 200 and f"worker {number} does not answer" in text
        assert re.search(r"\d s  POST /lock\n", text) and "in app" in text and "secret" not in text
        assert not process.errors()  # SIGUSR1 alone writes there
        pid = next(row["pid"] for row in rows(process) if row["worker"] == int(number))
        os.kill(pid, signal.SIGUSR1)
        wait_for(lambda: "in app" in process.errors(), 10, "its stacks")
        os.kill(pid, signal.SIGKILL)
        connection.close()


def test_the_template_is_seen_before_there_are_workers(tmp_path: Path) -> None:
    with workers(tmp_path, f"import time; time.sleep(1){APP}", ready=False, PKG_PRELOAD="true") as process:

        def processes() -> list[dict[str, Any]]:
            with contextlib.suppress(OSError):
                page = json.loads(ask(process.admin, "/statusz?format=json")[2])  # type: ignore[attr-defined]
                found: list[dict[str, Any]] = page["processes"]
                return found if len(found) == 3 else []
            return []

        template, *others = wait_for(lambda: (seen := processes()) and seen[0]["pid"] and seen, 10, "the template")
        assert [(row["worker"], row["state"]) for row in others] == [(1, "down"), (2, "down")]
        assert template["state"] == "template" and not template["is_ready"]
        assert [template["pid"]] == children(process.process.pid)
        found = wait_for(lambda: (seen := processes()) and all(row["pid"] for row in seen) and seen, 15, "the workers")
        assert [row["worker"] for row in found] == [0, 1, 2]
        assert found[0]["pid"] == template["pid"] and found[0]["private"] > 0


STARTS = """
import os, pkg, time
def log(what):
    with open("log", "a") as file:
        file.write(f"{what} {os.getpid()}\\n")
@pkg.on_start
def begin():
    log("begin")
@pkg.on_stop
def end():
    time.sleep(0.1)
    log("end")
@pkg.on_start
def hang():
    log("hang")
    time.sleep(60)
def app(environ, start_response):
    pass
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_start_that_is_interrupted_runs_the_stop_functions(tmp_path: Path, number: signal.Signals) -> None:
    """By the end of the service, or by a reload that overtakes it."""
    log = tmp_path / "log"

    def done(what: str) -> set[str]:
        return (
            {line.split()[1] for line in log.read_text().splitlines() if line.startswith(what)}
            if log.exists()
            else set()
        )

    with workers(tmp_path, STARTS, ready=False) as process:
        first: set[str] = wait_for(lambda: len(pids := done("hang")) == 2 and pids, 10, "two starts")
        began = time.monotonic()
        assert [row["state"] for row in rows(process)] == ["starting"] * 2
        assert time.monotonic() - began < 1.0  # the first page does not wait for them either
        process.process.send_signal(number)
        wait_for(lambda: done("end") >= first, 5, "their stop functions")
        if number == signal.SIGTERM:
            assert process.process.wait(5) == 0
        else:
            wait_for(lambda: len(done("begin")) == 4, 10, "two others")
            assert process.stop(signal.SIGTERM) == 0
        assert done("end") == done("begin")
        assert not process.faults()


ENDS_LATE = """
import os, pkg, time
@pkg.on_stop
def end():
    try:
        os.mkdir("late")
    except FileExistsError:
        return
    time.sleep(1)
def app(environ, start_response):
    pass
"""


def test_workers_that_end_one_by_one_fail_no_check(tmp_path: Path) -> None:
    with workers(tmp_path, ENDS_LATE, PKG_MIN_READY_WORKERS="2") as process:
        assert process.stop(signal.SIGTERM) == 0
        assert (tmp_path / "late").exists()
        assert not process.faults()


def test_a_thread_that_is_no_daemon_delays_the_exit(tmp_path: Path) -> None:
    """Of a worker, as of a single process: until the deadline of the drain, with its stacks then and exit code 1."""
    source = f"import threading, time\nthreading.Thread(target=time.sleep, args=(60,), name='lasting').start()\n{APP}"
    with workers(tmp_path, source, PKG_DRAIN_TIMEOUT="0.3") as process:
        assert process.stop(signal.SIGTERM) == 1
        faults = process.faults()
        assert faults[:2] == ["the application's non-daemon threads delay the exit: lasting"] * 2
        killed = [text for text in faults if text.endswith("is stuck and is killed: it has not ended within 0.3 s")]
        assert len(killed) == 2
        assert process.errors().count("_shutdown") == 2  # in stacks whose lines may be mixed
