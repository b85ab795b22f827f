"""Worker processes behind a front, over real sockets: the binding's part, without the service around it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pkg._core import Front, Stage

WORKER = Path(__file__).with_name("process_worker.py")


class Crew:
    """A front in this process, and workers of WORKER."""

    def __init__(self, **limits: Any) -> None:
        self.limits = limits
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.front = Front(self.listener.fileno(), **limits)
        self.bell = self.front.open_workers()
        self.workers: dict[int, subprocess.Popen[str]] = {}
        self.threads = [threading.Thread(target=self.front.run), threading.Thread(target=self.front.carry)]
        for thread in self.threads:
            thread.start()

    def add(self, threads: int = 2, mode: str = "threads") -> int:
        number, area = self.front.add_worker(threads, mode == "tasks")
        command = [sys.executable, str(WORKER), str(area), str(self.bell), str(threads), mode, json.dumps(self.limits)]
        self.workers[number] = subprocess.Popen(
            command, pass_fds=(area, self.bell), stdout=subprocess.PIPE, text=True, cwd=WORKER.parent.parent.parent
        )
        os.close(area)
        assert self.line_of(number) == "ready\n"
        self.front.admit_worker(number)
        return number

    def line_of(self, number: int) -> str:
        stdout = self.workers[number].stdout
        assert stdout is not None
        return stdout.readline()

    def lose(self, number: int) -> list[tuple[str, str, str]]:
        worker = self.workers.pop(number)
        worker.wait(10)
        assert worker.stdout is not None
        worker.stdout.close()
        return self.front.lose_worker(number)

    def kill(self, number: int) -> list[tuple[str, str, str]]:
        self.workers[number].send_signal(signal.SIGKILL)
        return self.lose(number)

    def ask(self, target: str, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, target, body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def ask_behind(self, target: str, method: str = "GET", body: bytes | None = None) -> Callable[[], Any]:
        """Asks in a thread; the function that is returned waits for the response, or the error."""
        result: list[Any] = []

        def run() -> None:
            try:
                result.append(self.ask(target, method, body))
            except (OSError, http.client.HTTPException) as error:
                result.append(error)

        thread = threading.Thread(target=run)
        thread.start()

        def join() -> Any:
            thread.join(10)
            return result[0]

        return join

    def wait_for(self, number: int, **wanted: int) -> None:
        until = time.monotonic() + 5
        while any(getattr(self.front.worker_state(number), name) != value for name, value in wanted.items()):
            assert time.monotonic() < until, self.front.worker_state(number)
            time.sleep(0.002)

    def close(self) -> None:
        self.front.advance(Stage.CLOSING)
        for thread in self.threads:
            thread.join(10)
        for worker in self.workers.values():
            worker.wait(10)
            assert worker.stdout is not None
            worker.stdout.close()
        self.listener.close()


@pytest.fixture
def crew() -> Iterator[Crew]:
    it = Crew()
    yield it
    it.close()


def test_requests_of_all_sizes(crew: Crew) -> None:
    number = crew.add()
    assert crew.ask("/hello") == (200, b"hello")
    for size in (10, 60_000, 70_000, 1 << 20, 3 << 20):
        body = os.urandom(size)
        assert crew.ask("/echo", "POST", body) == (200, body)
    assert crew.ask("/big") == (200, b"x" * (1 << 20))
    crew.wait_for(number, in_flight=0, served=7)


def test_many_connections(crew: Crew) -> None:
    numbers = [crew.add(), crew.add()]
    failures: list[Any] = []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", crew.port, timeout=10)
        for i in range(50):
            connection.request("POST", "/echo", b"%d" % i * 1000)
            if (got := connection.getresponse().read()) != b"%d" % i * 1000:
                failures.append(got)
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    until = time.monotonic() + 5  # a client has its response before the front has the request back
    while sum(crew.front.worker_state(number).served for number in numbers) < 400:
        assert time.monotonic() < until
        time.sleep(0.002)
    assert all(crew.front.worker_state(number).served > 0 for number in numbers)


def test_requests_wait_in_the_front_until_a_worker_has_room(crew: Crew) -> None:
    answers = [crew.ask_behind("/hello") for _ in range(3)]
    while crew.front.stats().queued < 3:
        time.sleep(0.002)
    crew.add(threads=1)
    assert [answer() for answer in answers] == [(200, b"hello")] * 3


def test_a_get_is_repeated_on_another_worker(crew: Crew) -> None:
    first = crew.add(threads=1)
    answer = crew.ask_behind("/wait-or-repeated")
    crew.wait_for(first, in_flight=1, queued=0)
    crew.add(threads=1)
    assert crew.kill(first) == [("GET", "/wait-or-repeated", "repeated")]
    assert answer() == (200, b"repeated")


def test_a_second_death_is_told_and_so_is_that_of_a_post(crew: Crew) -> None:
    crew.add(threads=1)
    answer = crew.ask_behind("/die?secret")
    assert crew.lose(1) == [("GET", "/die", "repeated")]
    crew.add(threads=1)
    assert crew.lose(2) == [("GET", "/die", "502")]
    assert answer() == (502, b"the worker died\n")
    crew.add(threads=1)
    answer = crew.ask_behind("/die", "POST", b"order")
    assert crew.lose(3) == [("POST", "/die", "502")]
    assert answer() == (502, b"the worker died\n")


def test_a_response_half_sent_is_cut(crew: Crew) -> None:
    crew.add(threads=1)
    answer = crew.ask_behind("/die-half-way")
    assert crew.lose(1) == [("GET", "/die-half-way", "cut")]
    assert isinstance(answer(), (OSError, http.client.HTTPException))


def test_what_a_dead_worker_had_not_begun_is_served_by_another(crew: Crew) -> None:
    first = crew.add(threads=2, mode="stuck")  # takes nothing
    answers = [crew.ask_behind("/echo", "POST", b"order" * 20_000) for _ in range(2)]
    crew.wait_for(first, in_flight=2, queued=2)
    assert crew.kill(first) == []
    crew.add()
    assert [answer() for answer in answers] == [(200, b"order" * 20_000)] * 2


def test_what_a_stuck_worker_does_not_begin_is_served_by_another(crew: Crew) -> None:
    first = crew.add(threads=2, mode="stuck")
    answers = [crew.ask_behind("/echo", "POST", b"order" * 20_000) for _ in range(2)]
    crew.wait_for(first, in_flight=2, queued=2)
    crew.add()
    assert [answer() for answer in answers] == [(200, b"order" * 20_000)] * 2
    crew.kill(first)


def test_a_retired_worker_finishes_what_it_has(crew: Crew) -> None:
    first = crew.add(threads=1)
    answer = crew.ask_behind("/slow")
    crew.wait_for(first, in_flight=1, queued=0)
    crew.front.retire_worker(first)
    crew.add(threads=1)
    assert crew.ask("/hello") == (200, b"hello")
    assert answer() == (200, b"slow")
    assert crew.lose(first) == []


def test_a_worker_renews_its_checks(crew: Crew) -> None:
    number = crew.add()
    expires = crew.front.worker_state(number).expires
    assert expires[0] is None
    assert expires[3] is not None
    assert 90 < expires[3] < 100


def test_a_worker_sees_the_drain(crew: Crew) -> None:
    crew.add()
    answer = crew.ask_behind("/stage-of-the-drain")
    crew.front.advance(Stage.DRAINING)
    assert answer() == (200, b"1")


def test_a_worker_learns_that_its_client_has_left(crew: Crew) -> None:
    number = crew.add(threads=1)
    client = socket.create_connection(("127.0.0.1", crew.port))
    client.sendall(b"GET /no-end HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.recv(100)
    client.close()
    assert crew.line_of(number) == "its client has left\n"
    assert crew.ask("/hello") == (200, b"hello")


def test_a_slow_body_takes_no_thread(crew: Crew) -> None:
    crew.add(threads=1)
    client = socket.create_connection(("127.0.0.1", crew.port))
    client.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + b"x" * 100_000)
    assert crew.ask("/hello") == (200, b"hello")
    client.sendall(b"x" * 100_000)
    assert client.recv(15) == b"HTTP/1.1 200 OK"
    client.close()


def test_continue_is_sent_when_the_body_is_wanted(crew: Crew) -> None:
    crew.add(threads=1)
    for target, first in ("/echo", b"HTTP/1.1 100"), ("/hello", b"HTTP/1.1 200"):
        client = socket.create_connection(("127.0.0.1", crew.port))
        client.sendall(
            b"POST %s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n" % target.encode()
        )
        assert client.recv(12) == first
        if target == "/echo":
            assert client.recv(13) == b" Continue\r\n\r\n"
            client.sendall(b"body")
            assert client.recv(1000).endswith(b"body")
        client.close()


# ---------------------------------------------------------------------------- an event loop


def test_an_event_loop_in_a_worker(crew: Crew) -> None:
    number = crew.add(1024, "tasks")
    assert crew.ask("/hello") == (200, b"hello")
    assert crew.ask("/big") == (200, b"x" * (4 << 20))
    for size in (10, 70_000, 3 << 20):
        body = os.urandom(size)
        assert crew.ask("/echo", "POST", body) == (200, body)
    crew.wait_for(number, in_flight=0, served=5)


def test_an_event_loop_learns_that_its_client_has_left(crew: Crew) -> None:
    number = crew.add(1024, "tasks")
    client = socket.create_connection(("127.0.0.1", crew.port))
    client.sendall(b"GET /until-left HTTP/1.1\r\nHost: x\r\n\r\n")
    crew.wait_for(number, in_flight=1, queued=0)
    client.close()
    assert crew.line_of(number) == "its client has left\n"


def test_a_websocket(crew: Crew) -> None:
    number = crew.add(1024, "tasks")
    client = socket.create_connection(("127.0.0.1", crew.port), timeout=5)
    client.sendall(
        b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert b"101 Switching" in client.recv(1000)
    for text in b"one", b"two":
        client.sendall(bytes((0x81, 0x80 + len(text), 0, 0, 0, 0)) + text)
        assert client.recv(100) == bytes((0x81, len(text))) + text.upper()
    assert crew.front.stats().websockets == 1
    client.close()
    crew.wait_for(number, in_flight=0)
    assert crew.front.stats().websockets == 0


def test_request_timeout() -> None:
    crew = Crew(request_timeout=0.3)
    number = crew.add(1024, "tasks")
    assert crew.ask("/slow") == (504, b"the request took too long\n")
    crew.wait_for(number, in_flight=0)
    number = crew.add(2)
    crew.front.retire_worker(1)
    assert crew.ask("/wait-or-repeated") == (504, b"the request took too long\n")
    crew.kill(number)
    crew.close()


def test_a_worker_that_is_added_after_the_end(crew: Crew) -> None:
    crew.close()
    crew.add()
    crew.close()  # which waits for its end
