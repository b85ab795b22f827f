"""request_timeout: what becomes of a request, its connection and its worker when it takes too long."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Connection, wait_for
from tests.support.faults.postgres import Postgres
from tests.support.ports import free_port
from tests.support.processes import Process, ask, running

APPLICATION = """
import ctypes, time
import pkg

caught = []

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/slow":
        time.sleep(2.5)
    if path == "/lock":
        ctypes.PyDLL(None).sleep(3)  # with the interpreter lock
    if path == "/query":
        with pkg.connection() as conn:
            conn.execute("SELECT pg_sleep(60)")
    if path == "/read":
        environ["wsgi.input"].read()
    if path == "/caught":
        start_response("200 OK", [])
        return [" ".join(caught).encode()]
    if path == "/write":
        write = start_response("200 OK", [("Content-Length", "2")])
        time.sleep(2.5)
        try:
            write(b"ok")
        except Exception as error:
            caught.append(type(error).__name__)
            raise
        return []
    if path == "/begun":
        write = start_response("200 OK", [])
        write(b"begun")
        time.sleep(2.5)
        write(b"more")
        return []
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    directory = tmp_path_factory.mktemp("late")
    with running(directory, APPLICATION, PKG_REQUEST_TIMEOUT="1s", PKG_ADMIN="127.0.0.1:0") as process:
        yield process


def records(process: Process, path: str) -> list[dict[str, Any]]:
    return [line for line in process.lines() if line.get("url.path") == path]


def test_an_answer_that_comes_too_late(process: Process) -> None:
    with_body = Connection(process.address)
    begun = time.monotonic()
    answer = with_body.request("GET", "/write")
    assert answer.status == 504
    assert 0.9 < time.monotonic() - begun < 2.4
    assert answer.body == b"the request took too long\n"
    assert answer.closes
    assert with_body.socket.recv(10) == b""  # its end, and no late answer
    with_body.socket.close()
    wait_for(lambda: records(process, "/write"), 10, "the access record")
    assert [line["http.response.status_code"] for line in records(process, "/write")] == [504]
    assert ask(process.address, "/caught")[2] == "ClientDisconnected"
    said = [line for line in process.lines() if line["message"].startswith("GET /write took longer than 1 s")]
    assert len(said) == 1
    assert "time.sleep(2.5)" in str(said[0])


def test_head_and_a_body_that_does_not_come(process: Process) -> None:
    head = Connection(process.address)
    assert head.request("HEAD", "/slow").status == 504
    assert head.socket.recv(10) == b""
    head.socket.close()
    slow = Connection(process.address)
    slow.send(b"POST /read HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n")
    answer = slow.receive("POST")
    assert answer.status == 504
    slow.socket.close()
    wait_for(lambda: records(process, "/read"), 10, "a worker that waits no more")
    assert [line["http.response.status_code"] for line in records(process, "/read")] == [504]


def test_a_response_that_has_begun_is_cut(process: Process) -> None:
    connection = Connection(process.address)
    connection.send(b"GET /begun HTTP/1.1\r\nHost: test\r\n\r\n")
    with pytest.raises((EOFError, ConnectionError)):
        connection.receive()
    connection.socket.close()
    wait_for(lambda: records(process, "/begun"), 10, "the access record")
    assert [line["http.response.status_code"] for line in records(process, "/begun")] == [200]


def test_while_a_worker_holds_the_interpreter_lock(process: Process) -> None:
    begun = time.monotonic()
    assert ask(process.address, "/lock")[0] == 504
    assert time.monotonic() - begun < 2.9
    wait_for(lambda: records(process, "/lock"), 10, "the access record")
    assert ask(process.address, "/")[0] == 200


def test_counted_once_and_stuck_until_it_comes_back(tmp_path: Path) -> None:
    port = free_port()
    environ = {"PKG_REQUEST_TIMEOUT": "1s", "PKG_ADMIN": f"127.0.0.1:{port}", "PKG_THREADS": "2"}
    with running(tmp_path, APPLICATION, **environ) as process:

        def metrics() -> str:
            return ask(("127.0.0.1", port), "/metrics")[2]

        assert ask(process.address, "/slow")[0] == 504
        text = metrics()
        assert "\npkg_workers_late 1\n" in text
        assert "\npkg_workers_busy 1\n" in text
        assert ask(process.address, "/")[0] == 200
        wait_for(lambda: records(process, "/slow"), 10, "the access record")
        text = metrics()
        assert "\npkg_workers_late 0\n" in text
        assert "\npkg_request_timeouts_total 1\n" in text
        counts = re.findall(r"^http_server_request_duration_seconds_count{(.*?)} (\d+)", text, re.MULTILINE)
        assert sorted((re.search(r'status_code="(\d+)', labels)[1], n) for labels, n in counts) == [  # type: ignore[index]
            ("200", "1"),
            ("504", "1"),
        ], counts
        assert process.stop() == 0
        summary = process.await_message(r"since the start (\d+) served, (\d+) cut off")
        assert (int(summary[1]), int(summary[2])) == (1, 0)


def test_a_query_is_cancelled_and_its_worker_freed(tmp_path: Path) -> None:
    environ = {"PKG_REQUEST_TIMEOUT": "1s"}
    with (
        Postgres() as postgres,
        running(tmp_path, APPLICATION, DATABASE_URL=postgres.url, **environ) as process,
    ):
        wait_for(lambda: ask(process.address, "/readyz")[0] == 200, 10, "readiness")
        assert ask(process.address, "/query")[0] == 504
        wait_for(lambda: records(process, "/query"), 10, "a worker that waits no more")
        (record,) = records(process, "/query")
        assert record["http.response.status_code"] == 504
        assert record["duration"] < 10


def test_off_by_default(tmp_path: Path) -> None:
    with running(tmp_path, APPLICATION) as process:
        assert ask(process.address, "/slow")[0] == 200
        assert not re.search("took longer", "\n".join(process.messages()))
