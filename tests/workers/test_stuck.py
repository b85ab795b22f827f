"""The drill of the stuck service, with two workers: one of them comes to a standstill.

From outside, with nothing but HTTP and the log, the line and the request have to be named; it alone is replaced, while
the other one serves and probes get 200.  tests/system/test_stuck.py has the drill for a single process.
"""

from __future__ import annotations

import contextlib
import re
import select
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.client import Connection, wait_for
from tests.support.ports import free_port
from tests.support.processes import Process, ask, running
from tests.workers.test_workers import rows, workers

WSGI = """
import ctypes, threading

def hold_the_lock():
    ctypes.PyDLL(None).sleep(60)  # a C extension that does not let go of the interpreter lock

def wait():
    threading.Event().wait()

def app(environ, start_response):
    name = environ["PATH_INFO"][1:]
    if name:
        globals()[name]()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]
"""
ASGI = """
import time

def block():
    time.sleep(60)

async def app(scope, receive, send):
    if scope["path"] == "/block":
        block()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})
"""


class Standstill(NamedTuple):
    source: str
    name: str  # of the function, and of the page that calls it
    place: str
    requests: int
    lost: int  # of them: those that the stuck worker has
    why: str
    is_alive: bool  # its interpreter, so that its pages answer
    settings: dict[str, str]


STANDSTILLS = {
    "lock held": Standstill(
        WSGI,
        "hold_the_lock",
        "application.py:5",
        1,
        1,
        "its interpreter shows no sign of life",
        False,
        {"PKG_LIVENESS_TIMEOUT": "2"},
    ),
    # Requests go to the worker that has fewest: the third one finds a free thread in either.
    "all threads wait": Standstill(
        WSGI,
        "wait",
        "application.py:8",
        3,
        2,
        "all 2 worker threads have been busy with their requests for more than 1 s",
        True,
        {"PKG_THREADS": "2", "PKG_STUCK_TIMEOUT": "1"},
    ),
    "loop blocked": Standstill(
        ASGI,
        "block",
        "application.py:5",
        1,
        1,
        "the event loop has been blocked for more than 1 s at application.py:5: time.sleep(60), in POST /block",
        True,
        {"PKG_STUCK_TIMEOUT": "1", "PKG_LIFESPAN": "off"},
    ),
}


@contextlib.contextmanager
def probing(address: tuple[str, int]) -> Iterator[None]:
    """Asks the probes' pages and the application until the end of the block: each time it must be answered with 200."""
    answers: Counter[tuple[str, int]] = Counter()
    ended = threading.Event()

    def probe() -> None:
        while not ended.wait(0.02):
            for path in ("/healthz", "/readyz", "/"):
                answers[path, ask(address, path)[0]] += 1

    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(probe)
        try:
            yield
        finally:
            ended.set()
        future.result()
    assert {status for _, status in answers} == {200}
    assert answers.total() > 30


def in_flight(process: Process, worker: int) -> str:
    """What the page of a worker has of its requests; nothing if it does not answer."""
    status, _, text = ask(process.admin, f"/debug/requests?worker={worker}")  # type: ignore[attr-defined]
    return text if status == 200 else ""


def stacks(process: Process) -> str:
    """All that log and stderr have of stacks."""
    return process.errors() + "".join(line.get("code.stacktrace", "") for line in process.lines())


@pytest.mark.parametrize("name", STANDSTILLS)
def test_one_of_two_workers_is_stuck(tmp_path: Path, name: str) -> None:
    case = STANDSTILLS[name]
    request = f"POST /{case.name}"
    with (
        workers(tmp_path, case.source, PKG_ACCESS_LOG="off", **case.settings) as process,
        contextlib.ExitStack() as stack,
    ):
        before = {row["worker"]: row["pid"] for row in rows(process)}
        stack.enter_context(probing(process.address))
        clients = [stack.enter_context(Connection(process.address)) for _ in range(case.requests)]
        for client in clients:
            client.send(f"{request} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())

        # While it lasts, pages show it.
        wait_for(lambda: sum(row["in_flight"] for row in rows(process)) >= case.requests, 5, "the requests")
        if case.is_alive:
            wait_for(
                lambda: any(
                    request in (page := in_flight(process, worker)) and f"{case.place} in {case.name}" in page
                    for worker in before
                ),
                5,
                "the request and its line",
            )
        else:
            wait_for(lambda: sum(row["is_ready"] for row in rows(process)) == 1, 5, "a worker that is not ready")

        # The log has why, the line, and which requests this has cost, which are told so.
        match = process.await_message(r"^worker (\d) is stuck and is replaced: (.*)")
        stuck = int(match[1])
        assert match[2].startswith(case.why)
        process.await_message(f"^worker {stuck} .* was killed by SIGKILL .*, while serving {request} .502.")
        assert f"in {case.name}" in stacks(process)
        assert re.search(rf'application.py", line {case.place.rpartition(":")[2]} in {case.name}', process.errors())
        if case.is_alive:
            process.await_message(f"^in flight: {request} for .* at {case.place} in {case.name}")

        # It alone has been replaced.
        wait_for(lambda: [row["is_ready"] for row in rows(process)] == [True, True], 20, "another worker")
        after = {row["worker"]: row["pid"] for row in rows(process)}
        assert after[stuck] != before[stuck]
        assert after[3 - stuck] == before[3 - stuck]
        answered, _, _ = select.select([client.socket for client in clients], [], [], 0)
        answers = [client.receive() for client in clients if client.socket in answered]
        assert [(answer.status, answer.header("Retry-After")) for answer in answers] == [(502, "1")] * case.lost


def test_an_import_that_does_not_end(tmp_path: Path) -> None:
    source = "import threading\n\ndef connect():\n    threading.Event().wait()\n\nconnect()\n"
    admin = "127.0.0.1", free_port()
    settings = {"WEB_CONCURRENCY": "2", "PKG_ADMIN": f"127.0.0.1:{admin[1]}"}
    with running(tmp_path, source, ready=False, **settings):

        def page() -> str:
            with contextlib.suppress(OSError):
                return ask(admin, "/debug/threads")[2]
            return ""

        wait_for(lambda: page().count("application.py:4 in connect") == 2, 15, "the line where each worker is")
        assert ask(admin, "/debug/threads?worker=2")[2].count("application.py:4 in connect") == 1
