"""Which requests workers take while the interpreter has no time left (ext/front/admission.c)."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.client import wait_for
from tests.support.ports import free_port
from tests.support.processes import Process, ask, running

THREADS, CONNECTIONS = 8, 32

# /work holds the interpreter lock for half a millisecond, and gives it up a few times, as a query does.
# /short computes for less and does not, /heavy for 10 ms, /varied/N for N ms,
# /report computes and waits, /hash computes without the lock.  /numbered/N is noted in /begun when it begins.
APPLICATION = """
import hashlib, sys, threading, time

lock = threading.Lock()
here, most, begun = {}, {}, []

def compute(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass

def app(environ, start_response):
    _, kind, *rest = environ["PATH_INFO"].split("/")
    body = b""
    if kind == "most":
        with lock:
            body = b"%d" % most.pop(rest[0], 0)
    elif kind == "begun":
        body = " ".join(begun).encode()
    elif kind == "interval":
        body = b"%.4f" % sys.getswitchinterval()
    elif kind == "numbered":
        begun.append(rest[0])
        compute(0.0006)
    else:
        with lock:
            here[kind] = here.get(kind, 0) + 1
            most[kind] = max(most.get(kind, 0), here[kind])
        if kind == "work":
            for part in range(5):
                compute(0.0001)
                time.sleep(0)
        elif kind == "short":
            compute(0.0003)
        elif kind == "heavy":
            compute(0.01)
        elif kind == "varied":
            compute(int(rest[0]) / 1000)
        elif kind == "report":
            compute(0.003)
            time.sleep(0.2)
        elif kind == "hash":
            hashlib.pbkdf2_hmac("sha256", b"a", b"b", 30_000)
        elif kind == "sleep":
            time.sleep(0.5)
        with lock:
            here[kind] -= 1
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    admin = free_port()
    with running(
        tmp_path, APPLICATION, app="application:app", PKG_THREADS=str(THREADS), PKG_ADMIN=f"127.0.0.1:{admin}"
    ) as it:
        it.admin = ("127.0.0.1", admin)  # type: ignore[attr-defined]
        yield it


def send(address: tuple[str, int], path: str) -> socket.socket:
    client = socket.create_connection(address, 20)
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return client


@contextlib.contextmanager
def load(
    address: tuple[str, int], path: str, connections: int, count: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Connections of which each has a request under way; {} in the path is another number each time."""
    over = threading.Event()

    def run() -> None:
        number = connections
        with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
            for n in range(connections):
                selector.register(stack.enter_context(send(address, path.format(n))), selectors.EVENT_READ)
            while not over.is_set():
                for key, _ in selector.select(0.1):
                    assert isinstance(key.fileobj, socket.socket)
                    key.fileobj.recv(65536)
                    number += 1
                    count()
                    key.fileobj.sendall(f"GET {path.format(number)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def most_at_once(process: Process, kind: str) -> int:
    """Since the last call."""
    return int(ask(process.address, f"/most/{kind}")[2])


@pytest.mark.parametrize("workers", ["0", "1"])
def test_requests_begin_in_the_order_in_which_they_arrive(tmp_path: Path, workers: str) -> None:
    numbers = itertools.count()
    environ = {"PKG_THREADS": str(THREADS), "WEB_CONCURRENCY": workers}
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(running(tmp_path, APPLICATION, app="application:app", **environ))
        clients = [stack.enter_context(socket.create_connection(process.address, 20)) for _ in range(24)]
        for _ in range(20):
            for client in clients:  # faster than they are served
                client.sendall(f"GET /numbered/{next(numbers)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                time.sleep(0.0003)
            for client in clients:
                assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        begun = [int(number) for number in ask(process.address, "/begun")[2].split()][len(clients) :]
    overtaken = sum(later < earlier for earlier, later in itertools.pairwise(begun))
    assert sorted(begun) == list(range(len(clients), next(numbers)))
    assert overtaken <= len(begun) / 100  # one in seven if a worker has a request before it has the interpreter


def test_fewer_workers_are_busy_while_the_interpreter_is(process: Process) -> None:
    with load(process.address, "/work", CONNECTIONS):

        def few() -> bool:
            time.sleep(0.1)  # so many requests take part
            return most_at_once(process, "work") <= THREADS // 2

        wait_for(few, 30, "fewer workers to take requests")
        # What waits for the interpreter counts as before, for whoever scales the service by its busy workers.
        metrics = ask(process.admin, "/metrics")[2]  # type: ignore[attr-defined]
        busy = re.search(r"^pkg_workers_busy (\d+)", metrics, re.MULTILINE)
        assert busy is not None and int(busy[1]) >= THREADS - 2
        # Those that only wait leave time, and the workers come back for them.
        with contextlib.ExitStack() as stack:
            for sleeper in [stack.enter_context(send(process.address, "/sleep")) for _ in range(THREADS)]:
                assert sleeper.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert most_at_once(process, "sleep") >= THREADS - 2


def test_heavy_requests_go_one_by_one_whatever_their_ids(process: Process) -> None:
    with load(process.address, "/heavy/{}", 4), load(process.address, "/work", 2):

        def one() -> bool:
            time.sleep(0.3)
            return most_at_once(process, "heavy") == 1

        wait_for(one, 30, "heavy requests to go one by one")
        assert most_at_once(process, "work") > 0  # which pass them


@pytest.mark.parametrize("kind", ["report", "hash"])
def test_heavy_requests_that_leave_the_interpreter_free_go_together(process: Process, kind: str) -> None:
    for _ in range(5):  # so that it is known
        ask(process.address, f"/{kind}")
    most_at_once(process, kind)
    with load(process.address, f"/{kind}", 6):

        def several() -> bool:
            time.sleep(0.5)
            return most_at_once(process, kind) >= 4

        wait_for(several, 30, "several of them at the same time")


def test_a_heavy_request_is_passed_only_for_a_while(process: Process) -> None:
    """As long as it computes; then it is through before the others go on."""
    served = {"short": 0, "heavy": 0}

    def count(kind: str) -> None:
        served[kind] += 1

    def alike() -> bool:
        served.update(short=0, heavy=0)
        time.sleep(1)
        return served["short"] < 10 * served["heavy"]  # 13 to 34 times as many if they always pass

    with (
        load(process.address, "/heavy/{}", 4, functools.partial(count, "heavy")),
        load(process.address, "/short", 16, functools.partial(count, "short")),
    ):
        wait_for(alike, 30, "heavy requests to have their part")


def test_others_do_not_wait_for_one_that_computes_longer_than_usual(process: Process) -> None:
    times: list[float] = []

    def longest() -> float:
        for _ in range(20):  # so that it is known
            ask(process.address, "/varied/10")
        times.clear()
        with send(process.address, "/varied/600") as client:
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        return max(later - earlier for earlier, later in itertools.pairwise([*times, time.monotonic()]))

    with load(process.address, "/short", 4, lambda: times.append(time.monotonic())):
        wait_for(lambda: longest() < 0.2, 20, "others to be served meanwhile")


def test_the_interpreter_changes_hands_more_often_than_by_default(process: Process) -> None:
    assert ask(process.address, "/interval")[2] == "0.0010"


def test_the_application_may_choose_its_interval(tmp_path: Path) -> None:
    with running(tmp_path, f"import sys\nsys.setswitchinterval(0.02)\n{APPLICATION}", app="application:app") as process:
        assert ask(process.address, "/interval")[2] == "0.0200"
