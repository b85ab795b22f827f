"""Uploads that come slowly, or in chunks, through the real process; those that are spooled are in test_spooling.py."""

from __future__ import annotations

import concurrent.futures
import http.client
import socket
import time
from pathlib import Path

import pytest

from tests.support.client import get, wait_for
from tests.support.processes import Process, running

APPLICATION = """
def app(environ, start_response):
    # As most frameworks do it: without a length there is no body.
    length = int(environ.get("CONTENT_LENGTH") or 0)
    n = len(environ["wsgi.input"].read(length))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(n).encode()]
"""


STREAM = {"PKG_STREAM_BODIES": "true"}


def dial(process: Process, data: bytes) -> socket.socket:
    client = socket.create_connection(process.address, 10)
    client.sendall(data)
    return client


def test_slow_uploads_leave_half_of_the_workers_to_others(tmp_path: Path) -> None:
    with running(
        tmp_path, APPLICATION, PKG_THREADS="4", PKG_QUEUE_TIMEOUT="2s", PKG_BODY_TIMEOUT="3s", **STREAM
    ) as process:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
        slow = [dial(process, head + b"z" * 66000) for _ in range(12)]
        for _ in range(20):
            for client in slow:
                client.sendall(b"z" * 600)
            assert get(process.address, "/", "Connection: close\r\n").status == 200
        for client in slow:  # those that have waited are served when the others are done
            client.sendall(b"z" * (34000 - 20 * 600))
        for client in slow:
            response = http.client.HTTPResponse(client)
            response.begin()
            assert (response.status, response.read()) == (200, b"100000")
            response.close()
            client.close()


def test_uploads_that_never_get_a_worker_are_told_so(tmp_path: Path) -> None:
    with running(
        tmp_path, APPLICATION, PKG_THREADS="2", PKG_BODY_TIMEOUT="1s", PKG_MIN_BODY_RATE="1", **STREAM
    ) as process:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
        slow = [dial(process, head + b"z" * 66000) for _ in range(4)]

        def refused() -> bool:
            for client in slow:
                client.settimeout(0.05)
                try:
                    client.send(b"z" * 10)  # enough for the rate
                    if client.recv(100).startswith(b"HTTP/1.1 503 "):
                        return True
                except TimeoutError:
                    pass
                except ConnectionError:
                    continue
            return False

        wait_for(refused, 15, "503 for an upload that waits")
        assert get(process.address, "/").status == 200
        for client in slow:
            client.close()


@pytest.mark.parametrize("settings", [{}, STREAM, {"PKG_BUFFER_SIZE": "2MiB"}], ids=["gathered", "streamed", "spooled"])
def test_many_uploads_at_once_all_arrive(tmp_path: Path, settings: dict[str, str]) -> None:
    def upload(address: tuple[str, int]) -> bytes:
        connection = http.client.HTTPConnection(*address, timeout=30)
        try:
            connection.request("POST", "/", b"z" * (1 << 20))
            return connection.getresponse().read()
        finally:
            connection.close()

    with (
        running(tmp_path, APPLICATION, PKG_THREADS="4", **settings) as process,
        concurrent.futures.ThreadPoolExecutor(16) as pool,
    ):
        assert set(pool.map(upload, [process.address] * 200)) == {b"1048576"}


def test_a_chunked_body_that_was_announced_has_a_length(tmp_path: Path) -> None:
    head = (
        b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    )
    with running(tmp_path, APPLICATION) as process, dial(process, head) as client:
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"5\r\nhello\r\n0\r\n\r\n")
        response = http.client.HTTPResponse(client)
        response.begin()
        assert (response.status, response.read()) == (200, b"5")
        response.close()


def test_a_body_that_was_held_leaves_nothing_behind_for_the_next(tmp_path: Path) -> None:
    def answer(client: socket.socket) -> tuple[int, bytes]:
        response = http.client.HTTPResponse(client)
        response.begin()
        return response.status, response.read()

    with running(tmp_path, APPLICATION, PKG_THREADS="2", PKG_BODY_BUFFER_SIZE="1KiB", **STREAM) as process:
        slow = dial(process, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n" + b"z" * 2000)
        time.sleep(0.3)  # it has its worker, so that the next is held
        held = dial(process, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1900\r\n\r\n" + b"z" * 1200)
        time.sleep(0.3)
        held.sendall(b"z" * 700)  # complete, in the loop's own buffer
        assert answer(held) == (200, b"1900")
        slow.sendall(b"z" * 3000)
        assert answer(slow) == (200, b"5000")
        # A short one in chunks is still collected whole before a worker gets it: it has no length before.
        held.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel")
        time.sleep(0.3)
        held.sendall(b"lo\r\n0\r\n\r\n")
        assert answer(held) == (200, b"5")
        slow.close()
        held.close()
